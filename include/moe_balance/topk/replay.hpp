// Replay: the caller brings the expert ids (args.replay), for all tokens or for those it marks; weights still come from the scores.
// Source: routing replay for reinforcement learning (Megatron-Core #4168, FlashInfer #3024); hash layers (Roller et al. 2021), whose
// table token id -> K experts is looked up by the caller.
// Ids outside [-1, experts) are counted in status.invalid_experts and treated as -1: an empty slot, weight 0, no count.
#pragma once

#include <moe_balance/requirements.hpp>
#include <moe_balance/topk/top_k.hpp>

MOEB_NAMESPACE_BEGIN

/// `selection` serves the tokens that are not replayed, and says how weights are computed for all.
template <class Selection>
struct Replay {
  static_assert(requirements::of_top_k<Selection>() && TopKPolicy<Selection>);
  static_assert(!looks_across_tokens<Selection>, "Replay<WithCapacity<S>> would have no capacity: WithCapacity<Replay<S>>");
  static constexpr int k = Selection::k;
  static constexpr bool replays = true;

  Selection selection{};  ///< for tokens that are not replayed

  [[nodiscard]] MOEB_INLINE constexpr Weighting weighting() const { return selection.weighting(); }
  void check(const char* call, int experts) const { selection.check(call, experts); }
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT& tile, const LayoutT& layout, Keys& keys) const {
    selection.template narrow<Real>(tile, layout, keys);
  }
  /// As the selection, if it has that.
  template <class Real>
    requires keeps_fewer<Selection>
  [[nodiscard]] MOEB_INLINE bool keeps(const RankedExpert<Real>& expert) const { return is_kept(selection, expert); }
};
template <class Selection>
Replay(Selection) -> Replay<Selection>;
static_assert(TopKPolicy<Replay<TopK<8>>>);
/// \cond
template <class Selection>
inline constexpr bool is_narrowing<Replay<Selection>> = is_narrowing<Selection>;
/// \endcond

MOEB_NAMESPACE_END
