// Seeded test data. The same seed gives the same data with every compiler and standard library.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace testing {

/// SplitMix64.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t value = state_;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
  }
  /// In [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  /// In [low, high].
  int integer(int low, int high) { return low + static_cast<int>(bits() % static_cast<std::uint64_t>(high - low + 1)); }
  bool chance(double probability) { return uniform() < probability; }
  double normal() {
    constexpr double two_pi = 6.283185307179586;
    return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(two_pi * uniform());
  }

  template <class T = float>
  std::vector<T> normals(std::size_t count, double deviation = 1.0, double mean = 0.0) {
    std::vector<T> values(count);
    for (T& value : values) value = static_cast<T>(mean + deviation * normal());
    return values;
  }
  /// Floats of arbitrary bits: NaNs with payloads, infinities, denormals, both zeros.
  std::vector<float> any_floats(std::size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = std::bit_cast<float>(static_cast<std::uint32_t>(bits()));
    return values;
  }
  /// 0 with the given probability, else 1.
  std::vector<std::uint8_t> flags(std::size_t count, double zero_probability) {
    std::vector<std::uint8_t> values(count);
    for (std::uint8_t& value : values) value = chance(zero_probability) ? std::uint8_t{0} : std::uint8_t{1};
    return values;
  }
  /// `count` different ids below `experts`.
  std::vector<int> distinct_ids(int count, int experts) {
    std::vector<int> ids(static_cast<std::size_t>(experts));
    for (int e = 0; e < experts; ++e) ids[static_cast<std::size_t>(e)] = e;
    for (int i = 0; i < count; ++i) {
      std::swap(ids[static_cast<std::size_t>(i)], ids[static_cast<std::size_t>(integer(i, experts - 1))]);
    }
    ids.resize(static_cast<std::size_t>(count));
    return ids;
  }

 private:
  std::uint64_t state_;
};

}  // namespace testing
