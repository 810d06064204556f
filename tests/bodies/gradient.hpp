// CONTRACT.md line 11: gradients are exact. For every scoring x balancer: float64 against central differences of the oracle's loss,
// float32 against the oracle's gradient.
#pragma once

#include "everything.hpp"

#include "../engine_host.hpp"
#include "../users_policies.hpp"

namespace testing {

/// Logits on which every scoring has a positive sum: the documented normalisation is not singular there.
inline Inputs gradient_inputs(std::uint64_t seed, std::int64_t tokens, int experts, int k) {
  Inputs inputs = full_inputs(seed, tokens, experts, k);
  for (double& logit : inputs.logits) logit = static_cast<float>(1.5 + 0.6 * logit);
  inputs.sequences = 2;
  inputs.layout = mb::Sequences::Layout::token_major;
  inputs.loss_parts = 0;
  inputs.loss_scale = 1.7f;
  inputs.grad_loss = 0.6f;
  inputs.replay_experts = replayed_ids(seed + 5, tokens, experts, k);
  inputs.replay_tokens = Random(seed + 6).flags(static_cast<std::size_t>(tokens), 0.5);
  return inputs;
}

/// Is a scoring written for float only? Then float64 calls have float32's precision in it.
template <class Scoring>
inline constexpr bool float_only = std::is_same_v<Scoring, users::Bell>;

template <class Scoring, class Selection, class Balancer>
void check_central_differences(const Scoring& scoring, const Selection& selection, const Balancer& balancer) {
  constexpr int k = Selection::k;
  const Inputs inputs = in_float64(gradient_inputs(51, 6, 12, k));
  const Outcome outcome = train(HostEngine{}, mb::Router{scoring, selection, balancer}, inputs);
  const oracle::Problem problem = problem_of(scoring, selection, inputs);
  const std::vector<int> ids(outcome.experts.begin(), outcome.experts.end());
  oracle::Surroundings around;
  around.sequences = inputs.sequences;
  around.sequence_of_token = sequence_of_tokens(inputs);
  around.accumulated = outcome.load;
  const Losses losses = losses_of(balancer, inputs.experts, k);
  const double upstream = static_cast<double>(1.7f) * static_cast<double>(0.6f);
  const std::vector<double> want =
      oracle::gradient_by_differences(problem, ids, inputs.grad_weights, losses, around, upstream);
  // Differences of step 1e-5 have an error of about 1e-10; slopes and loss factors are float32 (two roundings of 6e-8).
  const double closeness = float_only<Scoring> ? 1e-6 : losses.empty() ? 1e-8 : 3e-7;
  std::vector<double> allowed;
  for (const double size :
       oracle::gradient_and_magnitude(problem, ids, inputs.grad_weights, losses, around, upstream).magnitude) {
    allowed.push_back(closeness * size + 1e-9);
  }
  const std::string far = first_far(outcome.grad_logits, want, allowed, 12);
  CHECK_MESSAGE(far.empty(), far);
}

template <class Engine, class Scoring, class Selection, class Balancer>
void check_gradient(const Scoring& scoring, const Selection& selection, const Balancer& balancer) {
  if constexpr (Engine::has_float64) check_central_differences(scoring, selection, balancer);
  for (const int experts : {12, 60, 264}) {
    CAPTURE(experts);
    agrees(Engine(), scoring, selection, gradient_inputs(52, 18, experts, Selection::k), balancer);
    Inputs loss_only = gradient_inputs(53, 18, experts, Selection::k);
    loss_only.grad_weights.clear();
    loss_only.grad_loss.reset();
    agrees(Engine(), scoring, selection, loss_only, balancer);
  }
}

/// On a GPU, where each router costs nvcc ten seconds, all balancers at once; the per-token code is the CPU's.
template <class Engine, class Scoring>
  requires(!Engine::has_float64)
void check_every_balancer(const Scoring& scoring) {
  check_gradient<Engine>(scoring, mb::TopK<3>{.renormalise = true, .scaling_factor = 1.5f}, everything());
  check_gradient<Engine>(scoring, mb::TopK<3>{.renormalise = false, .scaling_factor = 0.5f}, everything());
}

template <class Engine, class Scoring>
  requires(Engine::has_float64)
void check_every_balancer(const Scoring& scoring) {
  const mb::TopK<3> plain{.renormalise = true, .scaling_factor = 1.5f};
  check_gradient<Engine>(scoring, plain, mb::NoBalancer{});
  check_gradient<Engine>(scoring, plain, mb::AuxLoss{.coefficient = 0.7f});
  check_gradient<Engine>(scoring, plain, mb::SequenceLoss{.coefficient = 0.7f});
  check_gradient<Engine>(scoring, plain, mb::GlobalBatchLoss{.coefficient = 0.7f});
  check_gradient<Engine>(scoring, plain, mb::ZLoss{.coefficient = 0.7f});
  check_gradient<Engine>(scoring, plain, mb::LossFreeBias{});
  check_gradient<Engine>(scoring, plain, users::SquaredShare{.coefficient = 0.3f});
  check_gradient<Engine>(scoring, plain, everything());
  const mb::TopK<3> raw{.renormalise = false, .scaling_factor = 0.5f};
  check_gradient<Engine>(scoring, raw, mb::NoBalancer{});
  check_gradient<Engine>(scoring, raw, everything());
  const mb::GroupLimitedTopK<3> grouped{.groups = 4, .groups_kept = 2, .scaling_factor = 2.5f};
  check_gradient<Engine>(scoring, grouped, everything());
  check_gradient<Engine>(scoring, mb::Replay{plain}, everything());
  check_gradient<Engine>(scoring, mb::Replay{grouped}, mb::NoBalancer{});
}

TEST_CASE_TEMPLATE_DEFINE("contract 11: exact gradients, Softmax x every balancer", Engine, contract_11_softmax) {
  check_every_balancer<Engine>(mb::Softmax{});
}
TEST_CASE_TEMPLATE_DEFINE("contract 11: exact gradients, SoftmaxOverSelected x every balancer", Engine,
                          contract_11_over_selected) {
  check_every_balancer<Engine>(mb::SoftmaxOverSelected{});
}
TEST_CASE_TEMPLATE_DEFINE("contract 11: exact gradients, Sigmoid x every balancer", Engine, contract_11_sigmoid) {
  check_every_balancer<Engine>(mb::Sigmoid{});
}
TEST_CASE_TEMPLATE_DEFINE("contract 11: exact gradients, SqrtSoftplus x every balancer", Engine, contract_11_sqrt_softplus) {
  check_every_balancer<Engine>(mb::SqrtSoftplus{});
}
TEST_CASE_TEMPLATE_DEFINE("contract 11: exact gradients, Identity x every balancer", Engine, contract_11_identity) {
  check_every_balancer<Engine>(mb::Identity{});
}
TEST_CASE_TEMPLATE_DEFINE("contract 11: exact gradients, a user's own scoring x every balancer", Engine, contract_11_user) {
  check_every_balancer<Engine>(users::Bell{});
}

/// K = 1: a renormalised weight would be 1 whatever the logits, so the score itself is the weight.
TEST_CASE_TEMPLATE_DEFINE("contract 11: exact gradients with K = 1", Engine, contract_11_one) {
  check_gradient<Engine>(mb::Sigmoid{}, mb::TopK<1>{.scaling_factor = 2.0f}, mb::NoBalancer{});
  check_gradient<Engine>(mb::Softmax{}, mb::TopK<1>{}, mb::AuxLoss{});
}

/// Saturated and very negative.
inline Inputs extreme_inputs() {
  Random random(54);
  Inputs inputs = gradient_inputs(55, 40, 24, 3);
  inputs.replay_experts.clear();
  for (double& logit : inputs.logits) logit = static_cast<float>(random.normal() * 12);
  return inputs;
}

TEST_CASE_TEMPLATE_DEFINE("contract 11: Softmax's gradients of saturated and very negative logits are finite and exact",
                          Engine, contract_11_extremes_softmax) {
  agrees(Engine(), mb::Softmax{}, mb::TopK<3>{.renormalise = true, .scaling_factor = 1.5f}, extreme_inputs(), everything());
}

TEST_CASE_TEMPLATE_DEFINE("contract 11: SqrtSoftplus' gradients of saturated and very negative logits are finite and exact",
                          Engine, contract_11_extremes_elementwise) {
  Inputs inputs = extreme_inputs();
  const mb::TopK<3> plain{.renormalise = true, .scaling_factor = 1.5f};
  agrees(Engine(), mb::SqrtSoftplus{}, plain, inputs, everything());
  // softplus near 0: log(1 + exp(-80)) is 1.8e-35, its root 4e-18; no 0 / 0 on the way.
  Random random(56);
  for (double& logit : inputs.logits) logit = static_cast<float>(-40 - 40 * random.uniform());
  const auto all_finite = [](const Outcome& outcome) {
    return std::all_of(outcome.grad_logits.begin(), outcome.grad_logits.end(),
                       [](double gradient) { return std::isfinite(gradient); });
  };
  CHECK(all_finite(agrees(Engine(), mb::SqrtSoftplus{}, plain, inputs, everything())));
  if constexpr (Engine::has_float64) {  // one more router, without a loss: only the chosen have a gradient
    inputs.load.clear();
    CHECK(all_finite(agrees(Engine(), mb::SqrtSoftplus{}, plain, inputs)));
  }
}

}  // namespace testing
