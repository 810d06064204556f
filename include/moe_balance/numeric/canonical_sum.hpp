// Floating-point sums in one order, whatever the tile's width: results carry the same bits on the CPU and on any GPU tile.
// The order: 32 virtual lanes; virtual lane v has the quads v, v + 32, v + 64, ... Within it, each of the four positions of a quad is
// summed over its quads first, then (0 + 1) + (2 + 3). Then the virtual lanes are added by halves: 16 apart, 8, 4, 2, 1.
// A tile of width W gives its lane l the virtual lanes l, l + W, ..., which is what Layout does with quads.
#pragma once

#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/rounded.hpp>
#include <moe_balance/tile/tile.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// values[i] = f(values[i], values[i + Half]) for i < Half, then for half of them, down to values[0].
template <int Half, class T, int N, class Function>
MOEB_INLINE void fold_by_halves(T (&values)[N], const Function& f) {
  if constexpr (Half >= 1) {
    MOEB_UNROLL
    for (int i = 0; i < Half; ++i) values[i] = f(values[i], values[i + Half]);
    fold_by_halves<Half / 2>(values, f);
  }
}

/// Adds the virtual lanes; `partial[r]` is virtual lane lane + width * r. Overwrites `partial`; every lane returns the sum of its `Lanes` neighbours.
template <int Lanes, class TileT, class Real, int local>
[[nodiscard]] MOEB_INLINE Real sum_of_virtual_lanes(const TileT& tile, Real (&partial)[local]) {
  fold_by_halves<local / 2>(partial, [](Real a, Real b) MOEB_LAMBDA { return add(a, b); });
  return butterfly<Lanes>(tile, partial[0], [](Real own, Real other) MOEB_LAMBDA { return add(own, other); });
}

/// The sum of nothing: -0, the number whose addition changes nothing. To add it costs no instruction.
template <class Real>
struct NoSum {
  MOEB_INLINE constexpr operator Real() const { return -Real(0); }  // NOLINT: for callers that take a Real
};
template <class Real>
[[nodiscard]] MOEB_INLINE Real add(NoSum<Real> /*sum*/, Real term) {
  return term;
}

/// Sum over all slots of accumulate(slot, -0), where `accumulate(slot, a)` returns a plus the slot's term, rounded once (so that a
/// product may be fused into the addition). Padding slots must return `a`, or `a` plus a zero. Sums start from -0, the number whose
/// addition changes nothing.
template <class Real, class TileT, class LayoutT, class Function>
[[nodiscard]] MOEB_INLINE Real canonical_sum(const TileT& tile, const LayoutT& layout, Function&& accumulate) {
  constexpr int local = 32 / TileT::width;
  constexpr int columns = 4 * local;
  Real column[columns];
  if constexpr (LayoutT::in_registers) {
    static_assert(LayoutT::capacity >= columns || LayoutT::capacity % 4 == 0);
    MOEB_UNROLL
    for (int c = 0; c < columns; ++c)
      column[c] = c < LayoutT::capacity ? accumulate(c < LayoutT::capacity ? c : 0, NoSum<Real>{}) : -Real(0);
    MOEB_UNROLL
    for (int i = columns; i < LayoutT::capacity; ++i) column[i % columns] = accumulate(i, column[i % columns]);
  } else {
    constexpr int size = LayoutT::block_size;
    static_assert(columns % size == 0);
    const int slots = layout.blocks() * size;
    // A column's first two slots are added before it is stored, and none is cleared: stores take longer than additions.
    for (int first = 0; first < columns; first += size) {
      if (first + columns < slots) {
        for (int i = 0; i < size; ++i)
          column[first + i] = accumulate(first + columns + i, accumulate(first + i, NoSum<Real>{}));
      } else if (first < slots) {
        for (int i = 0; i < size; ++i) column[first + i] = accumulate(first + i, NoSum<Real>{});
      } else {
        for (int i = 0; i < size; ++i) column[first + i] = -Real(0);
      }
    }
    for (int first = 2 * columns; first < slots; first += size) {
      Real* const sums = column + first % columns;
      for (int i = 0; i < size; ++i) sums[i] = accumulate(first + i, sums[i]);
    }
  }
  Real partial[local];
  MOEB_UNROLL
  for (int r = 0; r < local; ++r) {
    partial[r] = add(add(column[4 * r], column[4 * r + 1]), add(column[4 * r + 2], column[4 * r + 3]));
  }
  return sum_of_virtual_lanes<TileT::width>(tile, partial);
}

/// Sum of term(i) for i in [0, n), virtual lane i % 32 taking i, i + 32, ... in order; for data that is not laid out in slots.
template <class TileT, class Function>
[[nodiscard]] MOEB_INLINE double strided_sum(const TileT& tile, std::int64_t n, Function&& term) {
  constexpr int local = 32 / TileT::width;
  double partial[local];
  MOEB_UNROLL
  for (int r = 0; r < local; ++r) {
    partial[r] = 0.0;
    for (std::int64_t i = tile.lane() + TileT::width * r; i < n; i += 32) partial[r] = add(partial[r], term(i));
  }
  return sum_of_virtual_lanes<TileT::width>(tile, partial);
}

/// combine of all term(i) for i in [0, n), each virtual lane from `start` on, in the order of strided_sum but a row of 32 virtual lanes after the other.
template <class TileT, class Real, class Term, class Combine>
[[nodiscard]] MOEB_INLINE Real strided_fold(const TileT& tile, int n, Real start, const Term& term, const Combine& combine) {
  constexpr int local = 32 / TileT::width;
  Real partial[local];
  MOEB_UNROLL
  for (int r = 0; r < local; ++r) partial[r] = start;
  int first = tile.lane();
  for (; first + 32 <= n + tile.lane(); first += 32) {
    for (int r = 0; r < local; ++r) partial[r] = combine(partial[r], term(first + TileT::width * r));
  }
  for (int r = 0; r < local; ++r) {
    const int i = first + TileT::width * r;
    if (i < n) partial[r] = combine(partial[r], term(i));
  }
  fold_by_halves<local / 2>(partial, combine);
  return butterfly<TileT::width>(tile, partial[0], combine);
}

/// Sum of term(i) for i in [0, n), integers, where order cannot matter.
template <class TileT, class Function>
[[nodiscard]] MOEB_INLINE std::int64_t integer_sum(const TileT& tile, std::int64_t n, Function&& term) {
  std::int64_t sum = 0;
  for (std::int64_t i = tile.lane(); i < n; i += TileT::width) sum += term(i);
  return butterfly<TileT::width>(tile, sum, [](std::int64_t own, std::int64_t other) MOEB_LAMBDA { return own + other; });
}

MOEB_NAMESPACE_END
