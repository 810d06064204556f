// Experts that compute nothing: the losses and the rules that leave tokens the choice of how much is computed for them.
#pragma once

#include "everything.hpp"
#include "update.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace testing {

TEST_CASE_TEMPLATE_DEFINE(
    "WithZeroComputation: losses of a micro-batch, of sequences, of the global batch, over devices; padding, both scales",
    Engine, zero_computation_agreement) {
  Inputs inputs = normal_inputs(150, 48, 24, 4, 1.0);
  inputs.bias = normal_bias(156, 24);
  inputs.active = Random(151).flags(48, 0.3);
  inputs.load = random_load(152, 24, 50);
  inputs.sequences = 4;
  inputs.layout = mb::Sequences::Layout::offsets;
  inputs.offsets = {0, 5, 5, 40, 48};
  const mb::LossScale per_token = mb::LossScale::per_token;
  for (const auto& [zero, computed] : {std::pair{1, 3.9f}, std::pair{8, 2.3f}, std::pair{23, 0.125f}}) {
    CAPTURE(zero);
    const int devices = zero == 8 ? 4 : 1;
    agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs,
           mb::WithZeroComputation{mb::AuxLoss{.coefficient = 0.5f, .scale = per_token}, zero, computed});
    agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs,
           mb::Combine{mb::WithZeroComputation{mb::DeviceLoss{mb::AuxLoss{.coefficient = 0.5f}, devices}, zero, computed},
                       mb::WithZeroComputation{mb::SequenceLoss{.coefficient = 0.3f}, zero, computed}, mb::ZLoss{}});
    agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs,
           mb::Combine{mb::WithZeroComputation{mb::GlobalBatchLoss{.coefficient = 0.5f}, zero, computed},
                       mb::WithZeroComputation{mb::LossFreeBias{}, zero, computed}});
  }
}

TEST_CASE_TEMPLATE_DEFINE("WithZeroComputation of a plain top-k's counts is that of a router without the bias", Engine,
                          zero_computation_plain) {
  Inputs inputs = normal_inputs(153, 40, 24, 4, 1.0);
  inputs.grad_weights.assign(inputs.grad_weights.size(), 0.0);
  const Inputs without_bias = inputs;
  inputs.bias = normal_bias(154, 24);
  const mb::DeviceLoss loss{mb::AuxLoss{.coefficient = 0.5f}, 4};
  const auto outcome_of = [&](const auto& balancer, const Inputs& of) {
    return train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, balancer}, of);
  };
  const Outcome plain = outcome_of(mb::WithZeroComputation{loss, 8, 2.5f}, without_bias);
  const Outcome from_plain = outcome_of(mb::WithZeroComputation{mb::FromPlainTopK{loss}, 8, 2.5f}, inputs);
  CHECK(from_plain.loss == plain.loss);
  CHECK(from_plain.grad_logits == plain.grad_logits);
  CHECK(from_plain.loss != outcome_of(mb::WithZeroComputation{loss, 8, 2.5f}, inputs).loss);
}

/// Eight tokens of two experts each, of 8: 0 to 5 compute, 6 and 7 do not. Chosen ones have half of the probability each.
inline Inputs chosen_pairs(const std::vector<std::pair<int, int>>& pairs) {
  Inputs inputs = rows_of_constant(pairs.size(), 8, -60.0);
  for (std::size_t t = 0; t < pairs.size(); ++t) {
    inputs.logits[t * 8 + static_cast<std::size_t>(pairs[t].first)] = 20.0;
    inputs.logits[t * 8 + static_cast<std::size_t>(pairs[t].second)] = 20.0;
  }
  return inputs;
}

TEST_CASE_TEMPLATE_DEFINE("WithZeroComputation: the budget spent evenly costs the coefficient, all else more", Engine,
                          zero_computation_balanced) {
  const mb::WithZeroComputation loss{mb::AuxLoss{.coefficient = 0.5f}, 2, 1.5f};
  const mb::WithZeroComputation over_devices{mb::DeviceLoss{mb::AuxLoss{.coefficient = 0.5f}, 2}, 2, 1.5f};
  const auto cost = [&](const Inputs& inputs, const auto& balancer) {
    return agrees(Engine(), mb::Softmax{}, mb::TopK<2>{}, inputs, balancer).loss;
  };
  // Twelve slots of the experts that compute, two for each, and four of the others, all of them one expert's.
  const Inputs even = chosen_pairs({{0, 1}, {2, 3}, {4, 5}, {0, 1}, {2, 7}, {3, 7}, {4, 7}, {5, 7}});
  CHECK(cost(even, loss) == doctest::Approx(0.5).epsilon(2e-6));
  CHECK(cost(even, over_devices) == doctest::Approx(0.5).epsilon(2e-6));
  // Of experts 0 to 2 and 3 to 5 one each has it all.
  const Inputs devices = chosen_pairs({{0, 3}, {0, 3}, {0, 3}, {0, 3}, {0, 6}, {0, 6}, {3, 7}, {3, 7}});
  CHECK(cost(devices, over_devices) == doctest::Approx(0.5).epsilon(2e-6));
  CHECK(cost(devices, loss) == doctest::Approx(0.5 * (0.75 * 3 + 0.25)).epsilon(2e-6));
  // Everything computed, half of it computed.
  const Inputs all = chosen_pairs({{0, 1}, {2, 3}, {4, 5}, {0, 1}, {2, 3}, {4, 5}, {0, 1}, {2, 3}});
  CHECK(cost(all, over_devices) > 0.5 * 1.3);
  const Inputs half = chosen_pairs({{0, 6}, {1, 6}, {2, 6}, {3, 6}, {4, 6}, {5, 6}, {0, 6}, {3, 6}});
  CHECK(cost(half, over_devices) == doctest::Approx(0.5 * (0.5 * 0.5 / 0.75 + 0.5 * 0.5 / 0.25)).epsilon(2e-6));
}

