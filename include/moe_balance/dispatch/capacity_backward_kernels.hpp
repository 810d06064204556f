// The kernel that finds the ids which a backward pass is to see where weights are renormalised after dropping.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/token/choice.hpp>
#include <moe_balance/token/scores.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The kept ids; of a token whose weights forward found not finite all that it chose, so that backward finds the same: a dropped slot may be the only
/// one that shows it.
template <class Scoring>
struct BackwardIdsProblem {
  Scoring scoring;
  Weighting weighting;
  ConstAnyMatrix logits;
  MatrixView<const std::int32_t> chosen;   ///< before dropping
  MatrixView<const std::int32_t> experts;  ///< after it
  MatrixView<std::int32_t> ids;
};

/// A tile per token, whose lanes have its slots as in the routing kernels.
template <class Real, int K>
struct FindBackwardIds {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT, class Scoring>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const BackwardIdsProblem<Scoring>& problem) const {
    for_each_item_of_tile(block, tile, problem.ids.rows, [&](std::int64_t token) MOEB_LAMBDA {
      const bool finite = has_finite_weights(tile, problem, token);
      const MatrixView<const std::int32_t>& seen = finite ? problem.experts : problem.chosen;
      for (int k = tile.lane(); k < K; k += TileT::width) {
        problem.ids.data[token * problem.ids.stride + k] = seen.data[token * seen.stride + k];
      }
    });
  }

 private:
  /// As forward found it; true also of a token that lost no slot, whose ids are the same. A row scoring's scores would need the row: its chosen
  /// logits are all that is asked here, which decides where finite logits have finite scores (finite_scores).
  template <class TileT, class Scoring>
  [[nodiscard]] MOEB_INLINE static bool has_finite_weights(const TileT& tile, const BackwardIdsProblem<Scoring>& problem,
                                                           std::int64_t token) {
    Chosen<Real, TileT, K> chosen;
    bool lost = false;
    MOEB_UNROLL
    for (int r = 0; r < chosen.per_lane; ++r) {
      const int k = chosen.rank(tile, r);
      chosen.expert[r] = -1;
      if (k >= K) continue;
      const std::int32_t id = problem.chosen.data[token * problem.chosen.stride + k];
      lost = lost || id != problem.experts.data[token * problem.experts.stride + k];
      if (id < problem.logits.columns) chosen.expert[r] = id;
    }
    if (!tile.any(lost)) return true;
    read_chosen_logits(problem.logits, token, chosen);
    if constexpr (RowScoring<Scoring> && !is_over_selected<Scoring>) {
      bool fault = false;
      MOEB_UNROLL
      for (int r = 0; r < chosen.per_lane; ++r) fault = fault || (chosen.expert[r] >= 0 && !is_finite(chosen.logit[r]));
      return !tile.any(fault);
    } else {
      return weigh(problem.scoring, typename RowOf<Scoring, Real>::type{}, problem.weighting, tile, chosen).finite;
    }
  }
};

MOEB_NAMESPACE_END
