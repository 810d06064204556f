// Random numbers that depend on nothing but their counter and key, so that any thread on any engine finds the same bits: Philox4x32-10, and standard
// Gumbel and normal numbers of its words.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; the normal quantile: Wichura 1988, algorithm AS 241, PPND7.
#pragma once

#include <moe_balance/numeric/math.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Philox4x32 with ten rounds: words[w][n] is word w of the n-th counter, and of its result afterwards. The key's low half is its first word. A round
/// multiplies two of the words to 64 bits and mixes the halves with the others and the key.
template <int Counters>
MOEB_INLINE void philox(std::uint32_t (&words)[4][Counters], std::uint64_t key) {
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  MOEB_UNROLL
  for (int round = 0; round < 10; ++round) {
    for (int n = 0; n < Counters; ++n) {
      const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * words[0][n];
      const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * words[2][n];
      words[0][n] = static_cast<std::uint32_t>(product1 >> 32) ^ words[1][n] ^ key0;
      words[1][n] = static_cast<std::uint32_t>(product1);
      words[2][n] = static_cast<std::uint32_t>(product0 >> 32) ^ words[3][n] ^ key1;
      words[3][n] = static_cast<std::uint32_t>(product0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

/// One of 2^23 equally likely numbers, the odd multiples of 2^-24: above 0, below 1, and as near the one as the other.
[[nodiscard]] MOEB_INLINE float uniform_of(std::uint32_t word) {
  return mul(static_cast<float>(2 * static_cast<std::int32_t>(word >> 9) + 1), 0x1p-24f);
}

/// The standard Gumbel number -log(-log u) of a uniform one, between -2.82 and 16.64.
[[nodiscard]] MOEB_INLINE float gumbel_of(float uniform) {
  return -log(-log(uniform));
}

/// The standard normal number with that much probability below it, between -5.3 and 5.3.
[[nodiscard]] MOEB_INLINE float normal_of(float uniform) {
  const float q = sub(uniform, 0.5f);
  const float size = choose(q < 0.0f, -q, q);
  const float r = fma(-q, q, 0.180625f);
  float over = fma(59.109374720f, r, 159.29113202f);
  over = fma(fma(over, r, 50.434271938f), r, 3.3871327179f);
  const float under = fma(fma(fma(67.187563600f, r, 78.757757664f), r, 17.895169469f), r, 1.0f);
  const float s = sub(sqrt(-log(sub(0.5f, size))), 1.6f);  // of the tail
  const float far_over = fma(fma(fma(0.17023821103f, s, 1.3067284816f), s, 2.7568153900f), s, 1.4234372777f);
  const float far_under = fma(fma(0.12021132975f, s, 0.73700164250f), s, 1.0f);
  const bool is_near = size <= 0.425f;
  const float ratio = div(choose(is_near, over, far_over), choose(is_near, under, far_under));
  const float magnitude = mul(choose(is_near, size, 1.0f), ratio);
  return choose(q < 0.0f, -magnitude, magnitude);
}

MOEB_NAMESPACE_END
