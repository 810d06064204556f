// Losses of probabilities: of how they are spread over experts, and of how decided each token is.
#pragma once

#include "everything.hpp"
#include "gradient.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace users {

/// coefficient * mean over tokens of (entropy - wanted)^2.
struct EntropyNear {
  float wanted = 1.0f;
  float coefficient = 1.0f;
  MOEB_HOST_DEVICE float entropy_loss(float entropy) const { return coefficient * (entropy - wanted) * (entropy - wanted); }
  MOEB_HOST_DEVICE float entropy_slope(float entropy) const { return 2 * coefficient * (entropy - wanted); }
};
static_assert(mb::EntropyLossBalancer<EntropyNear> && !mb::TokenLossBalancer<EntropyNear>);
inline testing::Losses losses_of(const EntropyNear& balancer, int, int) {
  oracle::Loss loss;
  loss.scope = oracle::Loss::Scope::token;
  const double wanted = balancer.wanted, coefficient = balancer.coefficient;
  loss.entropy_loss = [=](double entropy) { return coefficient * (entropy - wanted) * (entropy - wanted); };
  loss.entropy_slope = [=](double entropy) { return 2 * coefficient * (entropy - wanted); };
  return {loss};
}

/// coefficient * sum_i P_i^3 of each sequence, whose slopes are three times that.
struct CubesOfSequence {
  static constexpr mb::LossScope scope = mb::LossScope::sequence;
  float coefficient = 1.0f;
  MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const {
    return 3 * coefficient * load.probability(expert) * load.probability(expert);
  }
  MOEB_HOST_DEVICE double value(double sum, const mb::LoadView& /*load*/) const { return sum / 3; }
};
static_assert(mb::ValuedLoss<CubesOfSequence> && !mb::ValuedLoss<mb::AuxLoss>);
inline testing::Losses losses_of(const CubesOfSequence& balancer, int, int) {
  oracle::Loss loss;
  loss.scope = oracle::Loss::Scope::sequence;
  const double coefficient = balancer.coefficient;
  loss.value_of_means = [=](const std::vector<double>& p) {
    double sum = 0;
    for (const double value : p) sum += coefficient * value * value * value;
    return sum;
  };
  loss.slope_of_means = [=](int expert, const std::vector<double>& p) {
    const double value = p[static_cast<std::size_t>(expert)];
    return 3 * coefficient * value * value;
  };
  return {loss};
}

}  // namespace users

namespace testing {

/// Every loss of the library and of the user's that reads probabilities, beside those that read counts.
inline auto probability_losses() {
  return mb::Combine{mb::ImportanceLoss{.coefficient = 0.4f},
                     mb::DeviceLoss{mb::ImportanceLoss{.coefficient = 0.3f}, 4},
                     users::EntropyNear{.coefficient = 0.3f},
                     mb::ZLoss{.coefficient = 0.01f},
                     mb::MutualInformationLoss{.coefficient = 0.2f},
                     users::CubesOfSequence{.coefficient = 5.0f},
                     mb::AuxLoss{.coefficient = 0.2f},
                     mb::LossFreeBias{}};
}

inline Inputs probability_inputs(std::uint64_t seed, std::int64_t tokens, int experts, int k) {
  Inputs inputs = full_inputs(seed, tokens, experts, k);
  inputs.loss_parts = 0;
  inputs.sequences = 3;
  inputs.layout = mb::Sequences::Layout::offsets;
  inputs.offsets = {0, tokens / 4, tokens / 4, tokens};
  return inputs;
}

template <class Engine, class Scoring>
void check_probability_losses(const Scoring& scoring) {
  for (const int experts : {4, 24, 60, 200, 264}) {
    CAPTURE(experts);
    const Inputs inputs = probability_inputs(1700, 43, experts, 4);
    agrees(Engine(), scoring, mb::TopK<4>{}, inputs, probability_losses());
    agrees(Engine(), scoring, mb::TopK<4>{}, inputs, mb::Combine{mb::EntropyLoss{.coefficient = -0.5f}, mb::LossFreeBias{}});
  }
}

TEST_CASE_TEMPLATE_DEFINE("losses of probabilities: softmax", Engine, probability_losses_softmax) {
  check_probability_losses<Engine>(mb::Softmax{});
}
TEST_CASE_TEMPLATE_DEFINE("losses of probabilities: sigmoid, whose softmax is apart", Engine, probability_losses_sigmoid) {
  check_probability_losses<Engine>(mb::Sigmoid{});
}
TEST_CASE_TEMPLATE_DEFINE("losses of probabilities: softmax over the selected", Engine, probability_losses_over_selected) {
  check_probability_losses<Engine>(mb::SoftmaxOverSelected{});
}
TEST_CASE_TEMPLATE_DEFINE("losses of probabilities: more experts than a lane has registers for", Engine,
                          probability_losses_many) {
  for (const int experts : {520, 1028}) {
    const Inputs inputs = probability_inputs(1710, 21, experts, 4);
    agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, probability_losses());
    agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, probability_losses());
  }
}

