// Threshold: an expert takes every token whose score exceeds the expert's own cutoff, which is minus its bias: a token has the experts with score + bias > 0,
// 0 to K of them; the K best by score + bias where there are more. No token's experts depend on another's, so that routing is causal, and no loss is needed:
// ThresholdBias moves the cutoffs so that each expert takes its share of all tokens. Without a bias the cutoffs are 0.
// Source: Sun et al. 2026, "Expert Threshold Routing", arXiv 2603.11535.
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/top_k_concepts.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

/// Ids are in the order of score + bias; behind those that a token keeps its slots are empty: id -1, weight 0, no count.
template <int K>
struct Threshold {
  static_assert(K >= 1 && K <= max_top_k, "Threshold chooses up to 1 to 32 experts per token");
  static constexpr int k = K;
  static constexpr bool reads_cutoffs = true;  ///< see moe_balance::reads_cutoffs

  bool renormalise = false;     ///< weights of the kept sum to scaling_factor, where K > 1
  float scaling_factor = 1.0f;  ///< multiplies every weight

  [[nodiscard]] MOEB_INLINE constexpr Weighting weighting() const { return {renormalise, scaling_factor}; }
  /// Errors: InvalidArgument.
  void check(const char* call, int /*experts*/) const {
    MOEB_EXPECTS(is_finite(scaling_factor), call, "top_k.scaling_factor", std::to_string(scaling_factor), "finite numbers");
  }
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT&, const LayoutT&, Keys&) const {}
  /// See RankedExpert.
  template <class Real>
  [[nodiscard]] MOEB_INLINE bool keeps(const RankedExpert<Real>& expert) const {
    return expert.ranking > Real(0);
  }
};
static_assert(TopKPolicy<Threshold<8>> && keeps_fewer<Threshold<8>>);
/// \cond
template <int K>
inline constexpr bool is_narrowing<Threshold<K>> = false;
/// \endcond

MOEB_NAMESPACE_END
