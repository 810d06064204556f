// TopP: a token has as many experts as its scores need to add up to p, up to K: the smallest set of the best ones whose scores, none of them negative, sum to p or more. Where the
// router is sure, few experts work; where it is not, more.
// Scores are those of the scoring, before weights are made of them: of Softmax they sum to 1 over all experts, so that p is a probability; of
// SoftmaxOverSelected they are shares among the K; others have the sums that they have. With a bias, experts are taken in the order of score + bias.
// Losses balance the assignments that were made: f_i is expert i's part of their sum, not of K T, so that a balanced loss is its coefficient whatever the
// mean number of experts is. Huang et al.'s f_i is larger by that number.
// Source: Huang et al. 2024, "Harder Tasks Need More Experts", arXiv 2403.07652, whose weights are the scores as they are.
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/top_k_concepts.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

/// Ids are in the order of their rank; behind those that a token keeps its slots are empty: id -1, weight 0, no count. One expert at least is kept.
template <int K>
struct TopP {
  static_assert(K >= 1 && K <= max_top_k, "TopP chooses up to 1 to 32 experts per token");
  static constexpr int k = K;

  float p = 0.5f;               ///< what the scores of the kept have to sum to, above 0, at most K
  bool renormalise = false;     ///< weights of the kept sum to scaling_factor, where K > 1
  float scaling_factor = 1.0f;  ///< multiplies every weight

  [[nodiscard]] MOEB_INLINE constexpr Weighting weighting() const { return {renormalise, scaling_factor}; }
  /// Errors: InvalidArgument.
  void check(const char* call, int /*experts*/) const {
    MOEB_EXPECTS(p > 0.0f && p <= static_cast<float>(K), call, "top_k.p", std::to_string(p), "more than 0, at most ", K);
    MOEB_EXPECTS(is_finite(scaling_factor), call, "top_k.scaling_factor", std::to_string(scaling_factor), "finite numbers");
  }
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT&, const LayoutT&, Keys&) const {}
  /// See RankedExpert.
  template <class Real>
  [[nodiscard]] MOEB_INLINE bool keeps(const RankedExpert<Real>& expert) const {
    return expert.before < static_cast<Real>(p);
  }
};
static_assert(TopKPolicy<TopP<8>> && keeps_fewer<TopP<8>>);
/// \cond
template <int K>
inline constexpr bool is_narrowing<TopP<K>> = false;
/// \endcond

MOEB_NAMESPACE_END
