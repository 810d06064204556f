// Some tokens' gradients side by side on a CPU thread: for few experts, and for gradients that touch only the chosen. For usual tokens only; others take backward.hpp, with the same bits.
#pragma once

#include <moe_balance/token/backward.hpp>
#include <moe_balance/token/chosen_in_lanes.hpp>
#include <moe_balance/token/scores_in_lanes.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Usual tokens are active, have an expert each, and finite logits and weights. Left out are scorings of a row that are not softmax.
template <class Problem, class LayoutT>
class BackwardLanes {
  using Scoring = decltype(Problem::scoring);
  using Traits = BalancerTraits<decltype(Problem::balancer)>;
  using Scores = ScoresSideBySide<Scoring>;
  static constexpr int k_count = decltype(Problem::top_k)::k;
  static constexpr bool only_chosen = touches_only_chosen<Scoring, decltype(Problem::balancer)>;

 public:
  static constexpr int capacity = only_chosen ? LayoutT::capacity : NumbersOfExperts::capacity;  ///< most experts
  static constexpr bool serves = Scores::serves;

  /// `set`: of the loop. With more experts than `capacity` nothing else may be called.
  MOEB_INLINE BackwardLanes(InstructionSet set, const LayoutT& layout) : scores_(set, layout.experts) {
    if constexpr (only_chosen) __builtin_memset(zeros_, 0, static_cast<std::size_t>(layout.experts) * sizeof(float));
  }

  /// The tokens rows[first] to rows[first + lane_count - 1]; false, and nothing was written, if one of them is not usual. Asks for what it reads
  /// of the next ones, before `last`.
  [[nodiscard]] MOEB_INLINE bool backward(const Problem& problem, const LayoutT& layout, const SegmentRows& rows,
                                          std::int64_t first, std::int64_t last, const LossSlopes<float>& slopes) {
    bool is_usual = false;
    run_apart_narrow([&]() MOEB_LAMBDA { is_usual = backward_here(problem, layout, rows, first, last, slopes); });
    return is_usual;
  }

 private:
  struct Nothing {
    MOEB_INLINE Nothing(InstructionSet /*set*/, int /*experts*/) {}
  };
  std::conditional_t<only_chosen, Nothing, Scores> scores_;
  ChosenSideBySide<is_over_selected<Scoring>, k_count> chosen_;
  std::int32_t balanced_[Traits::marks_tokens ? lane_count : 1];  ///< 1 for tokens that the losses see
  alignas(64) NumbersSideBySide logit_[k_count];                  ///< of the chosen
  alignas(64) NumbersSideBySide grad_chosen_[k_count];
  alignas(64) NumbersSideBySide grad_[only_chosen ? 1 : Scores::capacity];
  alignas(64) std::byte zeros_[only_chosen ? LayoutT::capacity * sizeof(float) : 1];  ///< between two tokens

  /// What a lane's token has of `value`: nothing if the losses do not see it.
  [[nodiscard]] MOEB_INLINE float if_balanced(float value, [[maybe_unused]] int lane) const {
    if constexpr (Traits::marks_tokens)
      return choose(balanced_[lane] != 0, value, 0.0f);
    else
      return value;
  }
  /// slopes_of_token, for token losses.
  [[nodiscard]] MOEB_INLINE LossSlopes<float> slopes_of_lane(const LossSlopes<float>& slopes, int lane) const {
    return {slopes.slope, if_balanced(slopes.token_factor, lane)};
  }

  [[nodiscard]] MOEB_INLINE bool backward_here(const Problem& problem, const LayoutT& layout, const SegmentRows& rows,
                                               std::int64_t first, std::int64_t last, const LossSlopes<float>& slopes) {
    if (!load_chosen(problem, layout.experts, rows, first)) return false;
    if (!find_chosen_scores(problem, rows, first, last)) return false;
    const Weighting weighting = problem.top_k.weighting();
    if (!chosen_.weigh(weighting)) return false;
    if constexpr (Traits::marks_tokens) {
      for (int i = 0; i < lane_count; ++i) balanced_[i] = is_balanced(problem, rows[first + i]) ? 1 : 0;
    }
    chosen_.find_gradient(weighting, grad_chosen_);
    if constexpr (only_chosen) {
      if constexpr (!is_over_selected<Scoring>) multiply_by_derivatives(problem.scoring);
      chosen_.scatter(problem.grad_logits, layout, rows, first, grad_chosen_, zeros_);
    } else {
      find_gradient(problem, slopes);
      store_side_by_side(problem.grad_logits, rows, first, grad_);
    }
    return true;
  }

