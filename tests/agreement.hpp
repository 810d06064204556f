// Does the library agree with the oracle? One call of forward, loss and backward, and every output of it compared.
#pragma once

#include "call.hpp"
#include "oracle.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace testing {

// What each policy means to the oracle. A user's policy brings overloads of its own, found through its namespace.
inline oracle::Scoring oracle_of(const mb::Softmax&) {
  return oracle::softmax();
}
inline oracle::Scoring oracle_of(const mb::SoftmaxOverSelected&) {
  return oracle::softmax_over_selected();
}
inline oracle::Scoring oracle_of(const mb::Sigmoid&) {
  return oracle::sigmoid();
}
inline oracle::Scoring oracle_of(const mb::SqrtSoftplus&) {
  return oracle::sqrt_softplus();
}
inline oracle::Scoring oracle_of(const mb::Identity&) {
  return oracle::identity();
}

template <int K>
void describe(const mb::TopK<K>& selection, oracle::Problem& problem) {
  problem.k = K;
  problem.renormalise = selection.renormalise;
  problem.scaling_factor = selection.scaling_factor;
}
template <int K>
void describe(const mb::GroupLimitedTopK<K>& selection, oracle::Problem& problem) {
  problem.k = K;
  problem.renormalise = selection.renormalise;
  problem.scaling_factor = selection.scaling_factor;
  problem.groups = selection.groups;
  problem.groups_kept = selection.groups_kept;
  problem.group_score_top = selection.group_score_top;
}
template <int K>
void describe(const mb::TopP<K>& selection, oracle::Problem& problem) {
  describe(mb::TopK<K>{.renormalise = selection.renormalise, .scaling_factor = selection.scaling_factor}, problem);
  problem.surplus = [p = static_cast<double>(selection.p)](double, double, double before, double, int rank) {
    return rank == 0 ? 1.0 : p - before;
  };
}
template <int K>
void describe(const mb::Threshold<K>& selection, oracle::Problem& problem) {
  describe(mb::TopK<K>{.renormalise = selection.renormalise, .scaling_factor = selection.scaling_factor}, problem);
  problem.surplus = [](double, double ranking, double, double, int) { return ranking; };
}
template <class Selection>
void describe(const mb::Replay<Selection>& replay, oracle::Problem& problem) {
  describe(replay.selection, problem);
  problem.replay = true;
}

