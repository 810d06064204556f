// CONTRACT.md, conventions that peers disagree on: f from the routing, from a plain top-k of the scores (Megatron-Core), or from each token's best
// expert (GShard); P whose tokens have sums of 1 however low their scores.
#pragma once

#include "everything.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

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

/// The loss that counts first choices is, bit for bit, that of a router of one expert without bias and groups; per_token has no other meaning then.
template <class Engine, class Scoring, class Loss>
void check_first_choice(const Scoring& scoring, const Loss& loss) {
  Inputs inputs = biased_inputs(74);
  Random random(77);
  for (std::int64_t& count : inputs.load) count = random.integer(0, 9);  // of earlier micro-batches
  Inputs of_one = inputs;
  of_one.bias.clear();
  const Outcome want = train(Engine(), mb::Router{scoring, mb::TopK<1>{}, loss}, of_one);
  const auto check = [&](const auto& router, const Inputs& given) {
    const Outcome got = train(Engine(), router, given);
    CHECK(got.loss == want.loss);
    CHECK(got.grad_logits == want.grad_logits);
    return got;
  };
  const mb::FromPlainTopK<Loss, 1> first{loss};
  const mb::GroupLimitedTopK<3> grouped{.groups = 4, .groups_kept = 2};
  const Outcome narrowed = check(mb::Router{scoring, grouped, first}, inputs);
  CHECK(narrowed.counts == train(Engine(), mb::Router{scoring, grouped, loss}, inputs).counts);
  check(mb::Router{scoring, mb::TopK<3>{}, first}, inputs);
  check(mb::Router{scoring, mb::TopK<3>{}, first}, of_one);
  if (!want.load.empty()) {
    const Outcome got = train(Engine(), mb::Router{scoring, mb::TopK<3>{}, first}, of_one);
    CHECK((got.load == want.load) == (mb::loss_scope<Loss> == mb::LossScope::global_batch));
  }
}

TEST_CASE_TEMPLATE_DEFINE("conventions: f from first choices", Engine, first_choices) {
  check_first_choice<Engine>(mb::Softmax{}, mb::AuxLoss{.coefficient = 0.5f});
  check_first_choice<Engine>(mb::Sigmoid{}, mb::AuxLoss{.coefficient = 0.5f, .scale = mb::LossScale::per_token});
}
TEST_CASE_TEMPLATE_DEFINE("conventions: f from first choices, of other losses", Engine, first_choices_of_other_losses) {
  check_first_choice<Engine>(mb::Softmax{}, mb::SequenceLoss{.coefficient = 0.5f});
  check_first_choice<Engine>(mb::Softmax{}, mb::DeviceLoss{mb::AuxLoss{.coefficient = 0.5f}, 6});
  check_first_choice<Engine>(mb::Softmax{}, mb::GlobalBatchLoss{.coefficient = 0.5f, .scale = mb::LossScale::per_token});
}