TEST_CASE_TEMPLATE_DEFINE(
    "losses of probabilities: one loss alone, no weights' gradient, float32 and 16-bit types, no tokens", Engine,
    probability_losses_alone) {
  Inputs inputs = normal_inputs(1720, 43, 60, 4, 1.0);
  inputs.active = Random(1721).flags(43, 0.2);
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::ImportanceLoss{});
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::MutualInformationLoss{.coefficient = 0.5f});
  inputs.grad_weights.clear();
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::EntropyLoss{.coefficient = 0.5f});
  inputs.row_padding = 3;
  inputs = with_types(inputs, mb::DataType::bfloat16, mb::DataType::float32, mb::DataType::bfloat16);
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::MutualInformationLoss{.coefficient = 0.5f});
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, normal_inputs(1722, 0, 60, 4), mb::MutualInformationLoss{});
}

TEST_CASE_TEMPLATE_DEFINE("losses of probabilities by hand: equal, decided, both", Engine, probability_losses_by_hand) {
  const auto loss_of = [](const Inputs& inputs, const auto& balancer) {
    return static_cast<double>(agrees(Engine(), mb::Softmax{}, mb::TopK<1>{}, inputs, balancer).loss);
  };
  const double log_4 = std::log(4.0);
  Inputs equal = rows_of_constant(4, 4, 0.25);  // P is even, and no token is decided
  equal.backward = false;
  CHECK(loss_of(equal, mb::ImportanceLoss{.coefficient = 2.0f}) == doctest::Approx(0).epsilon(1e-6));
  CHECK(loss_of(equal, mb::EntropyLoss{.coefficient = 2.0f}) == doctest::Approx(2 * log_4).epsilon(1e-6));
  CHECK(loss_of(equal, mb::MutualInformationLoss{.coefficient = 2.0f}) == doctest::Approx(0).epsilon(1e-6));
  Inputs each = equal;  // each token another expert
  for (std::size_t t = 0; t < 4; ++t) each.logits[t * 4 + t] = 60.0;
  CHECK(loss_of(each, mb::ImportanceLoss{.coefficient = 2.0f}) == doctest::Approx(0).epsilon(1e-6));
  CHECK(loss_of(each, mb::EntropyLoss{.coefficient = 2.0f}) == doctest::Approx(0).epsilon(1e-6));
  CHECK(loss_of(each, mb::MutualInformationLoss{.coefficient = 2.0f}) == doctest::Approx(-2 * log_4).epsilon(1e-6));
  Inputs one = equal;  // all the same
  for (std::size_t t = 0; t < 4; ++t) one.logits[t * 4] = 60.0;
  CHECK(loss_of(one, mb::ImportanceLoss{.coefficient = 2.0f}) == doctest::Approx(2 * 3).epsilon(1e-6));
  CHECK(loss_of(one, mb::DeviceLoss{mb::ImportanceLoss{.coefficient = 2.0f}, 2}) == doctest::Approx(2).epsilon(1e-6));
  CHECK(loss_of(one, mb::MutualInformationLoss{.coefficient = 2.0f}) == doctest::Approx(0).epsilon(1e-6));
}

