// Where the example meets the library: the four routers, their state, and the torch::autograd::Function around
// Router::forward and Router::backward.
#pragma once

#include "metrics.hpp"
#include "options.hpp"

#include <moe_balance/moe_balance.hpp>

#include <torch/types.h>

#include <variant>

namespace train_moe {

namespace mb = moe_balance;

template <class Scoring, class Balancer>
using RouterOf = mb::Router<Scoring, mb::TopK<experts_per_token>, Balancer, mb::SingleDevice>;

/// The four routers compared. Policies are types, so the choice made at run time is a variant.
using AnyRouter = std::variant<RouterOf<mb::Softmax, mb::NoBalancer>, RouterOf<mb::Softmax, mb::AuxLoss>,
                               RouterOf<mb::Softmax, mb::GlobalBatchLoss>, RouterOf<mb::Sigmoid, mb::LossFreeBias>>;

/// What routing T tokens gives.
struct Routed {
  torch::Tensor experts;  ///< int32 [T, K]
  torch::Tensor weights;  ///< float [T, K]
  torch::Tensor loss;     ///< float [1]: the balancing loss; undefined from route()
  ExpertCounts counts;    ///< [experts]: tokens of each expert
};

/// The router of all MoE layers and the state that it keeps between steps: bias and load, [layers, experts] each.
class Balancing {
 public:
  Balancing(BalancerKind kind, const Options& options);

  /// Training: routes [T, experts] logits of one layer; differentiable, counts into the layer's load.
  [[nodiscard]] Routed forward(const torch::Tensor& logits, int layer);

  /// Evaluation: the same choice, no gradient and no trace in the state.
  [[nodiscard]] Routed route(const torch::Tensor& logits, int layer);

  /// Scores as shares that sum to 1 over the experts, [T, experts].
  [[nodiscard]] torch::Tensor normalised_scores(const torch::Tensor& logits) const;

  /// Tokens per expert since the last end_step().
  [[nodiscard]] LayerCounts load() const;

  /// After the last micro-batch of a step: moves the bias where there is one, clears the load. The bias rate falls geometrically
  /// from options.first_bias_rate to last_bias_rate while `progress` goes from 0 to 1.
  void end_step(double progress);

 private:
  BalancerKind kind_;
  Options options_;
  mb::Bias<> bias_;
  mb::Load<> load_;
  AnyRouter router_;
};

}  // namespace train_moe
