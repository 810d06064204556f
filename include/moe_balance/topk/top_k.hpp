// TopK: the K experts with the largest ranking values.
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/top_k_concepts.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

/// Weights are s / (sum of the chosen s + 1e-20) when K > 1 and `renormalise` is set, then times `scaling_factor`.
template <int K>
struct TopK {
  static_assert(K >= 1 && K <= max_top_k, "TopK chooses 1 to 32 experts per token");
  static constexpr int k = K;

  bool renormalise = true;      ///< where K > 1
  float scaling_factor = 1.0f;  ///< multiplies every weight

  [[nodiscard]] MOEB_INLINE constexpr Weighting weighting() const { return {renormalise, scaling_factor}; }
  void check(const char* call, int /*experts*/) const {
    MOEB_EXPECTS(is_finite(scaling_factor), call, "top_k.scaling_factor", std::to_string(scaling_factor), "finite numbers");
  }
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT&, const LayoutT&, Keys&) const {}
};
static_assert(TopKPolicy<TopK<8>>);
/// \cond
template <int K>
inline constexpr bool is_narrowing<TopK<K>> = false;
/// \endcond

MOEB_NAMESPACE_END
