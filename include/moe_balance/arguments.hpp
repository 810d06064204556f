// The argument structs of Router's calls. All memory is the caller's and lives where the call runs (host or device).
// T = tokens, E = experts, K = experts per token. A null pointer or a default view leaves an optional argument out.
// Where an argument is said to be for one kind of selection only, forward and route of other routers refuse it.
#pragma once

#include <moe_balance/views.hpp>

MOEB_NAMESPACE_BEGIN

/// Inference: ids and weights, no state.
struct RouteArgs {
  ConstAnyMatrix logits;                           ///< [T, E]
  MatrixView<std::int32_t> experts;                ///< [T, K] out: ids, best first (replayed: as given); -1: none
  AnyMatrix weights;                               ///< [T, K] out: float32 or the logits' type
  std::int64_t* counts = nullptr;                  ///< [E] out, optional: tokens per expert of this call
  BiasRef bias{};                                  ///< [E], optional: added to the ranking value only
  const std::uint8_t* active = nullptr;            ///< [T], optional: 0 marks a padding token, whose logits may be any
  ReplayRef replay{};                              ///< for Replay only
  Status* status = nullptr;                        ///< optional counters, added to
  const std::int64_t* tokens_on_device = nullptr;  ///< optional: rows from *tokens_on_device on are treated as inactive
  std::int64_t* kept_counts = nullptr;  ///< [E] out, optional, WithCapacity only: tokens per expert after dropping
};

/// Training: RouteArgs and the state that balancing needs.
struct ForwardArgs {
  ConstAnyMatrix logits;                           ///< [T, E]
  MatrixView<std::int32_t> experts;                ///< [T, K] out: ids, best first (replayed: as given); -1: none
  AnyMatrix weights;                               ///< [T, K] out: float32 or the logits' type
  std::int64_t* counts = nullptr;                  ///< [E] out, optional: tokens per expert of this call
  BiasRef bias{};                                  ///< [E]; required by balancers with a bias, optional otherwise
  LoadRef load{};                                  ///< [E]; required by balancers that read accumulated counts
  SavedRef saved{};                                ///< required by balancers with a loss
  const std::uint8_t* active = nullptr;            ///< [T], optional: 0 marks a padding token, whose logits may be any
  Sequences sequences{};                           ///< for SequenceLoss; other balancers do not look at it
  ReplayRef replay{};                              ///< for Replay only
  Status* status = nullptr;                        ///< optional counters, added to
  const std::int64_t* tokens_on_device = nullptr;  ///< optional: rows from *tokens_on_device on are treated as inactive
  bool accumulate = true;                          ///< add this call's counts to load; false in evaluation and recomputation
  MatrixView<std::int32_t> chosen{};    ///< [T, K] out, WithCapacity only: ids before dropping; experts has those after
  std::int64_t* kept_counts = nullptr;  ///< [E] out, optional, WithCapacity only: tokens per expert after dropping
  const std::uint8_t* balanced =
      nullptr;  ///< [T], optional, BalancedTokens only: 0 marks a token that is routed, not balanced
};

/// d(sum of weights * grad_weights + loss_scale * loss) / d(logits).
struct BackwardArgs {
  ConstAnyMatrix logits;  ///< [T, E], as given to forward
  MatrixView<const std::int32_t>
      experts;  ///< [T, K], as forward wrote them; ids out of range are taken for empty slots, and not counted
  ConstAnyMatrix grad_weights{};                   ///< [T, K], optional: none means zeros
  AnyMatrix grad_logits;                           ///< [T, E] out: float32 or the logits' type
  SavedRef saved{};                                ///< as forward filled it
  const std::uint8_t* active = nullptr;            ///< as given to forward
  Sequences sequences{};                           ///< as given to forward
  const std::int64_t* tokens_on_device = nullptr;  ///< as given to forward
  const float* grad_loss = nullptr;                ///< [1], optional: upstream gradient of the loss, where the call runs
  float loss_scale = 1.0f;                         ///< multiplies the loss's gradient, beside grad_loss
  MatrixView<const std::int32_t> chosen{};         ///< [T, K], WithCapacity: as forward wrote them
  const std::uint8_t* balanced = nullptr;          ///< as given to forward
};

/// The value of the balancing loss of one forward call.
struct LossArgs {
  SavedRef saved{};              ///< as forward filled it
  int experts = 0;               ///< E
  Sequences sequences{};         ///< as given to forward
  float* value = nullptr;        ///< [1] out: the sum of all parts
  float* part_values = nullptr;  ///< [number of losses] out, optional: each loss of the balancer, in its order in Combine
};

MOEB_NAMESPACE_END
