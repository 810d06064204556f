// The kernels that move hidden states from tokens to rows, one tile per row or slot: gather and spread; and the dot products that are the gradients of
// weights, in one order of additions on every engine. combine_kernels.hpp has the way back.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/rows.hpp>
#include <moe_balance/numeric/canonical_sum.hpp>
#include <moe_balance/token/elements.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// rows[r] = tokens[slot_of_row[r] / k] (* factor of the slot).
struct GatherProblem {
  ConstAnyMatrix tokens;
  AnyMatrix rows;
  const std::int64_t* slot_of_row;
  std::int64_t slots;
  std::int64_t k;
  ConstAnyMatrix factors;
  bool clears_padding;
  bool packs;
  std::int64_t* invalid;
};

/// Whether a row has a slot. One that has neither one nor -1 is reported.
template <class BlockT>
[[nodiscard]] MOEB_INLINE bool has_slot(const BlockT& block, std::int64_t slot, std::int64_t slots, bool reports,
                                        std::int64_t* invalid) {
  const bool result = slot >= 0 && slot < slots;
  if (!result && slot != -1 && reports && invalid != nullptr) block.add_global(invalid, 1);
  return result;
}

template <class Real>
struct GatherRows {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const GatherProblem& problem) const {
    with_element_type<Real>(problem.rows.type, [&](auto* type) MOEB_LAMBDA {
      using T = std::remove_pointer_t<decltype(type)>;
      for_each_item_of_tile(block, tile, problem.rows.rows, [&](std::int64_t row) MOEB_LAMBDA {
        const std::int64_t slot = problem.slot_of_row[row];
        const bool exists = has_slot(block, slot, problem.slots, tile.lane() == 0, problem.invalid);
        if (!exists && !problem.clears_padding) return;
        T* to = row_pointer<T>(problem.rows, row);
        if (!exists) return clear_row<Real>(tile, to, problem.rows.columns, problem.packs);
        const std::int64_t token = slot / problem.k;
        const T* from = row_pointer<T>(problem.tokens, token);
        if (problem.factors.data == nullptr) return copy_row(tile, to, from, problem.rows.columns, problem.packs);
        const Real factor = load_element<Real>(problem.factors, token, slot % problem.k);
        scale_row(tile, to, from, factor, problem.rows.columns, problem.packs);
      });
    });
  }
};

/// Whether a slot is one of an expert that returns what it is given. Of slots without a row.
[[nodiscard]] MOEB_INLINE bool is_identity(const IdentityExperts& identity, std::int64_t token, std::int64_t k) {
  return identity.range.count > 0 && identity.range.has(identity.experts.data[token * identity.experts.stride + k]);
}

/// The row of a slot; -1 for none, which lane 0 of the tile reports where it is no valid one.
template <class BlockT, class TileT>
[[nodiscard]] MOEB_INLINE std::int64_t row_of(const BlockT& block, const TileT& tile,
                                              const MatrixView<const std::int64_t>& row_of_slot, std::int64_t rows,
                                              std::int64_t token, std::int64_t k, std::int64_t* invalid) {
  const std::int64_t row = row_of_slot.data[token * row_of_slot.stride + k];
  if (row >= 0 && row < rows) return row;
  if (row != -1 && invalid != nullptr && tile.lane() == 0) block.add_global(invalid, 1);
  return -1;
}

/// A lane's products of one span of a dot product, whose packs are read whole.
template <class Real, int N, class T, class TileT>
MOEB_INLINE void add_products_of_packs(const TileT& tile, const T* a, const T* b, Real (&sums)[N]) {
  constexpr int size = Pack<T>::size;
  MOEB_UNROLL
  for (int r = 0; r < N / size; ++r) {
    const int c = size * (tile.lane() + TileT::width * r);
    Real left[size];
    Real right[size];
    load_columns(a + c, left);
    load_columns(b + c, right);
    MOEB_UNROLL
    for (int i = 0; i < size; ++i) sums[r * size + i] = fma(left[i], right[i], sums[r * size + i]);
  }
}

