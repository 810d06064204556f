// Asking for memory ahead of its use, so that it is in cache by then.
#pragma once

#include <moe_balance/config.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// What a row is asked for. Memory that is only written is worth asking for on a CPU, which fetches it all the same.
enum class RowUse : std::uint8_t { read, write };

/// Asks for the cache line at an address, which may lie outside of any object: nothing is accessed. Inlined early, as all that only prefetches: g++
/// takes such a function for one without an effect and drops calls of it.
template <RowUse use>
MOEB_EARLY_INLINE void prefetch(std::uintptr_t address) {
#if defined(__CUDA_ARCH__)
  if constexpr (use == RowUse::read) asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
#else
  __builtin_prefetch(reinterpret_cast<const void*>(address), use == RowUse::write ? 1 : 0);
#endif
}

MOEB_NAMESPACE_END
