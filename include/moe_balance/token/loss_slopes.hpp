// The balancing losses' part of the gradient: their slope at every expert's mean probability, which all tokens of a segment share, and the way from
// there to dL/dscores.
#pragma once

#include <moe_balance/token/loss.hpp>
#include <moe_balance/token/scores.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// The part of the gradient that no token changes.
template <class Real>
struct LossSlopes {
  const float* slope = nullptr;  ///< dL/dp_ti by expert, one value for each up to the layout's capacity
  Real token_factor = 0;         ///< multiplies token losses' slopes: loss_scale / tokens
  bool balanced = true;          ///< whether the token has them; read where calls mark balanced tokens
};

/// Those of one token: none where it is not balanced.
template <class Real, class Problem>
[[nodiscard]] MOEB_INLINE LossSlopes<Real> slopes_of_token(const Problem& problem, std::int64_t token,
                                                           const LossSlopes<Real>& slopes) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::marks_tokens) {
    const bool balanced = is_balanced(problem, token);
    return {slopes.slope, choose(balanced, slopes.token_factor, Real(0)), balanced};
  } else {
    return slopes;
  }
}

/// What multiplies a loss's slope: 1 / tokens it averages over, and over sequences for a sequence loss; 0 without tokens.
[[nodiscard]] MOEB_INLINE float mean_factor(LossScope scope, std::int64_t tokens, std::int64_t segment_tokens,
                                            std::int64_t segments) {
  const std::int64_t averaged = scope == LossScope::sequence ? segment_tokens : tokens;
  if (averaged == 0) return 0.0f;
  const float mean = div(1.0f, static_cast<float>(averaged));
  return scope == LossScope::sequence ? div(mean, static_cast<float>(segments)) : mean;
}

/// The upstream gradient of the loss.
template <class Problem>
[[nodiscard]] MOEB_INLINE float upstream_of(const Problem& problem) {
  return problem.grad_loss == nullptr ? problem.loss_scale : mul(problem.loss_scale, *problem.grad_loss);
}

template <class Problem>
[[nodiscard]] MOEB_INLINE float token_loss_factor(const Problem& problem) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::token_losses == 0)
    return 0.0f;
  else
    return mul(upstream_of(problem), mean_factor(LossScope::micro_batch, *problem.saved.tokens, 0, 1));
}

/// Adds `factor` times the slopes of a loss that has one for all experts of a device, found once.
template <class Part>
MOEB_INLINE void add_slopes_of_devices(const Part& part, const LoadView& load, float factor, float* slope) {
  const int size = load.experts() / static_cast<int>(part.devices);
  for (int first = 0; first < load.experts(); first += size) {
    const float of_device = part.slope(first, load);
    for (int e = first; e < first + size; ++e) slope[e] = fma(of_device, factor, slope[e]);
  }
}

/// Writes slope[e] for e = first, first + step, ... below `capacity`, 0 for padding. Other lanes may write the others: the tile is
/// needed only to add counts.
template <class Problem, class TileT>
MOEB_INLINE void prepare_slopes(const Problem& problem, const TileT& tile, std::int64_t segment, int first, int step,
                                int capacity, float* slope) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::losses > 0) {
    const int experts = static_cast<int>(problem.logits.columns);
    const float upstream = upstream_of(problem);
    for (int e = first; e < capacity; e += step) slope[e] = 0.0f;
    for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
      using Part = std::remove_cvref_t<decltype(part)>;
      if constexpr (LossBalancer<Part>) {
        constexpr LossScope scope = loss_scope<Part>;
        const LoadView load = joined(
            part, tile,
            load_of_part<decltype(problem.balancer), Part>(tile, problem.saved, experts, decltype(problem.top_k)::k,
                                                           problem.ranks, keeps_fewer<decltype(problem.top_k)>, segment));
        const std::int64_t segment_tokens = scope == LossScope::sequence ? problem.saved.segment_tokens[segment] : 0;
        const float factor =
            mul(upstream, mean_factor(scope, *problem.saved.tokens, segment_tokens, problem.segments.count()));
        if constexpr (has_slopes_of_devices<Part> && !TileT::slots_in_registers) {  // one lane, which writes all
          add_slopes_of_devices(part, load, factor, slope);
        } else {
          for (int e = first; e < experts; e += step) slope[e] = fma(part.slope(e, load), factor, slope[e]);
        }
      }
    });
  }
}

/// dL/dscores of the losses: the slope itself where scores are probabilities, else through the normalisation p = s / sum.
template <class Real, class Problem, class TileT, class LayoutT>
MOEB_INLINE void loss_gradient(const Problem& problem, const TileT& tile, const LayoutT& layout,
                               const LossSlopes<Real>& slopes, const Slots<Real, LayoutT>& scores,
                               Slots<Real, LayoutT>& grad) {
  using Traits = BalancerTraits<decltype(problem.balancer)>;
  // The result is masked, not the slope alone: a probability may be infinite where scores of both signs add up to nearly nothing.
  [[maybe_unused]] const auto if_balanced = [&](Real value) MOEB_LAMBDA {
    return Traits::marks_tokens ? choose(slopes.balanced, value, Real(0)) : value;
  };
  if constexpr (Traits::losses == 0) {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { grad[slot] = Real(0); });
  } else if constexpr (is_normalised<decltype(problem.scoring)>) {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      grad[slot] = if_balanced(static_cast<Real>(slopes.slope[layout.expert(slot)]));
    });
  } else {
    const Real inverse = inverse_of_total(tile, layout, scores);
    const Real mean = canonical_sum<Real>(tile, layout, [&](int slot, Real sum) MOEB_LAMBDA {
      return fma(static_cast<Real>(slopes.slope[layout.expert(slot)]), mul(scores[slot], inverse), sum);
    });
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      grad[slot] = if_balanced(mul(sub(static_cast<Real>(slopes.slope[layout.expert(slot)]), mean), inverse));
    });
  }
}

MOEB_NAMESPACE_END
