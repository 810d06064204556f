// What a balancer is shown of the tokens: how many each expert has, and how far its scores were from having them.
#pragma once

#include <moe_balance/config.hpp>
#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/tile/rounded.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Tokens per expert as a balancer sees them: of a micro-batch, a sequence or the global batch, by its scope.
struct LoadView {
  const std::int64_t* counts = nullptr;  ///< [E], where the balancer runs
  int expert_count = 0;                  ///< E
  std::int64_t assignments = 0;          ///< see total()
  int assignments_per_token = 1;         ///< K
  int rank_count = 1;                    ///< see ranks()
  std::int64_t joined_count = -1;        ///< of experts taken together, where they are added up; see WithZeroComputation
  const std::int64_t* probability_sums = nullptr;  ///< see probability()
  std::int64_t token_count = 0;                    ///< see tokens()

  /// E.
  [[nodiscard]] MOEB_INLINE int experts() const { return expert_count; }
  /// Tokens of one expert; arrivals, for a loss that counts those (counts_arrivals).
  [[nodiscard]] MOEB_INLINE std::int64_t count(int expert) const { return counts[expert]; }
  /// All assignments: top_k() for each active token, empty slots included, but those made where a selection keeps fewer (TopP); of the global batch (and in next_bias) the sum of the counts, the budget in a WithZeroComputation.
  [[nodiscard]] MOEB_INLINE std::int64_t total() const { return assignments; }
  /// K; n for a loss that counts the n best experts of a plain top-k (plain_choices).
  [[nodiscard]] MOEB_INLINE int top_k() const { return assignments_per_token; }
  /// The active tokens of the scope; of the global batch those of this rank's micro-batch, and 0 for rules of a bias.
  [[nodiscard]] MOEB_INLINE std::int64_t tokens() const { return token_count; }
  /// Ranks whose counts were summed; 1 but for the global batch.
  [[nodiscard]] MOEB_INLINE int ranks() const { return rank_count; }
  /// count / total, 0 where nothing was assigned.
  [[nodiscard]] MOEB_INLINE float share(int expert) const {
    return assignments == 0 ? 0.0f : div(static_cast<float>(counts[expert]), static_cast<float>(assignments));
  }
  /// P, the expert's mean probability, of the tokens whose P the slope multiplies: this rank's micro-batch, or the sequence. 0 for rules of a bias.
  [[nodiscard]] MOEB_INLINE float probability(int expert) const {
    if (token_count == 0) return 0.0f;
    const double sum = from_fixed<probability_fraction_bits>(probability_sums[expert]);
    return static_cast<float>(div(sum, static_cast<double>(token_count)));
  }
};

/// Where a margin of a given rank lies: in a bin, and how far in it.
struct MarginPosition {
  int bin;     ///< 0: of the smallest margins
  float part;  ///< above 0 and below 1, from the bin's lower edge
};

/// What one layer's experts lacked, or had to spare, in a step, for rules that read margins. A token's threshold is the best ranking value (score + bias) that
/// it left unchosen; an expert's margin is its score, without the bias, minus that: with a bias below -margin the token goes elsewhere, above it comes.
/// Each active token has one margin for each expert, in the bin that the rule's `bin_of` says; none where a logit is NaN or +infinity, or the threshold is
/// infinite (that of logits, where fewer than K + 1 are above -infinity; a sigmoid or softmax of -infinity is 0, a number).
/// For rules with margins_are_scores the threshold is 0: a margin is the score, and each active token has one, but where a logit is NaN or +infinity.
struct MarginView {
  const std::int64_t* histogram = nullptr;  ///< bin b of expert e at histogram[e * bins + b], where the balancer runs
  int bin_count = 0;                        ///< see bins()
  std::int64_t token_count = 0;             ///< see tokens()

  /// Bins of each expert.
  [[nodiscard]] MOEB_INLINE int bins() const { return bin_count; }
  /// Tokens that have margins, the same for all experts.
  [[nodiscard]] MOEB_INLINE std::int64_t tokens() const { return token_count; }
  /// Margins of an expert in a bin.
  [[nodiscard]] MOEB_INLINE std::int64_t count(int bin, int expert) const {
    return histogram[static_cast<std::int64_t>(expert) * bin_count + bin];
  }
  /// Where the expert's margin lies that `larger` others rank before, 0 to tokens() - 1, as if those of a bin were evenly spread over it.
  [[nodiscard]] MOEB_INLINE MarginPosition position(int expert, std::int64_t larger) const {
    int end = bin_count;  // the bins from here on hold `above`
    std::int64_t above = 0;
    constexpr int together = 8;  // that are read before the sum is waited for
    MOEB_NO_UNROLL
    for (; end >= together; end -= together) {
      std::int64_t sum = 0;
      MOEB_UNROLL
      for (int i = 1; i <= together; ++i) sum += count(end - i, expert);
      if (above + sum > larger) break;
      above += sum;
    }
    MOEB_NO_UNROLL
    for (; end > 1 && above + count(end - 1, expert) <= larger; --end) above += count(end - 1, expert);
    const int bin = end > 0 ? end - 1 : 0;
    const auto in_bin = static_cast<float>(count(bin, expert));
    const float before = add(static_cast<float>(larger - above), 0.5f);
    return {bin, in_bin > before ? sub(1.0f, div(before, in_bin)) : 0.5f};
  }
};

MOEB_NAMESPACE_END