using Losses = std::vector<oracle::Loss>;
inline Losses losses_of(const mb::NoBalancer&, int, int) {
  return {};
}
inline Losses losses_of(const mb::BalancedTokens&, int, int) {
  return {};
}
inline Losses losses_of(const mb::LossFreeBias&, int, int) {
  return {};
}
inline Losses losses_of(const mb::AuxLoss& balancer, int experts, int k) {
  return {oracle::aux_loss(balancer.coefficient, experts, k, balancer.scale == mb::LossScale::per_token)};
}
inline Losses losses_of(const mb::SequenceLoss& balancer, int experts, int k) {
  return {oracle::sequence_loss(balancer.coefficient, experts, k, balancer.scale == mb::LossScale::per_token)};
}
inline Losses losses_of(const mb::GlobalBatchLoss& balancer, int experts, int k) {
  return {oracle::global_batch_loss(balancer.coefficient, experts, k, balancer.scale == mb::LossScale::per_token)};
}
inline Losses losses_of(const mb::ZLoss& balancer, int, int) {
  return {oracle::z_loss(balancer.coefficient)};
}
inline Losses losses_of(const mb::ProportionalBias&, int, int) {
  return {};
}
inline Losses losses_of(const mb::SmebuBias&, int, int) {
  return {};
}
inline Losses losses_of(const mb::PidBias&, int, int) {
  return {};
}
inline Losses losses_of(const mb::QuantileBias&, int, int) {
  return {};
}
template <class Rule>
Losses losses_of(const mb::MultiplicativeBias<Rule>&, int, int) {
  return {};
}
inline Losses losses_of(const mb::ImportanceLoss& balancer, int experts, int) {
  return {oracle::importance_loss(balancer.coefficient, experts, experts)};
}
inline Losses losses_of(const mb::DeviceLoss<mb::ImportanceLoss>& balancer, int experts, int) {
  return {oracle::importance_loss(balancer.loss.coefficient, experts, balancer.devices)};
}
inline Losses losses_of(const mb::EntropyLoss& balancer, int, int) {
  return {oracle::entropy_loss(balancer.coefficient)};
}
inline Losses losses_of(const mb::MutualInformationLoss& balancer, int, int) {
  return {oracle::mean_entropy_loss(balancer.coefficient), oracle::entropy_loss(balancer.coefficient)};
}
template <class Loss>
Losses losses_of(const mb::DeviceLoss<Loss>& balancer, int experts, int k) {
  return {oracle::device_loss(losses_of(balancer.loss, experts, k).front(), experts, balancer.devices)};
}
template <class Loss>
Losses losses_of(const mb::CommunicationLoss<Loss>& balancer, int experts, int) {
  constexpr bool by_sequence = std::is_same_v<Loss, mb::SequenceLoss>;
  return {oracle::communication_loss(by_sequence ? oracle::Loss::Scope::sequence : oracle::Loss::Scope::micro_batch,
                                     balancer.loss.coefficient, experts, balancer.devices, balancer.devices_per_token,
                                     balancer.loss.scale == mb::LossScale::per_token)};
}
/// Scope, coefficient, scale and devices of what a WithZeroComputation is around.
struct LossOfKinds {
  oracle::Loss::Scope scope;
  double coefficient;
  bool per_token;
  int devices;
};
inline LossOfKinds kinds_of(const mb::AuxLoss& loss, int computing) {
  return {oracle::Loss::Scope::micro_batch, loss.coefficient, loss.scale == mb::LossScale::per_token, computing};
}
inline LossOfKinds kinds_of(const mb::SequenceLoss& loss, int computing) {
  return {oracle::Loss::Scope::sequence, loss.coefficient, loss.scale == mb::LossScale::per_token, computing};
}
inline LossOfKinds kinds_of(const mb::GlobalBatchLoss& loss, int computing) {
  return {oracle::Loss::Scope::global_batch, loss.coefficient, loss.scale == mb::LossScale::per_token, computing};
}
template <class Loss>
LossOfKinds kinds_of(const mb::DeviceLoss<Loss>& loss, int computing) {
  LossOfKinds kinds = kinds_of(loss.loss, computing);
  kinds.devices = loss.devices;
  return kinds;
}
template <class Balancer>
Losses losses_of(const mb::WithZeroComputation<Balancer>& balancer, int experts, int k) {
  if constexpr (!mb::LossBalancer<Balancer>) {
    return {};
  } else {
    const LossOfKinds kinds = kinds_of(static_cast<const Balancer&>(balancer), experts - balancer.zero_experts);
    return {oracle::zero_computation_loss(kinds.scope, kinds.coefficient, experts, k, balancer.zero_experts,
                                          static_cast<double>(balancer.computed_per_token), kinds.devices, kinds.per_token)};
  }
}
/// By recursion, not by for_each_part: under nvcc that would take this host-only code for device code.
template <class... Parts>
Losses losses_of(const mb::Combine<Parts...>& balancer, int experts, int k) {
  Losses all = losses_of(balancer.first, experts, k);
  if constexpr (sizeof...(Parts) > 1) {
    for (const oracle::Loss& loss : losses_of(balancer.rest, experts, k)) all.push_back(loss);
  }
  return all;
}

/// Whether a balancer's bias multiplies.
template <class Balancer>
bool multiplies(const Balancer& /*balancer*/) {
  return false;
}
template <class Rule>
bool multiplies(const mb::MultiplicativeBias<Rule>& /*balancer*/) {
  return true;
}
template <class First, class... Others>
bool multiplies(const mb::Combine<First, Others...>& balancer) {
  if (multiplies(balancer.first)) return true;
  if constexpr (sizeof...(Others) > 0)
    return multiplies(balancer.rest);
  else
    return false;
}

/// Sequence of each token, by the three layouts.
inline std::vector<std::int64_t> sequence_of_tokens(const Inputs& inputs) {
  std::vector<std::int64_t> result;
  for (std::int64_t t = 0; t < inputs.tokens; ++t) {
    std::int64_t sequence = 0;
    switch (inputs.layout) {
      case mb::Sequences::Layout::sequence_major:
        sequence = t / (inputs.tokens / inputs.sequences);
        break;
      case mb::Sequences::Layout::token_major:
        sequence = t % inputs.sequences;
        break;
      case mb::Sequences::Layout::offsets:
        while (t >= inputs.offsets[static_cast<std::size_t>(sequence + 1)]) ++sequence;
        break;
    }
    result.push_back(sequence);
  }
  return result;
}