  /// load_chosen and check_chosen; false for a token that is not active, or has no expert.
  [[nodiscard]] MOEB_INLINE bool load_chosen(const Problem& problem, int experts, const SegmentRows& rows,
                                             std::int64_t first) {
    std::int32_t missing = 0;
    for (int i = 0; i < lane_count; ++i) {
      if (!is_active(problem, rows[first + i])) return false;
      const std::int32_t* const ids = problem.experts.data + rows[first + i] * problem.experts.stride;
      std::int32_t sign = -1;
      for (int k = 0; k < k_count; ++k) {
        const std::int32_t expert = ids[k] < experts && ids[k] >= 0 ? ids[k] : -1;
        chosen_.expert[k][i] = expert;
        sign &= expert;
      }
      missing |= sign;
    }
    if (missing < 0) return false;
    if (problem.grad_weights.data == nullptr) {
      for (int k = 0; k < k_count; ++k) {
        for (int i = 0; i < lane_count; ++i) grad_chosen_[k][i] = 0.0f;
      }
    } else {
      load_side_by_side(problem.grad_weights, rows, first, grad_chosen_);
      for (int k = 0; k < k_count; ++k) {
        for (int i = 0; i < lane_count; ++i) grad_chosen_[k][i] = choose(chosen_.is_used(k, i), grad_chosen_[k][i], 0.0f);
      }
    }
    return true;
  }

  /// chosen_.score, or the logits that weights are made of there; false if a logit is not finite.
  [[nodiscard]] MOEB_INLINE bool find_chosen_scores(const Problem& problem, const SegmentRows& rows, std::int64_t first,
                                                    std::int64_t last) {
    if constexpr (only_chosen) {
      for (std::int64_t next = first + lane_count; next < first + 2 * lane_count && next < last; ++next)
        prefetch_chosen<k_count>(problem.logits, problem.experts, rows[next]);
      if (!chosen_.gather(problem.logits, rows, first, logit_)) return false;
      for (int k = 0; k < k_count; ++k) {
        for (int i = 0; i < lane_count; ++i) {
          if constexpr (is_over_selected<Scoring>)
            chosen_.score[k][i] = logit_[k][i];
          else
            chosen_.score[k][i] = choose(chosen_.is_used(k, i), elementwise_score(problem.scoring, logit_[k][i]), 0.0f);
        }
      }
    } else {
      if (!scores_.load(problem.logits, rows, first)) return false;
      scores_.find(problem.scoring);
      const NumbersSideBySide* const value = is_over_selected<Scoring> ? scores_.logit : scores_.score;
      for (int k = 0; k < k_count; ++k) {
        for (int i = 0; i < lane_count; ++i)
          chosen_.score[k][i] = chosen_.is_used(k, i) ? value[chosen_.expert[k][i]][i] : 0.0f;
      }
    }
    return true;
  }

  /// From dL/dscore of the chosen to dL/dlogit.
  MOEB_INLINE void multiply_by_derivatives(const Scoring& scoring) {
    for (int k = 0; k < k_count; ++k) {
      for (int i = 0; i < lane_count; ++i) {
        const float derivative = elementwise_derivative(scoring, logit_[k][i], chosen_.score[k][i]);
        grad_chosen_[k][i] = choose(chosen_.is_used(k, i), mul(grad_chosen_[k][i], derivative), 0.0f);
      }
    }
  }

  MOEB_INLINE void scatter() {
    for (int k = 0; k < k_count; ++k) {
      for (int i = 0; i < lane_count; ++i) {
        const std::int32_t expert = chosen_.expert[k][i];
        if (expert >= 0) grad_[expert][i] = add(grad_[expert][i], grad_chosen_[k][i]);
      }
    }
  }

