// Logits and scores of tokens side by side: the bits of the same steps on a row (scores.hpp, entropy.hpp, numeric/softmax.hpp, numeric/canonical_sum.hpp).
#pragma once

#include <moe_balance/token/entropy.hpp>
#include <moe_balance/token/lanes.hpp>
#include <moe_balance/token/scores.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Numbers of tokens with up to `capacity` experts, and their softmax. Experts are one to a column of a canonical_sum then.
struct NumbersOfExperts {
  static constexpr int capacity = most_columns_side_by_side;

  int experts;
  alignas(64) NumbersSideBySide logit[capacity];
  alignas(64) NumbersSideBySide score[capacity];
  alignas(64) NumbersSideBySide maximum;  ///< with `sum`, of the exponentials, what a softmax is made of
  alignas(64) NumbersSideBySide sum;

  /// result[i]: canonical_sum of the terms (e, i), whose padding has terms of its own, padding(i): a zero, which is seen where all else is -0.
  template <class Term, class Padding>
  MOEB_INLINE void add_up(const Term& term, const Padding& padding, NumbersSideBySide& result) const {
    alignas(64) NumbersSideBySide partial[capacity / 4];
    int quads = 0;
    for (; 4 * quads + 4 <= experts; ++quads) {
      const int e = 4 * quads;
      for (int i = 0; i < lane_count; ++i)
        partial[quads][i] = add(add(term(e, i), term(e + 1, i)), add(term(e + 2, i), term(e + 3, i)));
    }
    if (4 * quads < experts) {
      alignas(64) NumbersSideBySide rest[4];
      for (int r = 0; r < 4; ++r) {
        for (int i = 0; i < lane_count; ++i) rest[r][i] = padding(i);
      }
      for (int e = 4 * quads; e < experts; ++e) {
        for (int i = 0; i < lane_count; ++i) rest[e % 4][i] = term(e, i);
      }
      for (int i = 0; i < lane_count; ++i) partial[quads][i] = add(add(rest[0][i], rest[1][i]), add(rest[2][i], rest[3][i]));
      ++quads;
    }
    int all = 1;
    while (all < quads) all *= 2;
    for (; quads < all; ++quads) {
      for (int i = 0; i < lane_count; ++i) partial[quads][i] = padding(i);
    }
    add_by_halves(all, partial);
    for (int i = 0; i < lane_count; ++i) result[i] = partial[0][i];
    if (experts % Layout<SerialTile, capacity>::block_size != 0) {
      for (int i = 0; i < lane_count; ++i) result[i] = add(result[i], padding(i));
    }
  }
  /// The same where padding's terms are +0.
  template <class Term>
  MOEB_INLINE void add_up(const Term& term, NumbersSideBySide& result) const {
    add_up(
        term, [](int /*i*/) MOEB_LAMBDA { return 0.0f; }, result);
  }

  /// Whether all logits are finite. Fills the last quad of experts, so that it may be read whole.
  [[nodiscard]] MOEB_INLINE bool check_logits() {
    bool result = false;
    run_apart_narrow([&]() MOEB_LAMBDA {
      for (int e = experts; e % 4 != 0; ++e) __builtin_memcpy(logit[e], logit[0], sizeof(NumbersSideBySide));
      std::uint32_t faults[lane_count] = {};
      for (int e = 0; e < experts; e += 4) {
        for (int i = 0; i < lane_count; ++i)
          faults[i] |=
              fault_of(logit[e][i]) | fault_of(logit[e + 1][i]) | fault_of(logit[e + 2][i]) | fault_of(logit[e + 3][i]);
      }
      result = !has_fault(faults);
    });
    return result;
  }

