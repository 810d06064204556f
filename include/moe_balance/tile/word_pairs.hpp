// Pairs of words in a block's shared memory.
#pragma once

#include <moe_balance/tile/opaque.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Pairs of words from a place on whose address is a multiple of eight bytes. A GPU's thread keeps that in a register: with few left, compilers would
/// rather compute it again, in six instructions, for each that is stored.
struct WordPairs {
  struct Pair {
    std::uint32_t first;
    std::uint32_t second;
  };
  std::uint32_t* words;
  std::int32_t address;  ///< of a GPU's shared memory

  MOEB_INLINE explicit WordPairs(std::uint32_t* from) : words(from), address(0) {
#if defined(__CUDA_ARCH__)
    address = opaque(static_cast<std::int32_t>(__cvta_generic_to_shared(from)));
#endif
  }
  MOEB_INLINE void store(int i, Pair pair) const {
#if defined(__CUDA_ARCH__)
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" : : "r"(address + 8 * i), "r"(pair.first), "r"(pair.second) : "memory");
#else
    words[2 * i] = pair.first;
    words[2 * i + 1] = pair.second;
#endif
  }
  [[nodiscard]] MOEB_INLINE Pair load(int i) const {
    Pair pair;
#if defined(__CUDA_ARCH__)
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(pair.first), "=r"(pair.second) : "r"(address + 8 * i) : "memory");
#else
    pair = {words[2 * i], words[2 * i + 1]};
#endif
    return pair;
  }
};

MOEB_NAMESPACE_END