template <class Scoring, class Selection>
oracle::Problem problem_of(const Scoring& scoring, const Selection& selection, const Inputs& inputs) {
  oracle::Problem problem;
  problem.tokens = inputs.tokens;
  problem.experts = inputs.experts;
  problem.logits = rounded_to(inputs.logits_type, inputs.logits);
  problem.bias.assign(inputs.bias.begin(), inputs.bias.end());
  problem.active = inputs.active;
  if (inputs.tokens_on_device >= 0) {
    if (problem.active.empty()) problem.active.assign(static_cast<std::size_t>(inputs.tokens), 1);
    for (std::int64_t t = inputs.tokens_on_device; t < inputs.tokens; ++t) problem.active[static_cast<std::size_t>(t)] = 0;
  }
  problem.scoring = oracle_of(scoring);
  describe(selection, problem);
  problem.replay = problem.replay && !inputs.replay_experts.empty();
  problem.replay_experts.assign(inputs.replay_experts.begin(), inputs.replay_experts.end());
  problem.replay_tokens = inputs.replay_tokens;
  return problem;
}

/// The problem as the load and the losses see it: tokens that are not balanced are not there. `ids` become those of the others.
inline oracle::Problem balanced_part(oracle::Problem problem, const Inputs& inputs, std::vector<int>& ids) {
  if (inputs.balanced.empty()) return problem;
  if (problem.active.empty()) problem.active.assign(inputs.balanced.size(), 1);
  for (std::size_t t = 0; t < inputs.balanced.size(); ++t) {
    if (inputs.balanced[t] != 0) continue;
    problem.active[t] = 0;
    for (std::size_t k = 0; k < static_cast<std::size_t>(problem.k); ++k)
      ids[t * static_cast<std::size_t>(problem.k) + k] = -1;
  }
  return problem;
}

/// A row of one gradient in the place of another's.
inline void take_row(oracle::Gradient& to, const oracle::Gradient& from, std::size_t row, std::size_t columns) {
  for (std::size_t i = row * columns; i < (row + 1) * columns; ++i) {
    to.value[i] = from.value[i];
    to.magnitude[i] = from.magnitude[i];
  }
}

/// How near float32 (or, for float64 logits, double) results must come to the oracle. One float32 rounding is 6e-8 of a value.
/// Scores pass through at most a few dozen of them (an exponential's argument of size 16 alone may cost 16), sums over 2048 experts in
/// 32 lanes and a butterfly through about 70 in the worst case and far fewer on average. A gradient is a difference of terms; its
/// error is measured against the sum of their sizes. Slopes are float32 by their signature, whatever
/// the logits' type.
struct Closeness {
  double weight = 2e-6;
  double gradient = 3e-6;
  double loss = 2e-6;
  oracle::Resolution resolution = oracle::float32_resolution;
};
inline constexpr Closeness float32_closeness{};
inline constexpr Closeness float64_closeness{1e-13, 1e-12, 2e-6, oracle::float64_resolution};
inline constexpr Closeness float64_with_slopes_closeness{1e-13, 3e-7, 2e-6, oracle::float64_resolution};

/// Probabilities are summed in units of 2^-32 and token losses in units of 2^-24, each rounded once per token: half a unit, and the
/// loss adds E such probabilities with its slopes.
inline double fixed_point_error(const Losses& losses, const oracle::Problem& problem, const std::vector<int>& ids,
                                const oracle::Surroundings& around) {
  const oracle::Evaluation evaluation = oracle::evaluate(problem, ids);
  double error = 0;
  for (const oracle::Loss& loss : losses) {
    if (loss.scope == oracle::Loss::Scope::token) {
      error += 0x1p-25;
      continue;
    }
    const oracle::detail::Scoped all = oracle::detail::sums(problem, ids, evaluation, around, -1);
    for (const double slope : oracle::detail::slopes(problem, loss, all, around)) error += 0x1p-33 * std::abs(slope);
  }
  return error;
}

/// First element that differs by more than is allowed it, as text.
inline std::string first_far(const std::vector<double>& got, const std::vector<double>& want,
                             const std::vector<double>& allowed, std::size_t columns) {
  if (got.size() != want.size()) return "sizes " + std::to_string(got.size()) + " and " + std::to_string(want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!(std::abs(got[i] - want[i]) <= allowed[i])) {
      char text[160];
      std::snprintf(text, sizeof text, "row %zu column %zu: got %.17g, expected %.17g +- %.3g", i / columns, i % columns,
                    got[i], want[i], allowed[i]);
      return text;
    }
  }
  return "";
}

/// Below their normal range types round to steps of this size.
inline double smallest_step(mb::DataType type) {
  return type == mb::DataType::float16 ? 0x1p-25 : 0x1p-126;
}

inline Closeness closeness_for(const Inputs& inputs, bool has_slopes) {
  if (inputs.logits_type != mb::DataType::float64) return float32_closeness;
  return has_slopes ? float64_with_slopes_closeness : float64_closeness;
}

