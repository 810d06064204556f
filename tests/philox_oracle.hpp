// Philox4x32-10 as its paper has it, by whole 64-bit products.
#pragma once

#include <array>
#include <cstdint>

namespace testing {

struct Philox {
  static std::array<std::uint32_t, 4> words(std::array<std::uint32_t, 4> c, std::uint32_t k0, std::uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
      c = {static_cast<std::uint32_t>(b / 0x100000000ull) ^ c[1] ^ k0, static_cast<std::uint32_t>(b % 0x100000000ull),
           static_cast<std::uint32_t>(a / 0x100000000ull) ^ c[3] ^ k1, static_cast<std::uint32_t>(a % 0x100000000ull)};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return c;
  }

  static std::uint32_t low(std::uint64_t value) { return static_cast<std::uint32_t>(value % 0x100000000ull); }
  static std::uint32_t high(std::uint64_t value) { return static_cast<std::uint32_t>(value / 0x100000000ull); }
};

}  // namespace testing
