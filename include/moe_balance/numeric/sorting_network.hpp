// Sorting some rows of values at once. A row's values stand side by side with the other rows', so that every comparison of the network is one of vectors,
// and none is a branch. Source: K. E. Batcher, Sorting networks and their applications, 1968 (odd-even merge sort).
#pragma once

#include <moe_balance/views.hpp>

#include <cstdint>
#include <utility>

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

/// The network, put together once and not for each comparison. For constant expressions only: a device does not see it.
template <class Network>
inline constexpr Network network_of{};

/// value[i][r] becomes row r's i-th largest, for i from First to Last; other places hold any of the others. A loop: unrolled, it is a third of what a
/// router takes to compile.
template <int First, int Last, class T, int N, int Rows>
MOEB_EARLY_INLINE void sort_rows(T (&value)[N][Rows]) {
  static constexpr SortingNetwork<N, First, Last> network;
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

/// Comparison `Index` of a network, whose places are constants: a GPU's registers cannot be indexed. And nvcc 13 compiles sort_rows for a device to nothing:
/// it takes the static constexpr network of a function template for zeros, without a word.
template <class Network, int Index, class T, int N>
MOEB_INLINE void compare_and_exchange(T (&value)[N]) {
  constexpr int upper = network_of<Network>.pairs[Index].upper;
  constexpr int lower = network_of<Network>.pairs[Index].lower;
  const T larger = value[upper] > value[lower] ? value[upper] : value[lower];
  const T smaller = value[upper] > value[lower] ? value[lower] : value[upper];
  value[upper] = larger;
  value[lower] = smaller;
}
template <class Network, int... Indices, class T, int N>
MOEB_INLINE void compare_and_exchange_all(T (&value)[N], std::integer_sequence<int, Indices...>) {
  (compare_and_exchange<Network, Indices>(value), ...);
}

/// The same as sort_rows for one row in a GPU thread's registers.
template <int First, int Last, class T, int N>
MOEB_INLINE void sort_values(T (&value)[N]) {
  using Network = SortingNetwork<N, First, Last>;
  compare_and_exchange_all<Network>(value, std::make_integer_sequence<int, network_of<Network>.count>{});
}

#if defined(__x86_64__) && defined(__GNUC__)
/// Four rows' values at one place, in a vector register.
template <class T>
struct FourValues;
template <>
struct FourValues<std::int32_t> {
  using type = std::int32_t __attribute__((vector_size(16)));
};
template <>
struct FourValues<double> {
  using type = double __attribute__((vector_size(32)));
};

/// The same as compare_and_exchange, which is for devices, too, and those have no vectors.
template <class Network, int Index, class Row, int N>
__attribute__((always_inline)) inline void exchange_in_vectors(Row (&row)[N]) {
  constexpr int upper = network_of<Network>.pairs[Index].upper;
  constexpr int lower = network_of<Network>.pairs[Index].lower;
  const Row larger = row[upper] > row[lower] ? row[upper] : row[lower];
  row[lower] = row[upper] > row[lower] ? row[lower] : row[upper];
  row[upper] = larger;
}
template <class Network, class Row, int N, int... Indices>
__attribute__((always_inline)) inline void exchange_all_in_vectors(Row (&row)[N], std::integer_sequence<int, Indices...>) {
  (exchange_in_vectors<Network, Indices>(row), ...);
}

/// sort_rows of four rows for x86-64-v3, in registers, which a loop cannot index. A function of its own: it is compiled once for all routers of a file, and
/// faster than a loop is.
template <int First, int Last, class T, int N>
__attribute__((noinline, target("avx2"))) inline void sort_four_rows_v3(T (&value)[N][4]) {
  using Row = typename FourValues<T>::type;
  Row row[N];
  __builtin_memcpy(row, value, sizeof(row));
  using Network = SortingNetwork<N, First, Last>;
  exchange_all_in_vectors<Network>(row, std::make_integer_sequence<int, network_of<Network>.count>{});
  __builtin_memcpy(value[First], row + First, (Last - First + 1) * sizeof(Row));
}
#endif

/// sort_rows of four rows for any processor.
template <int First, int Last, class T, int N>
__attribute__((noinline)) inline void sort_four_rows_anywhere(T (&value)[N][4]) {
  sort_rows<First, Last>(value);
}

/// sort_rows with instructions that the machine has.
MOEB_NO_EXECUTION_CHECK
template <int First, int Last, class T, int N, int Rows>
MOEB_EARLY_INLINE void sort_rows([[maybe_unused]] InstructionSet instructions, T (&value)[N][Rows]) {
  if constexpr (Rows == 4 && N <= 16) {  // as many as there are registers
#if defined(__x86_64__) && defined(__GNUC__)
    if (instructions >= InstructionSet::x86_64_v3) return sort_four_rows_v3<First, Last>(value);
#endif
    sort_four_rows_anywhere<First, Last>(value);
  } else {
    sort_rows<First, Last>(value);
  }
}

MOEB_NAMESPACE_END