/// Everything of one outcome against the oracle, given the policies.
template <class Scoring, class Selection, class Balancer>
void check_outcome(const Outcome& outcome, const Scoring& scoring, const Selection& selection, const Balancer& balancer,
                   const Inputs& inputs) {
  oracle::Problem problem = problem_of(scoring, selection, inputs);
  problem.bias_is_factor = multiplies(balancer);
  const Losses losses = losses_of(balancer, inputs.experts, problem.k);
  const Closeness closeness = closeness_for(inputs, !losses.empty());
  const std::vector<int> ids(outcome.experts.begin(), outcome.experts.end());

  const oracle::SelectionReport selected = oracle::check_selection(problem, ids, closeness.resolution);
  CHECK_MESSAGE(selected.first_difference.empty(), selected.first_difference);
  if (!selected.first_difference.empty()) return;

  const oracle::Evaluation evaluation = oracle::evaluate(problem, ids);
  std::vector<double> allowed_weights;
  for (const double weight : evaluation.weights) {
    allowed_weights.push_back((closeness.weight + half_ulp(inputs.weights_type)) * std::abs(weight) +
                              smallest_step(inputs.weights_type));
  }
  const std::string weights =
      first_far(outcome.weights, evaluation.weights, allowed_weights, static_cast<std::size_t>(problem.k));
  CHECK_MESSAGE(weights.empty(), "weights, " << weights);
  CHECK(outcome.counts == evaluation.counts);
  CHECK(outcome.status.non_finite_tokens == evaluation.non_finite_tokens);
  CHECK(outcome.padding_untouched);
  CHECK(outcome.bias == inputs.bias);

  std::vector<int> balanced_ids = ids;
  const oracle::Problem balanced = balanced_part(problem, inputs, balanced_ids);
  const oracle::Evaluation of_balanced = oracle::evaluate(balanced, balanced_ids);
  oracle::Surroundings around;
  around.sequences = inputs.sequences;
  around.sequence_of_token = sequence_of_tokens(inputs);
  around.accumulated = inputs.load;
  around.accumulated.resize(evaluation.counts.size(), 0);  // what margins are counted in is for other checks
  for (std::size_t e = 0; inputs.accumulate && e < evaluation.counts.size(); ++e)
    around.accumulated[e] += of_balanced.counts[e];
  if (!inputs.load.empty()) {
    const auto counts_end = outcome.load.begin() + inputs.experts;
    CHECK(std::vector<std::int64_t>(outcome.load.begin(), counts_end) == around.accumulated);
  }

  if (!losses.empty()) {
    const double want = oracle::total_loss(balanced, balanced_ids, of_balanced, losses, around);
    const double allowed = closeness.loss * std::abs(want) + fixed_point_error(losses, balanced, balanced_ids, around);
    CHECK_MESSAGE(std::abs(static_cast<double>(outcome.loss) - want) <= allowed,
                  "loss " << outcome.loss << ", expected " << want);
  }
  if (inputs.backward) {
    const double upstream = static_cast<double>(inputs.loss_scale) * static_cast<double>(inputs.grad_loss.value_or(1.0f));
    const std::vector<double> grad_weights = rounded_to(inputs.weights_type, inputs.grad_weights);
    oracle::Gradient want = oracle::gradient_and_magnitude(balanced, balanced_ids, grad_weights, losses, around, upstream);
    if (!inputs.balanced.empty()) {
      const oracle::Gradient of_weights = oracle::gradient_and_magnitude(problem, ids, grad_weights, {}, around, upstream);
      for (std::size_t t = 0; t < inputs.balanced.size(); ++t) {
        if (inputs.balanced[t] == 0) take_row(want, of_weights, t, static_cast<std::size_t>(inputs.experts));
      }
    }
    std::vector<double> allowed;
    for (std::size_t i = 0; i < want.value.size(); ++i) {
      allowed.push_back(closeness.gradient * want.magnitude[i] + half_ulp(inputs.grad_type) * std::abs(want.value[i]) +
                        smallest_step(inputs.grad_type));
    }
    const std::string gradient =
        first_far(outcome.grad_logits, want.value, allowed, static_cast<std::size_t>(inputs.experts));
    CHECK_MESSAGE(gradient.empty(), "gradient, " << gradient);
  }
}

/// Runs and checks.
template <class Engine, class Scoring, class Selection, class Balancer = mb::NoBalancer>
Outcome agrees(const Engine& engine, const Scoring& scoring, const Selection& selection, const Inputs& inputs,
               const Balancer& balancer = {}) {
  const Outcome outcome = train(engine, mb::Router{scoring, selection, balancer}, inputs);
  check_outcome(outcome, scoring, selection, balancer, inputs);
  return outcome;
}

}  // namespace testing
