// What a selection must offer, and what it may promise.
#pragma once

#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/tile.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>
#include <utility>

MOEB_NAMESPACE_BEGIN

/// How chosen scores become weights: divided by their sum (+ 1e-20) when K > 1, then multiplied.
struct Weighting {
  bool renormalise = true;      ///< where K > 1
  float scaling_factor = 1.0f;  ///< multiplies every weight
};

/// The most experts that a token may have.
inline constexpr int max_top_k = 32;

/// Chooses K experts, 1 to max_top_k, from ranking keys. `narrow` may exclude experts before the K best are taken, and leaves at least K; `check` throws for shapes that the
/// policy's options do not fit.
template <class P>
concept TopKPolicy = std::is_trivially_copyable_v<P> &&
    requires(const P policy, const SerialTile tile, const Layout<SerialTile, 64> layout,
             Slots<std::int32_t, Layout<SerialTile, 64>> keys) {
  typename std::integral_constant<int, P::k>;
  requires P::k >= 1 && P::k <= max_top_k;
  {policy.template narrow<float>(tile, layout, keys)};
  {policy.check("", 1)};
  { policy.weighting() } -> std::convertible_to<Weighting>;
};

/// replays: ids may come from the caller (args.replay).
template <class P>
inline constexpr bool is_replaying = false;
template <class P>
  requires requires {
    P::replays;
  }
inline constexpr bool is_replaying<P> = P::replays;

/// narrows = false: `narrow` looks at no key, so that padding need not be excluded before it where it ranks last anyway. Of TopK it is known without the member,
/// which a derived class with a `narrow` of its own would have.
template <class P>
inline constexpr bool is_narrowing = true;
template <class P>
  requires requires {
    P::narrows;
  }
inline constexpr bool is_narrowing<P> = P::narrows;

/// Whether `narrow_side_by_side` is `narrow` for rows side by side on a CPU thread. Of classes that say so themselves, each for itself: one derived from
/// them may narrow otherwise.
template <class P>
inline constexpr bool narrows_side_by_side = false;

/// One of the K experts that rank best for a token, as a selection with `keeps` sees it: a token then keeps those that it says, in the order of their rank, and
/// the others' slots are empty (id -1, weight 0, no count). An expert whose logit is -infinity is not asked for, nor kept, while another of the K is there. Of
/// a token whose K weights are not finite all stay.
template <class Real>
struct RankedExpert {
  Real score;  ///< of the scoring; of SoftmaxOverSelected its share among the K
  Real
      ranking;  ///< what it was ranked by: score + bias, or logit + bias where the scoring ranks by logits; score * (1 + bias) by a bias_is_factor
  Real before;  ///< sum of the scores of those that rank before it
  Real best;    ///< the score of the first that is asked for
  int rank;     ///< 0 to K - 1
};

/// Selections that may keep fewer than K experts: `bool keeps(const RankedExpert<Real>&) const`.
template <class P>
inline constexpr bool keeps_fewer = requires(const P policy, const RankedExpert<float> expert) {
  { policy.keeps(expert) } -> std::convertible_to<bool>;
};
/// Whether a selection takes a bias for minus a cutoff, so that it must be added; false where neither the policy nor the selection inside it says so.
template <class P>
inline constexpr bool reads_cutoffs = [] {
  if constexpr (requires { P::reads_cutoffs; })
    return P::reads_cutoffs;
  else if constexpr (requires(const P policy) { policy.selection; })
    return reads_cutoffs<std::remove_cvref_t<decltype(std::declval<P>().selection)>>;
  else
    return false;
}();
/// Asks it; one written for float only serves double, too, at float's precision.
template <class P, class Real>
[[nodiscard]] MOEB_INLINE bool is_kept(const P& policy, const RankedExpert<Real>& expert) {
  if constexpr (requires { policy.keeps(expert); })
    return policy.keeps(expert);
  else
    return policy.keeps(RankedExpert<float>{static_cast<float>(expert.score), static_cast<float>(expert.ranking),
                                            static_cast<float>(expert.before), static_cast<float>(expert.best),
                                            expert.rank});
}

/// looks_across_tokens: a pass over all tokens follows the routing kernel (dispatch/capacity.hpp); the policy brings workspace_bytes,
/// check_memory, ids_before, after_forward and before_backward.
template <class P>
inline constexpr bool looks_across_tokens = false;
template <class P>
  requires requires {
    P::looks_across_tokens;
  }
inline constexpr bool looks_across_tokens<P> = P::looks_across_tokens;

MOEB_NAMESPACE_END