  /// The softmax of logits that are finite.
  MOEB_INLINE void find_softmax() {
    alignas(64) NumbersSideBySide largest;
    for (int i = 0; i < lane_count; ++i) largest[i] = logit[0][i];
    for (int e = 0; e < experts; e += 4) {  // one at a time would wait for the one before, whose result is in memory
      for (int i = 0; i < lane_count; ++i) {
        const float upper = larger_of(logit[e][i], logit[e + 1][i]);
        const float lower = larger_of(logit[e + 2][i], logit[e + 3][i]);
        largest[i] = larger_of(larger_of(upper, lower), largest[i]);
      }
    }
    for (int i = 0; i < lane_count; ++i) largest[i] = add(largest[i], 0.0f);
    for (int i = 0; i < lane_count; ++i) maximum[i] = largest[i];
    for (int e = 0; e < experts; ++e) {
      for (int i = 0; i < lane_count; ++i) score[e][i] = exp_of_difference_or_zero(sub(logit[e][i], largest[i]));
    }
    add_up([&](int e, int i) MOEB_LAMBDA { return score[e][i]; }, sum);
    alignas(64) NumbersSideBySide inverse;
    for (int i = 0; i < lane_count; ++i) inverse[i] = reciprocal_in_range(sum[i]);
    for (int e = 0; e < experts; ++e) {
      for (int i = 0; i < lane_count; ++i) score[e][i] = mul(score[e][i], inverse[i]);
    }
  }

  /// Of a softmax that was found: the logarithms of its sums.
  MOEB_INLINE void find_logarithms(NumbersSideBySide& log_of_sum) const {
    for (int i = 0; i < lane_count; ++i) log_of_sum[i] = log(sum[i]);
  }

  /// The same, and entropy_of_scores.
  MOEB_INLINE void find_entropies(NumbersSideBySide& log_of_sum, NumbersSideBySide& entropy) const {
    find_logarithms(log_of_sum);
    add_up(
        [&](int e, int i) MOEB_LAMBDA {
          const Surprise<float> surprise = surprise_of(e, i, log_of_sum);
          return surprise.weighted(surprise.size);
        },
        entropy);
  }

  [[nodiscard]] MOEB_INLINE Surprise<float> surprise_of(int e, int i, const NumbersSideBySide& log_of_sum) const {
    return {SoftmaxRow<float>{.maximum = maximum[i]}, log_of_sum[i], logit[e][i], score[e][i]};
  }
};

/// The logits and scores of tokens, for a scoring that is elementwise, or whose scores are softmax.
template <class Scoring>
class ScoresSideBySide : public NumbersOfExperts {
 public:
  static constexpr bool is_softmax = has_softmax_scores<Scoring>;
  static constexpr bool serves = is_softmax || !RowScoring<Scoring>;

  /// `set`: of the loop.
  MOEB_INLINE ScoresSideBySide(InstructionSet set, int expert_count) : instructions_(set) { experts = expert_count; }

  /// Reads rows; false if a logit is not finite.
  [[nodiscard]] MOEB_INLINE bool load(const ConstAnyMatrix& logits, const SegmentRows& rows, std::int64_t first) {
    load_side_by_side(logits, rows, first, logit);
    return check_logits();
  }

  MOEB_INLINE void find(const Scoring& scoring) {
    if constexpr (is_softmax) {
      run_apart(instructions_, [this]() MOEB_LAMBDA { find_softmax(); });
    } else {
      for (int e = 0; e < experts; ++e) {
        for (int i = 0; i < lane_count; ++i) score[e][i] = elementwise_score(scoring, logit[e][i]);
      }
    }
  }

  /// For losses of a token, which read the logits' softmax: puts it in the place of other scores.
  MOEB_INLINE void find_softmax_for_losses() {
    if constexpr (!is_softmax) run_apart(instructions_, [this]() MOEB_LAMBDA { find_softmax(); });
  }

  /// silence_non_finite.
  MOEB_INLINE void silence() {
    for (int e = 0; e < experts; ++e) {
      for (int i = 0; i < lane_count; ++i) score[e][i] = choose(is_finite(score[e][i]), score[e][i], 0.0f);
    }
  }

 private:
  InstructionSet instructions_;
};

MOEB_NAMESPACE_END