/// A loss as a user writes it, f of the n best of a plain top-k.
template <int Choices>
struct SharesOfChoices {
  static constexpr bool counts_plain_top_k = true;
  static constexpr int plain_choices = Choices;
  [[nodiscard]] MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const {
    return static_cast<float>(load.experts() * load.top_k()) * load.share(expert);
  }
};
TEST_CASE_TEMPLATE_DEFINE("conventions: f from first choices, in a loss of the user's and around one of devices", Engine,
                          first_choices_of_others) {
  const Inputs inputs = biased_inputs(78);
  const auto loss_of = [&](const auto& top_k, const auto& loss) {
    return train(Engine(), mb::Router{mb::Softmax{}, top_k, loss}, inputs).loss;
  };
  const mb::FromPlainTopK<mb::AuxLoss, 1> first{mb::AuxLoss{.coefficient = 1.0f}};
  const mb::FromPlainTopK<mb::AuxLoss, 2> two{mb::AuxLoss{.coefficient = 1.0f, .scale = mb::LossScale::per_token}};
  CHECK(loss_of(mb::TopK<3>{}, SharesOfChoices<1>{}) == doctest::Approx(loss_of(mb::TopK<3>{}, first)).epsilon(1e-6));
  CHECK(loss_of(mb::TopP<3>{.p = 0.2f}, SharesOfChoices<2>{}) == doctest::Approx(loss_of(mb::TopK<3>{}, two)).epsilon(1e-6));
  const mb::FromPlainTopK<mb::DeviceLoss<mb::AuxLoss>, 1> inside{mb::DeviceLoss{mb::AuxLoss{.coefficient = 1.0f}, 6}};
  const float want = loss_of(mb::TopK<3>{}, inside);
  CHECK(loss_of(mb::TopK<3>{}, mb::DeviceLoss{first, 6}) == doctest::Approx(want).epsilon(1e-6));
  CHECK(loss_of(mb::TopK<3>{}, mb::DeviceLoss{mb::FromPlainTopK{first.loss}, 6}) != doctest::Approx(want).epsilon(1e-4));
}
TEST_CASE_TEMPLATE_DEFINE("conventions: f from first choices is GShard's: E sum_e (first choices of e / T) (mean gate of e)",
                          Engine, first_choices_by_hand) {
  constexpr std::size_t tokens = 33, experts = 9;
  Inputs inputs = normal_inputs(75, tokens, experts, 2, 0.5);
  inputs.backward = false;
  std::vector<double> gates(experts, 0.0), chosen(experts, 0.0);
  for (std::size_t t = 0; t < tokens; ++t) {
    const auto row = inputs.logits.begin() + static_cast<std::ptrdiff_t>(t * experts);
    double sum = 0;
    for (std::size_t e = 0; e < experts; ++e) sum += std::exp(row[static_cast<std::ptrdiff_t>(e)]);
    for (std::size_t e = 0; e < experts; ++e) gates[e] += std::exp(row[static_cast<std::ptrdiff_t>(e)]) / sum / tokens;
    chosen[static_cast<std::size_t>(std::max_element(row, row + experts) - row)] += 1.0 / tokens;
  }
  double want = 0;
  for (std::size_t e = 0; e < experts; ++e) want += experts * chosen[e] * gates[e];
  const mb::FromPlainTopK<mb::AuxLoss, 1> loss{mb::AuxLoss{.coefficient = 1.0f}};
  const Outcome got = train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<2>{}, loss}, inputs);
  CHECK(static_cast<double>(got.loss) == doctest::Approx(want).epsilon(1e-6));
}

/// A sigmoid of a low logit is about its exponential: all of a token's by a factor of e lower leave P as it is. (Megatron-LM #1545, OLMo-core #255.)
TEST_CASE_TEMPLATE_DEFINE("conventions: a token's low scores do not lower its P", Engine, low_scores) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<3>{}, mb::AuxLoss{.coefficient = 1.0f}};
  Inputs inputs = normal_inputs(76, 48, 24, 3, 0.5);
  inputs.grad_weights.clear();
  const auto at_level = [&](double level) {
    Inputs lowered = inputs;
    for (double& logit : lowered.logits) logit += level;
    return train(Engine(), router, lowered);
  };
  const Outcome want = at_level(-20);
  CHECK(want.loss > 1.05f);
  for (const double level : {-40.0, -50.0, -60.0}) {
    CAPTURE(level);
    const Outcome got = at_level(level);
    CHECK(got.loss == doctest::Approx(want.loss).epsilon(1e-5));
    for (std::size_t t = 0; t < 48; ++t) {
      double sum = 0;
      for (std::size_t e = 0; e < 24; ++e) {
        const double gradient = got.grad_logits[t * 24 + e];
        CHECK(gradient == doctest::Approx(want.grad_logits[t * 24 + e]).epsilon(1e-4).scale(1e-3));
        sum += gradient;
      }
      CHECK(std::abs(sum) < 1e-7);  // nothing pushes all logits of a token the same way
    }
  }
}

}  // namespace testing
