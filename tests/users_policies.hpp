// Policies as a user of the library writes them, outside its namespace, and what they mean to the oracle.
#pragma once

#include "agreement.hpp"

#include <cmath>

namespace users {

namespace mb = moe_balance;

/// A bell around 0: a scoring of the user's own, in under ten lines.
struct Bell {
  MOEB_HOST_DEVICE float operator()(float logit) const { return 1.0f / (1.0f + logit * logit); }
  MOEB_HOST_DEVICE float derivative(float logit, float score) const { return -2.0f * logit * score * score; }
};
static_assert(mb::ElementwiseScoring<Bell>);

/// A scoring that is not a number for half of its logits.
struct NanBelowZero {
  MOEB_HOST_DEVICE float operator()(float logit) const { return logit > 0 ? logit : NAN; }
  MOEB_HOST_DEVICE float derivative(float /*logit*/, float /*score*/) const { return 1.0f; }
};

/// A balancing loss of the user's own: E^2 * sum_i f_i^2 P_i, f_i the share of all assignments.
struct SquaredShare {
  float coefficient = 1.0f;
  MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const {
    const float relative = static_cast<float>(load.experts()) * load.share(expert);
    return coefficient * relative * relative;
  }
};
static_assert(mb::LossBalancer<SquaredShare>);

/// The mean probability of one expert, as a loss.
struct MeanProbability {
  int expert = 0;
  MOEB_HOST_DEVICE float slope(int of, const mb::LoadView& /*load*/) const { return of == expert ? 1.0f : 0.0f; }
};

/// SquaredShare for each sequence.
struct SquaredShareOfSequence : SquaredShare {
  static constexpr mb::LossScope scope = mb::LossScope::sequence;
};

/// SquaredShare for the global batch, from counts.
struct SquaredShareOfGlobalBatch {
  static constexpr mb::LossScope scope = mb::LossScope::global_batch;
  float coefficient = 1.0f;
  MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const {
    const float relative = static_cast<float>(load.count(expert) * load.experts()) / static_cast<float>(load.total());
    return coefficient * relative * relative;
  }
};

/// A bias rule of the user's own: the step is proportional to the error, e_i / mean.
struct ProportionalBias {
  float update_rate = 0.5f;
  MOEB_HOST_DEVICE float next_bias(float bias, int expert, const mb::LoadView& load) const {
    const float mean = static_cast<float>(load.total()) / static_cast<float>(load.experts());
    return bias + update_rate * (mean - static_cast<float>(load.count(expert))) / mean;
  }
};
static_assert(mb::BiasBalancer<ProportionalBias>);

/// A bias rule of the user's own with memory: against the mean of the last two steps' loads, of which it keeps the older one, and the number of steps.
struct TwoStepBias {
  static constexpr int memory = 2;
  float update_rate = 0.5f;
  MOEB_HOST_DEVICE mb::BiasStep<2> next_bias(float bias, int expert, const mb::LoadView& load,
                                             const float (&kept)[2]) const {
    const float share = load.share(expert) * static_cast<float>(load.experts());
    const float mean = kept[1] == 0.0f ? share : 0.5f * (share + kept[0]);
    return {bias + update_rate * (1.0f - mean), {share, kept[1] + 1.0f}};
  }
};
static_assert(mb::BiasBalancer<TwoStepBias> && mb::bias_memory<TwoStepBias> == 2);

/// A loss per token of the user's own: the log-sum-exp itself.
struct LinearZLoss {
  float coefficient = 0.25f;
  MOEB_HOST_DEVICE float token_loss(float logsumexp) const { return coefficient * logsumexp; }
  MOEB_HOST_DEVICE float token_slope(float /*logsumexp*/) const { return coefficient; }
};
static_assert(mb::TokenLossBalancer<LinearZLoss>);

inline oracle::Scoring oracle_of(const Bell&) {
  return oracle::elementwise([](double x) { return 1 / (1 + x * x); },
                             [](double x) { return -2 * x / ((1 + x * x) * (1 + x * x)); });
}

inline oracle::Loss squared_share(oracle::Loss::Scope scope, double coefficient, int experts) {
  oracle::Loss loss;
  loss.scope = scope;
  loss.slope = [=](int expert, const std::vector<oracle::Int>& counts, oracle::Int) {
    double all = 0;
    for (const oracle::Int count : counts) all += static_cast<double>(count);
    const double relative = all == 0 ? 0.0 : experts * static_cast<double>(counts[static_cast<std::size_t>(expert)]) / all;
    return coefficient * relative * relative;
  };
  return loss;
}
inline testing::Losses losses_of(const SquaredShare& balancer, int experts, int) {
  return {squared_share(oracle::Loss::Scope::micro_batch, balancer.coefficient, experts)};
}
inline testing::Losses losses_of(const SquaredShareOfSequence& balancer, int experts, int) {
  return {squared_share(oracle::Loss::Scope::sequence, balancer.coefficient, experts)};
}
inline testing::Losses losses_of(const SquaredShareOfGlobalBatch& balancer, int experts, int) {
  return {squared_share(oracle::Loss::Scope::global_batch, balancer.coefficient, experts)};
}
inline testing::Losses losses_of(const ProportionalBias&, int, int) {
  return {};
}
inline testing::Losses losses_of(const LinearZLoss& balancer, int, int) {
  oracle::Loss loss;
  loss.scope = oracle::Loss::Scope::token;
  const double coefficient = balancer.coefficient;
  loss.token_loss = [=](double lse) { return coefficient * lse; };
  loss.token_slope = [=](double) { return coefficient; };
  return {loss};
}

}  // namespace users
