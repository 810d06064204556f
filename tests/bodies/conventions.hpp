// CONTRACT.md, conventions that peers disagree on: f from the routing, or from a plain top-k of the scores (Megatron-Core).
#pragma once

#include "everything.hpp"

namespace testing {

/// A bias that sends every token elsewhere than its scores would.
inline Inputs biased_inputs(std::uint64_t seed) {
  Inputs inputs = normal_inputs(seed, 48, 24, 3, 0.5);
  inputs.load = zero_load(24);
  inputs.active = Random(seed).flags(48, 0.2);
  inputs.sequences = 4;
  inputs.layout = mb::Sequences::Layout::token_major;
  inputs.grad_weights.clear();
  for (int e = 0; e < 24; ++e) inputs.bias.push_back(e < 3 ? 2.0f : 0.0f);
  return inputs;
}

/// The loss from a plain top-k under a bias and groups is, bit for bit, the loss of a router without them.
template <class Engine, class Scoring, class Loss>
void check_plain_top_k(const Scoring& scoring, const Loss& loss) {
  const Inputs inputs = biased_inputs(71);
  const mb::GroupLimitedTopK<3> grouped{.groups = 4, .groups_kept = 2};
  Inputs without_bias = inputs;
  without_bias.bias.clear();
  const Outcome plain = train(Engine(), mb::Router{scoring, mb::TopK<3>{}, loss}, without_bias);
  const Outcome from_plain = train(Engine(), mb::Router{scoring, grouped, mb::FromPlainTopK{loss}}, inputs);
  const Outcome from_routing = train(Engine(), mb::Router{scoring, grouped, loss}, inputs);

  CHECK(from_plain.experts == from_routing.experts);
  CHECK(from_plain.counts == from_routing.counts);
  CHECK(from_plain.experts != plain.experts);
  CHECK(from_plain.loss == plain.loss);
  CHECK(from_plain.grad_logits == plain.grad_logits);
  CHECK(from_plain.loss != from_routing.loss);
}

TEST_CASE_TEMPLATE_DEFINE("conventions: f from a plain top-k, micro-batch loss", Engine, plain_top_k_micro_batch) {
  check_plain_top_k<Engine>(mb::Sigmoid{}, mb::AuxLoss{.coefficient = 0.5f});
}
TEST_CASE_TEMPLATE_DEFINE("conventions: f from a plain top-k, sequence loss", Engine, plain_top_k_sequence) {
  check_plain_top_k<Engine>(mb::Softmax{}, mb::SequenceLoss{.coefficient = 0.5f});
}
TEST_CASE_TEMPLATE_DEFINE("conventions: f from a plain top-k, loss over devices", Engine, plain_top_k_devices) {
  check_plain_top_k<Engine>(mb::Softmax{}, mb::DeviceLoss{mb::AuxLoss{.coefficient = 0.5f}, 6});
}
TEST_CASE_TEMPLATE_DEFINE("conventions: f from a plain top-k, global-batch loss: load accumulates the plain counts", Engine,
                          plain_top_k_global_batch) {
  const mb::GlobalBatchLoss loss{.coefficient = 0.5f};
  check_plain_top_k<Engine>(mb::SoftmaxOverSelected{}, loss);
  const Inputs inputs = biased_inputs(72);
  Inputs without_bias = inputs;
  without_bias.bias.clear();
  const Outcome plain = train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<3>{}, loss}, without_bias);
  const Outcome from_plain = train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<3>{}, mb::FromPlainTopK{loss}}, inputs);
  CHECK(from_plain.load == plain.load);
  CHECK(from_plain.load != from_plain.counts);
}
TEST_CASE_TEMPLATE_DEFINE("conventions: f from a plain top-k leaves the bias's own counts alone", Engine, plain_top_k_bias) {
  const mb::Combine balancer{mb::LossFreeBias{}, mb::FromPlainTopK{mb::AuxLoss{}}};
  const Outcome outcome = train(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<3>{}, balancer}, biased_inputs(73));
  CHECK(outcome.load == outcome.counts);
}

}  // namespace testing
