// Sorting some rows of values at once. A row's values stand side by side with the other rows', so that every comparison of the network is one of vectors,
// and none is a branch. Source: K. E. Batcher, Sorting networks and their applications, 1968 (odd-even merge sort).
#pragma once

#include <moe_balance/config.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The comparisons, in order, that put the larger of two places into the upper one, until N values descend; less those that places First to Last do not
/// depend on.
template <int N, int First, int Last>
struct SortingNetwork {
  struct Pair {
    std::uint8_t upper;
    std::uint8_t lower;
  };
  int count = 0;
  Pair pairs[N * 10]{};

  constexpr SortingNetwork() {
    for (int p = 1; p < N; p *= 2) {
      for (int k = p; k >= 1; k /= 2) {
        for (int i = k % p; i + k < N; ++i) {
          const bool is_compared = (i - k % p) / k % 2 == 0 && i / (2 * p) == (i + k) / (2 * p);
          if (is_compared) pairs[count++] = {static_cast<std::uint8_t>(i), static_cast<std::uint8_t>(i + k)};
        }
      }
    }
    bool is_wanted[N]{};
    for (int i = First; i <= Last; ++i) is_wanted[i] = true;
    int kept = count;
    for (int i = count - 1; i >= 0; --i) {
      const Pair pair = pairs[i];
      if (!is_wanted[pair.upper] && !is_wanted[pair.lower]) continue;
      is_wanted[pair.upper] = is_wanted[pair.lower] = true;
      pairs[--kept] = pair;
    }
    for (int i = kept; i < count; ++i) pairs[i - kept] = pairs[i];
    count -= kept;
  }
};

/// value[i][r] becomes row r's i-th largest, for i from First to Last; other places hold any of the others. A loop: unrolled, it is a third of what a
/// router takes to compile.
template <int First, int Last, class T, int N, int Rows>
MOEB_EARLY_INLINE void sort_rows(T (&value)[N][Rows]) {
  static constexpr SortingNetwork<N, First, Last> network;  // in here, so that nvcc finds it for a device, too
  for (int i = 0; i < network.count; ++i) {
    T(&upper)[Rows] = value[network.pairs[i].upper];
    T(&lower)[Rows] = value[network.pairs[i].lower];
    T larger[Rows];
    T smaller[Rows];
    for (int r = 0; r < Rows; ++r) {
      larger[r] = upper[r] > lower[r] ? upper[r] : lower[r];
      smaller[r] = upper[r] > lower[r] ? lower[r] : upper[r];
    }
    for (int r = 0; r < Rows; ++r) upper[r] = larger[r];
    for (int r = 0; r < Rows; ++r) lower[r] = smaller[r];
  }
}

MOEB_NAMESPACE_END