TEST_CASE_TEMPLATE_DEFINE("losses of probabilities: masked experts and tokens that are not finite take no part", Engine,
                          probability_losses_faults) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Inputs inputs = normal_inputs(1730, 64, 24, 3);
  Random random(1731);
  for (double& logit : inputs.logits) {
    if (random.chance(0.15)) logit = random.chance(0.8) ? -infinity : std::nan("");
  }
  for (std::size_t e = 0; e < 24; ++e) {
    inputs.logits[e] = e == 5 ? 2.0 : -infinity;
    inputs.logits[24 + e] = e < 3 ? infinity : 1.0;
    inputs.logits[48 + e] = e < 4 ? 80.0 : -80.0;
    inputs.logits[72 + e] = 1000.0 * static_cast<double>(e);
    inputs.logits[96 + e] = e < 3 ? 3e38 : -3e38;
  }
  const auto losses = mb::Combine{mb::ImportanceLoss{.coefficient = 0.4f}, mb::EntropyLoss{.coefficient = 0.3f},
                                  mb::MutualInformationLoss{.coefficient = 0.2f}};
  CHECK(agrees(Engine(), mb::Softmax{}, mb::TopK<3>{}, inputs, losses).status.non_finite_tokens > 1);
  agrees(Engine(), mb::Sigmoid{}, mb::TopK<3>{}, inputs, losses);
  agrees(Engine(), mb::SoftmaxOverSelected{}, mb::TopK<3>{}, inputs, losses);
  inputs.bias.assign(24, 0.0f);  // infinite logits that are not chosen
  for (std::size_t e = 0; e < 3; ++e) inputs.bias[e] = -5.0f;
  inputs.load = zero_load(24);
  agrees(Engine(), mb::Sigmoid{}, mb::TopK<3>{}, inputs, mb::Combine{losses, mb::LossFreeBias{}});
}

TEST_CASE_TEMPLATE_DEFINE("losses of a token: a slope that only the loss's factor makes infinite pulls nowhere", Engine,
                          token_slope_overflow) {
  Inputs inputs = rows_of_constant(20, 8, 0.0);
  for (std::size_t i = 0; i < inputs.logits.size(); i += 8) inputs.logits[i] = 3e38;
  inputs.loss_scale = 2000;  // 100 for each of 20 tokens
  const auto gradient_of = [&](const auto& scoring, const auto& balancer) {
    return train(Engine(), mb::Router{scoring, mb::TopK<1>{.renormalise = false}, balancer}, inputs).grad_logits;
  };
  const std::vector<double> zeros(inputs.logits.size(), 0.0);
  CHECK(gradient_of(mb::Softmax{}, mb::ZLoss{.coefficient = 0.1f}) == zeros);
  CHECK(gradient_of(mb::Sigmoid{}, mb::ZLoss{.coefficient = 0.1f}) == zeros);
  CHECK(gradient_of(mb::Softmax{}, mb::ZLoss{.coefficient = 1e-3f}) != zeros);
  for (std::size_t i = 0; i < inputs.logits.size(); i += 8) inputs.logits[i] = 1.0;
  CHECK(gradient_of(mb::Softmax{}, mb::EntropyLoss{.coefficient = 3e38f}) == zeros);
  CHECK(gradient_of(mb::Sigmoid{}, mb::EntropyLoss{.coefficient = 3e38f}) == zeros);
  CHECK(gradient_of(mb::Softmax{}, mb::EntropyLoss{.coefficient = 3e36f}) != zeros);
  // What comes from above is the caller's to see.
  for (const float upstream : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    inputs.grad_loss = upstream;
    for (const auto& gradient : {gradient_of(mb::Softmax{}, mb::ZLoss{}), gradient_of(mb::Sigmoid{}, mb::ZLoss{}),
                                 gradient_of(mb::Softmax{}, mb::EntropyLoss{}), gradient_of(mb::Softmax{}, mb::AuxLoss{})}) {
      CHECK(!std::isfinite(gradient[0]));
    }
  }
}

}  // namespace testing