/// Dot product of two rows, in the order of additions that canonical sums have: pack p of 16 bytes belongs to virtual lane p % 32; each place in a
/// pack is summed over the packs of its lane first, then by halves, then the virtual lanes by halves.
template <class Real, class T, class TileT>
[[nodiscard]] MOEB_INLINE Real dot_of_rows(const TileT& tile, const T* a, const T* b, std::int64_t columns, bool packs) {
  constexpr int size = Pack<T>::size;
  constexpr int local = 32 / TileT::width;
  constexpr int span = 32 * size;
  // Lane-local place i of a span is this column of it; for a tile of one lane simply i.
  const auto column = [&](int i) MOEB_LAMBDA { return size * (tile.lane() + TileT::width * (i / size)) + i % size; };
  Real sums[local * size] = {};
  std::int64_t first = 0;
  if (TileT::slots_in_registers && packs) {
    // Several loads on their way.
    MOEB_UNROLL_BY_4
    for (; first + span <= columns; first += span) add_products_of_packs(tile, a + first, b + first, sums);
  }
  for (; first + span <= columns; first += span) {
    MOEB_UNROLL
    for (int i = 0; i < local * size; ++i) {
      sums[i] = fma(to_real(a[first + column(i)]), to_real(b[first + column(i)]), sums[i]);
    }
  }
  if (first < columns) {
    MOEB_UNROLL
    for (int i = 0; i < local * size; ++i) {
      const std::int64_t c = first + column(i);
      if (c < columns) sums[i] = fma(to_real(a[c]), to_real(b[c]), sums[i]);
    }
  }
  Real partial[local];
  MOEB_UNROLL
  for (int r = 0; r < local; ++r) {
    Real places[size];
    MOEB_UNROLL
    for (int i = 0; i < size; ++i) places[i] = sums[r * size + i];
    fold_by_halves<size / 2>(places, [](Real x, Real y) MOEB_LAMBDA { return add(x, y); });
    partial[r] = places[0];
  }
  return sum_of_virtual_lanes<TileT::width>(tile, partial);
}

/// dots[t, k] = <tokens[t], rows[row]>; 0 for no row.
template <class Real, class T, class TileT>
MOEB_INLINE void store_dot(const TileT& tile, const AnyMatrix& dots, std::int64_t token, std::int64_t k, const T* from,
                           const ConstAnyMatrix& rows, std::int64_t row, bool packs) {
  Real dot = 0;
  if (row >= 0) dot = dot_of_rows<Real>(tile, from, row_pointer<T>(rows, row), rows.columns, packs);
  if (tile.lane() == 0) store_element(dots, token, k, dot);
}

/// dots[t, k] = <tokens[t], rows[row_of_slot[t, k]]>; 0 for empty slots.
struct DotProblem {
  ConstAnyMatrix tokens;
  ConstAnyMatrix rows;
  MatrixView<const std::int64_t> row_of_slot;
  AnyMatrix dots;
  bool packs;
};

template <class Real>
struct DotSlots {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const DotProblem& problem) const {
    const std::int64_t k_count = problem.row_of_slot.columns;
    with_element_type<Real>(problem.tokens.type, [&](auto* type) MOEB_LAMBDA {
      using T = std::remove_pointer_t<decltype(type)>;
      for_each_item_of_tile(block, tile, problem.tokens.rows * k_count, [&](std::int64_t slot) MOEB_LAMBDA {
        const std::int64_t token = slot / k_count;
        const std::int64_t k = slot % k_count;
        const std::int64_t row = row_of(block, tile, problem.row_of_slot, problem.rows.rows, token, k, nullptr);
        store_dot<Real>(tile, problem.dots, token, k, row_pointer<T>(problem.tokens, token), problem.rows, row,
                        problem.packs);
      });
    });
  }
};

/// rows[row_of_slot[t, k]] = tokens[t] (* factors[t, k]), and dots[t, k] = <tokens[t], others[that row]>, <tokens[t], identity.tokens[t]> for experts
/// that return what they are given, 0 for empty slots. Rows without a slot are
/// cleared, if asked for. A row has a slot if each names the other, so that a row is written once whatever the indices say.
struct SpreadProblem {
  ConstAnyMatrix tokens;
  AnyMatrix rows;
  MatrixView<const std::int64_t> row_of_slot;
  const std::int64_t* slot_of_row;
  ConstAnyMatrix factors;
  ConstAnyMatrix others;  ///< as rows
  AnyMatrix dots;
  IdentityExperts identity;
  bool clears_padding;
  bool packs;
  bool packs_of_others;
  bool packs_of_identity;
  std::int64_t* invalid;
};

