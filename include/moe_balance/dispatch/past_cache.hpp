// A CPU's stores past its cache, for rows that would not stay in it.
#pragma once

#include <moe_balance/config.hpp>

MOEB_NAMESPACE_BEGIN

/// Whether the compiler has such stores for its processor.
#if defined(__x86_64__) && defined(__GNUC__)
inline constexpr bool cpu_stores_past_cache = true;
#else
inline constexpr bool cpu_stores_past_cache = false;
#endif

/// Copies 16 bytes to an address that is a multiple of 16. A cache line that is written whole so is neither read first nor kept. Other threads
/// see the bytes only after finish_stores_past_cache.
MOEB_INLINE void store_16_bytes_past_cache(void* to, const void* from) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDA_ARCH__)
  using Vector = float __attribute__((vector_size(16)));
  Vector bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
#if defined(__clang__)
  __builtin_nontemporal_store(bits, static_cast<Vector*>(to));
#else
  __builtin_ia32_movntps(static_cast<float*>(to), bits);
#endif
#else
  __builtin_memcpy(to, from, 16);
#endif
}

/// To be called by the thread that stored, before it tells others that it has: what orders other stores does not order these.
MOEB_INLINE void finish_stores_past_cache() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDA_ARCH__)
  __builtin_ia32_sfence();
#endif
}

MOEB_NAMESPACE_END
