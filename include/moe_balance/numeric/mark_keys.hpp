// Which keys of a row in memory reach a threshold, as bits: by the processor's comparisons that give bits, where it has them.
#pragma once

#include <moe_balance/views.hpp>

#include <bit>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

inline constexpr int keys_per_word = 64;

/// Bit i of marks[w] becomes whether keys[64 w + i] >= least, for w < words. For any processor: bytes of 0 and 1, which vectorise, and a multiplication
/// that puts eight of them side by side.
__attribute__((noinline)) inline void mark_keys_anywhere(const std::int32_t* keys, int words, std::int32_t least,
                                                         std::uint64_t* marks) {
  constexpr std::uint64_t gather = std::endian::native == std::endian::little ? 0x0102040810204080 : 0x8040201008040201;
  for (int w = 0; w < words; ++w) {
    std::uint8_t reaches[keys_per_word];
    for (int i = 0; i < keys_per_word; ++i) reaches[i] = keys[keys_per_word * w + i] >= least ? 1 : 0;
    std::uint64_t word = 0;
    for (int i = 0; i < keys_per_word; i += 8) {
      std::uint64_t eight;
      __builtin_memcpy(&eight, reaches + i, sizeof(eight));
      word |= (eight * gather >> 56) << i;
    }
    marks[w] = word;
  }
}

#if defined(__x86_64__) && defined(__GNUC__)
/// The same for x86-64-v3.
__attribute__((noinline, target("avx2"))) inline void mark_keys_v3(const std::int32_t* keys, int words, std::int32_t least,
                                                                   std::uint64_t* marks) {
  using Keys = std::int32_t __attribute__((vector_size(32)));
  using Signs = float __attribute__((vector_size(32)));
  const Keys bound = Keys{} + least;
  for (int w = 0; w < words; ++w) {
    std::uint64_t below = 0;
    for (int i = 0; i < keys_per_word; i += 8) {
      Keys some;
      __builtin_memcpy(&some, keys + keys_per_word * w + i, sizeof(some));
      const auto bits = static_cast<unsigned>(__builtin_ia32_movmskps256(reinterpret_cast<Signs>(bound > some)));
      below |= std::uint64_t{bits} << i;
    }
    marks[w] = ~below;
  }
}

/// The same for x86-64-v4.
__attribute__((noinline, target("avx512f"))) inline void mark_keys_v4(const std::int32_t* keys, int words,
                                                                      std::int32_t least, std::uint64_t* marks) {
  using Keys = std::int32_t __attribute__((vector_size(64)));
  constexpr int not_less = 5;
  const Keys bound = Keys{} + least;
  for (int w = 0; w < words; ++w) {
    std::uint64_t word = 0;
    for (int i = 0; i < keys_per_word; i += 16) {
      Keys some;
      __builtin_memcpy(&some, keys + keys_per_word * w + i, sizeof(some));
      const std::uint16_t bits = __builtin_ia32_cmpd512_mask(some, bound, not_less, 0xffff);
      word |= std::uint64_t{bits} << i;
    }
    marks[w] = word;
  }
}
#endif

/// The same with instructions that the machine has.
MOEB_NO_EXECUTION_CHECK
MOEB_EARLY_INLINE void mark_keys([[maybe_unused]] InstructionSet instructions, const std::int32_t* keys, int words,
                                 std::int32_t least, std::uint64_t* marks) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (instructions == InstructionSet::x86_64_v4) return mark_keys_v4(keys, words, least, marks);
  if (instructions == InstructionSet::x86_64_v3) return mark_keys_v3(keys, words, least, marks);
#endif
  mark_keys_anywhere(keys, words, least, marks);
}

MOEB_NAMESPACE_END