/// A tile per slot: those of one token are side by side, and read it from memory once.
template <class Real>
struct SpreadTokens {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const SpreadProblem& problem) const {
    with_element_type<Real>(problem.rows.type, [&](auto* type) MOEB_LAMBDA {
      using T = std::remove_pointer_t<decltype(type)>;
      const std::int64_t k_count = problem.row_of_slot.columns;
      const std::int64_t slots = problem.tokens.rows * k_count;
      const bool past_cache = writes_past_cache<TileT>(problem.rows, slots, problem.packs);
      for_each_item_of_tile(block, tile, slots, [&](std::int64_t slot) MOEB_LAMBDA {
        spread<T>(block, tile, problem, slot / k_count, slot % k_count, past_cache);
      });
      clear_padding<T>(block, tile, problem, slots);
      if (past_cache) finish_stores_past_cache();
    });
  }

 private:
  template <class T, class BlockT, class TileT>
  MOEB_INLINE static void spread(const BlockT& block, const TileT& tile, const SpreadProblem& problem, std::int64_t token,
                                 std::int64_t k, bool past_cache) {
    const std::int64_t columns = problem.rows.columns;
    const std::int64_t row = row_of(block, tile, problem.row_of_slot, problem.rows.rows, token, k, problem.invalid);
    const T* from = row_pointer<T>(problem.tokens, token);
    if (row >= 0 && problem.slot_of_row[row] == token * problem.row_of_slot.columns + k) {
      T* to = row_pointer<T>(problem.rows, row);
      if (problem.factors.data == nullptr)
        copy_row(tile, to, from, columns, problem.packs, past_cache);
      else
        scale_row(tile, to, from, load_element<Real>(problem.factors, token, k), columns, problem.packs, past_cache);
    }
    if (problem.dots.data == nullptr) return;
    // The pointer and the stride are chosen, not the matrix: that spilled registers.
    const bool own = row < 0 && is_identity(problem.identity, token, k);
    const T* others = static_cast<const T*>(own ? problem.identity.tokens.data : problem.others.data);
    const std::int64_t stride = own ? problem.identity.tokens.stride : problem.others.stride;
    const std::int64_t other = own ? token : row;
    Real dot = 0;
    if (other >= 0) {
      dot = dot_of_rows<Real>(tile, from, others + other * stride, columns,
                              own ? problem.packs_of_identity : problem.packs_of_others);
    }
    if (tile.lane() == 0) store_element(problem.dots, token, k, dot);
  }

  /// Whether a row's slot names it, too.
  template <class BlockT>
  [[nodiscard]] MOEB_INLINE static bool is_named(const BlockT& block, const SpreadProblem& problem, std::int64_t row,
                                                 std::int64_t slots) {
    const std::int64_t slot = problem.slot_of_row[row];
    if (!has_slot(block, slot, slots, true, problem.invalid)) return false;
    const std::int64_t k_count = problem.row_of_slot.columns;
    return problem.row_of_slot.data[slot / k_count * problem.row_of_slot.stride + slot % k_count] == row;
  }

  /// A lane looks at a row, and all clear those that have no slot. A tile's rows lie far apart: those of padding are neighbours, and all tiles should
  /// have some.
  template <class T, class BlockT, class TileT>
  MOEB_INLINE static void clear_padding(const BlockT& block, const TileT& tile, const SpreadProblem& problem,
                                        std::int64_t slots) {
    const std::int64_t rows = problem.rows.rows;
    const std::int64_t tiles = block.blocks() * (block.threads() / TileT::width);
    const std::int64_t own_tile = block.index() * (block.threads() / TileT::width) + block.thread() / TileT::width;
    MOEB_NO_UNROLL
    for (std::int64_t first = own_tile; first < rows; first += tiles * TileT::width) {
      const std::int64_t own = first + tile.lane() * tiles;
      std::uint32_t padding = tile.ballot(own < rows && !is_named(block, problem, own, slots));
      if (!problem.clears_padding) continue;
      MOEB_NO_UNROLL
      for (std::int64_t row = first; padding != 0; row += tiles, padding >>= 1) {
        if (padding & 1u) {
          clear_row<Real>(tile, row_pointer<T>(problem.rows, row), problem.rows.columns, problem.packs);
        }
      }
    }
  }
};

MOEB_NAMESPACE_END
