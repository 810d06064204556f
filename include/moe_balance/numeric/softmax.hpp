// Softmax over a token's finite logits. Others take no part, padding slots (NaN or -inf) among them: -inf gets 0, +inf gets +inf, so that it ranks
// first, and NaN gets NaN or 0; none of them counts in the sum.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/canonical_sum.hpp>
#include <moe_balance/numeric/instruction_sets.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/numeric/ordered_key.hpp>

#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// What turns a logit into its softmax: exp(x - maximum) * inverse_sum.
template <class Real>
struct SoftmaxRow {
  Real maximum = 0;
  Real sum = 1;
  Real inverse_sum = 1;
  bool regular = false;  ///< no logit is known to be +inf or NaN: lanes of registers, which have asked, need not ask again
  bool numbers = false;  ///< no score is infinite or NaN

  /// exp(logit - maximum) for logits up to the maximum; infinity and NaN stay what they are.
  [[nodiscard]] MOEB_INLINE Real exponential(Real logit) const { return exp_of_difference(sub(logit, maximum)); }
  [[nodiscard]] MOEB_INLINE Real probability(Real logit) const { return mul(exponential(logit), inverse_sum); }
  [[nodiscard]] MOEB_INLINE Real log_sum_exp() const { return add(maximum, log(sum)); }
};

/// Whether a scoring's scores are softmax_row's, whatever a class that is derived from it does.
template <class Scoring>
inline constexpr bool has_softmax_scores = false;

/// The largest admit(value) of a row that is not NaN; -infinity where there is none.
template <class TileT, class LayoutT, class Real, class Admit>
[[nodiscard]] MOEB_INLINE Real maximum_of(const TileT& tile, const LayoutT& layout, const Slots<Real, LayoutT>& values,
                                          const Admit& admit) {
  constexpr int columns = TileT::columns;
  Real column[columns];
  MOEB_UNROLL
  for (int c = 0; c < columns; ++c) column[c] = -infinity<Real>;
  const int blocks = layout.blocks();
  for (int block = 0; block < blocks; ++block) {
    const int first = block * LayoutT::block_size;
    MOEB_UNROLL
    for (int i = 0; i < LayoutT::block_size; ++i) {
      const int c = i % columns;
      column[c] = larger_of(admit(values[first + i]), column[c]);  // NaN is not larger
    }
  }
  fold_by_halves<columns / 2>(column, [](Real a, Real b) MOEB_LAMBDA { return larger_of(b, a); });
  return butterfly<TileT::width>(tile, column[0],
                                 [](Real own, Real other) MOEB_LAMBDA { return other > own ? other : own; });
}

/// The largest finite value of a row; 0 where none is finite.
template <class TileT, class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE Real largest_finite(const TileT& tile, const LayoutT& layout, const Slots<Real, LayoutT>& values) {
  const Real result = maximum_of(
      tile, layout, values, [](Real value) MOEB_LAMBDA { return choose(value < infinity<Real>, value, -infinity<Real>); });
  // Adding +0: -0 and +0 compare equal, so either may have won.
  return choose(result == -infinity<Real>, Real(0), add(result, Real(0)));
}

/// The largest of a row that lanes keep in registers, +inf among them; NaN where one is NaN. The sign of a zero is any.
template <class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE float largest_or_nan(const TileT& tile, const LayoutT& layout,
                                               const Slots<float, LayoutT>& values) {
  float result = -infinity<float>;
  for_each_slot(layout, [&](int slot) MOEB_LAMBDA { result = larger_or_nan(values[slot], result); });
  if constexpr (TileT::width == 32) {  // one instruction on a whole warp; a NaN that is positive has the largest key of all
    return value_of_key<float>(tile.maximum(key_without_minus_zero(result)));
  } else {
    return butterfly<TileT::width>(tile, result,
                                   [](float own, float other) MOEB_LAMBDA { return larger_or_nan(other, own); });
  }
}

/// 1 / sum of a row whose exponentials were summed up.
template <class Real>
MOEB_INLINE void invert_sum(SoftmaxRow<Real>& row) {
  row.sum = row.sum == Real(0) ? Real(1) : row.sum;  // where no logit is finite
  row.inverse_sum = reciprocal_in_range(row.sum);    // 1 to E
}

/// softmax_row for any logits; few rows have an infinite one, and those are read with a look at every value.
template <class TileT, class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE SoftmaxRow<Real> softmax_row_with_infinities(const TileT& tile, const LayoutT& layout,
                                                                       const Slots<Real, LayoutT>& logits,
                                                                       Slots<Real, LayoutT>& exponentials) {
  SoftmaxRow<Real> row;
  row.maximum = largest_finite(tile, layout, logits);
  row.sum = canonical_sum<Real>(tile, layout, [&](int slot, Real sum) MOEB_LAMBDA {
    const Real e = row.exponential(logits[slot]);
    exponentials[slot] = e;
    return add(sum, choose(e < infinity<Real>, e, Real(0)));  // false for NaN, too
  });
  invert_sum(row);
  return row;
}