  /// token_gradient, from the weights' on.
  MOEB_INLINE void find_gradient(const Problem& problem, const LossSlopes<float>& slopes) {
    if constexpr (!Scores::is_softmax && !is_finitely_scoring<Scoring>) scores_.silence();
    find_loss_gradient(slopes);
    if constexpr (!is_over_selected<Scoring>) scatter();
    if constexpr (!Scores::is_softmax) {
      for (int e = 0; e < scores_.experts; ++e) {
        for (int i = 0; i < lane_count; ++i)
          grad_[e][i] = mul(grad_[e][i], elementwise_derivative(problem.scoring, scores_.logit[e][i], scores_.score[e][i]));
      }
    } else if constexpr (!is_over_selected<Scoring> || Traits::losses > 0) {
      alignas(64) NumbersSideBySide mean;
      scores_.add_up([&](int e, int i) MOEB_LAMBDA { return mul(grad_[e][i], scores_.score[e][i]); }, mean);
      for (int e = 0; e < scores_.experts; ++e) {
        for (int i = 0; i < lane_count; ++i) grad_[e][i] = mul(scores_.score[e][i], sub(grad_[e][i], mean[i]));
      }
    }
    if constexpr (is_over_selected<Scoring>) scatter();
    if constexpr (Traits::token_losses > 0) scores_.find_softmax_for_losses();
    if constexpr (Traits::token_losses > Traits::entropy_losses) {
      alignas(64) NumbersSideBySide slope;
      for (int i = 0; i < lane_count; ++i)
        slope[i] = slope_of_token_losses(problem, slopes_of_lane(slopes, i),
                                         SoftmaxRow<float>{.maximum = scores_.maximum[i], .sum = scores_.sum[i]});
      for (int e = 0; e < scores_.experts; ++e) {
        for (int i = 0; i < lane_count; ++i) grad_[e][i] = fma(slope[i], scores_.score[e][i], grad_[e][i]);
      }
    }
    if constexpr (Traits::entropy_losses > 0) add_entropy_gradient(problem, slopes);
  }

  /// The function of that name in entropy.hpp.
  MOEB_INLINE void add_entropy_gradient(const Problem& problem, const LossSlopes<float>& slopes) {
    alignas(64) NumbersSideBySide log_of_sum;
    alignas(64) NumbersSideBySide entropy;
    alignas(64) NumbersSideBySide slope;
    scores_.find_entropies(log_of_sum, entropy);
    for (int i = 0; i < lane_count; ++i)
      slope[i] = EntropySlope<float>(problem, slopes_of_lane(slopes, i), entropy[i]).slope;
    for (int e = 0; e < scores_.experts; ++e) {
      NumbersSideBySide of_entropy;
      for (int i = 0; i < lane_count; ++i) {
        const Surprise<float> surprise = scores_.surprise_of(e, i, log_of_sum);
        of_entropy[i] = surprise.weighted(sub(surprise.size, entropy[i]));
      }
      for (int i = 0; i < lane_count; ++i) grad_[e][i] = fma(slope[i], of_entropy[i], grad_[e][i]);
    }
  }

  /// loss_gradient.
  MOEB_INLINE void find_loss_gradient(const LossSlopes<float>& slopes) {
    alignas(64) NumbersSideBySide inverse = {};
    alignas(64) NumbersSideBySide mean = {};
    if constexpr (Traits::losses > 0 && !is_normalised<Scoring>) {
      scores_.add_up([&](int e, int i) MOEB_LAMBDA { return scores_.score[e][i]; }, inverse);
      for (int i = 0; i < lane_count; ++i) inverse[i] = inverse_of_sum(inverse[i]);
      scores_.add_up([&](int e, int i) MOEB_LAMBDA { return mul(slopes.slope[e], mul(scores_.score[e][i], inverse[i])); },
                     [&](int i) MOEB_LAMBDA { return mul(0.0f, mul(0.0f, inverse[i])); }, mean);
    }
    for (int e = 0; e < scores_.experts; ++e) {
      const float slope =
          Traits::losses == 0 ? 0.0f : slopes.slope[e];  // a loop that wrote floats would not know that it stays
      for (int i = 0; i < lane_count; ++i) {
        const bool is_gradient = Traits::losses == 0 || is_normalised<Scoring>;
        grad_[e][i] = if_balanced(is_gradient ? slope : mul(sub(slope, mean[i]), inverse[i]), i);
      }
    }
  }
};

MOEB_NAMESPACE_END