TEST_CASE_TEMPLATE_DEFINE("WithZeroComputation: rules by hand; experts that compute nothing keep their bias and memory",
                          Engine, zero_computation_by_hand) {
  const auto moved = [](const auto& rule, const std::vector<float>& state, const std::vector<std::int64_t>& load) {
    return update(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, rule}, state, load).bias;
  };
  // 64 assignments of which 2.5 / 4 are 40, ten for each of four; two experts compute nothing.
  const std::vector<std::int64_t> load{10, 20, 0, 10, 24, 0};
  const std::vector<float> bias{1, 2, 3, 4, 5, 6};
  CHECK(moved(mb::WithZeroComputation{mb::LossFreeBias{.update_rate = 0.5f}, 2, 2.5f}, bias, load) ==
        std::vector<float>{1, 1.5f, 3.5f, 4, 5, 6});
  CHECK(moved(mb::WithZeroComputation{mb::ProportionalBias{.update_rate = 0.5f}, 2, 2.5f}, bias, load) ==
        std::vector<float>{1, 1.5f, 3.5f, 4, 5, 6});
  // LongCat-Flash's step, mu (K_e / (K N) - c / (K T)), is that of errors per total load with mu K_e / K: here 2 * (10 - c) / 64.
  CHECK(
      moved(mb::WithZeroComputation{mb::ProportionalBias{.update_rate = 1.25f, .unit = mb::ErrorUnit::total_load}, 2, 2.5f},
            bias, load) == std::vector<float>{1, 2 - 0.3125f, 3.3125f, 4, 5, 6});
  const mb::WithZeroComputation pid{mb::PidBias{.proportional = 1.0f, .integral = 0.5f, .derivative = 0.25f}, 2, 2.5f};
  std::vector<float> state = bias;
  state.insert(state.end(), {0, 0, 0, 0, 7, 8, 0, 0, 0, 0, 9, 10});
  CHECK(moved(pid, state, load) ==
        std::vector<float>{1, 2 - 1.75f, 3 + 1.75f, 4, 5, 6, 0, -1, 1, 0, 7, 8, 0, -1, 1, 0, 9, 10});
  CHECK(moved(pid, state, zero_load(6)) == state);
  // Too few assignments for a whole one that should be computed, and a frozen rule.
  CHECK(moved(mb::WithZeroComputation{mb::PidBias{}, 2, 0.25f}, state, {1, 0, 0, 0, 0, 0}) == state);
  CHECK(moved(mb::WithZeroComputation{mb::LossFreeBias{.frozen = true}, 2, 2.5f}, bias, load) == bias);
  // 2.75 / 4 of ten assignments are 6.875, and the seven experts that compute have seven.
  CHECK(moved(mb::WithZeroComputation{mb::LossFreeBias{}, 2, 2.75f}, std::vector<float>(9), {1, 1, 1, 1, 1, 1, 1, 3, 0}) ==
        std::vector<float>(9));
  // A budget of all slots: experts that are not open yet, of which nobody expects a part.
  CHECK(moved(mb::WithZeroComputation{mb::LossFreeBias{.update_rate = 0.5f}, 2, 4.0f}, bias, {10, 20, 18, 16, 0, 0}) ==
        std::vector<float>{1.5f, 1.5f, 2.5f, 4, 5, 6});
  // Counts far beyond a float's whole numbers: one assignment too many is seen.
  const std::int64_t many = std::int64_t{1} << 46;
  CHECK(moved(mb::WithZeroComputation{mb::LossFreeBias{.update_rate = 0.5f}, 2, 2.5f}, bias,
              {10 * many, 10 * many + 1, 10 * many - 1, 10 * many, 24 * many, 0}) ==
        std::vector<float>{1, 1.5f, 3.5f, 4, 5, 6});
}

TEST_CASE_TEMPLATE_DEFINE("WithZeroComputation: a skewed router comes to its budget, spent evenly", Engine,
                          zero_computation_balances) {
  constexpr int experts = 24, zero = 8;
  const auto check = [&](const auto& rule, double computed) {
    const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, rule};
    Inputs inputs = normal_inputs(155, 256, experts, 4, 2.0);
    inputs.backward = false;
    inputs.bias.assign(experts, 0.0f);
    inputs.load = zero_load(experts);
    std::vector<float> state(experts * (1 + decltype(router)::bias_memory), 0.0f);
    std::vector<std::int64_t> counts;
    for (int step = 0; step <= 200; ++step) {
      const Outcome outcome = train(Engine(), router, inputs);
      counts = outcome.counts;
      state = update(Engine(), router, state, outcome.load).bias;
      inputs.bias.assign(state.begin(), state.begin() + experts);
    }
    const double all = static_cast<double>(std::accumulate(counts.begin(), counts.end() - zero, std::int64_t{0}));
    CHECK(all / 256 == doctest::Approx(computed).epsilon(0.03));
    const double most = static_cast<double>(*std::max_element(counts.begin(), counts.end() - zero));
    CHECK(most / (all / (experts - zero)) < 1.15);
    for (int e = experts - zero; e < experts; ++e) CHECK(inputs.bias[static_cast<std::size_t>(e)] == 0.0f);
  };
  check(mb::WithZeroComputation{mb::LossFreeBias{.update_rate = 5e-3f}, zero, 3.2f}, 3.2);
  check(mb::WithZeroComputation{mb::PidBias{.proportional = 1e-2f, .derivative = 5e-3f}, zero, 1.5f}, 1.5);
}

}  // namespace testing