/// The exponentials of a row below +inf; 0 of NaN. A lane of memory computes two at a time.
template <class LayoutT, class Real>
MOEB_INLINE void exponentiate(const LayoutT& layout, const Slots<Real, LayoutT>& logits, Real maximum,
                              Slots<Real, LayoutT>& exponentials) {
  if constexpr (LayoutT::in_registers || !std::is_same_v<Real, float>) {
    for_each_slot(layout,
                  [&](int slot) MOEB_LAMBDA { exponentials[slot] = exp_of_difference_or_zero(sub(logits[slot], maximum)); });
  } else {
    constexpr int half = LayoutT::block_size / 2;
    const int blocks = layout.blocks();
    for (int block = 0; block < blocks; ++block) {
      const int first = block * LayoutT::block_size;
      for (int i = first; i < first + half; ++i) {
        const TwoFloats differences(sub(logits[i], maximum), sub(logits[i + half], maximum));
        const TwoFloats e = exp_of_difference_or_zero(differences);
        exponentials[i] = e.first;
        exponentials[i + half] = e.second;
      }
    }
  }
}

/// softmax_row where `largest`, of the numbers in the row, is below +inf.
template <bool Regular, class TileT, class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE SoftmaxRow<Real> softmax_row_below(const TileT& tile, const LayoutT& layout,
                                                             const Slots<Real, LayoutT>& logits, Real largest,
                                                             Slots<Real, LayoutT>& exponentials) {
  SoftmaxRow<Real> row;
  row.regular = Regular;
  row.numbers = true;
  row.maximum = largest == -infinity<Real> ? Real(0) : add(largest, Real(0));
  exponentiate(layout, logits, row.maximum, exponentials);
  row.sum = canonical_sum<Real>(tile, layout, [&](int slot, auto sum) MOEB_LAMBDA { return add(sum, exponentials[slot]); });
  invert_sum(row);
  return row;
}

/// softmax_row_with_infinities as a function of its own, once for all instruction sets: rows with +inf are rare.
template <class TileT, class LayoutT, class Real>
__attribute__((noinline, cold)) MOEB_HOST_DEVICE void softmax_row_with_infinities_apart(const TileT& tile,
                                                                                        const LayoutT& layout,
                                                                                        const Slots<Real, LayoutT>& logits,
                                                                                        Slots<Real, LayoutT>& exponentials,
                                                                                        SoftmaxRow<Real>& row) {
  row = softmax_row_with_infinities(tile, layout, logits, exponentials);
}

/// The row's softmax; writes exp(x - maximum) of each logit to `exponentials`, and where the logit is NaN, NaN or 0.
/// First all see whether any logit is +inf, lanes of registers, where every check is paid for, whether any is NaN, too: without one exponentials
/// need few checks. On a CPU a function of its own, which loops share.
MOEB_NO_EXECUTION_CHECK
template <class TileT, class LayoutT, class Real>
[[nodiscard]] MOEB_INLINE SoftmaxRow<Real> softmax_row(const TileT& tile, const LayoutT& layout,
                                                       const Slots<Real, LayoutT>& logits,
                                                       Slots<Real, LayoutT>& exponentials) {
  if constexpr (LayoutT::in_registers) {
    const Real largest = largest_or_nan(tile, layout, logits);
    if (largest < infinity<Real>) return softmax_row_below<true>(tile, layout, logits, largest, exponentials);
    return softmax_row_with_infinities(tile, layout, logits, exponentials);
  } else {
    SoftmaxRow<Real> row;
    using Row = Slots<Real, LayoutT>;
    const auto find = [](TileT own_tile, LayoutT own, const Row* from, Row* to, SoftmaxRow<Real>* found) MOEB_LAMBDA {
      const Real largest = maximum_of(own_tile, own, *from, [](Real value) MOEB_LAMBDA { return value; });
      if (largest < infinity<Real>)
        *found = softmax_row_below<false>(own_tile, own, *from, largest, *to);
      else
        softmax_row_with_infinities_apart(own_tile, own, *from, *to, *found);
    };
    if constexpr (std::is_same_v<Real, double>)
      run_baseline(find, tile, layout, &logits, &exponentials, &row);
    else
      run_apart_for(tile.instructions, find, tile, layout, &logits, &exponentials, &row);
    const SoftmaxRow<Real> result =
        row;  // that no other function has seen: a loop that wrote floats would not know that it stays
    return result;
  }
}

MOEB_NAMESPACE_END
