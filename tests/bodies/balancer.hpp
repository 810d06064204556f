// Each balancer: the value of its loss, what it accumulates, how it moves the bias.
#pragma once

#include "../margins.hpp"
#include "everything.hpp"
#include "update.hpp"

#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace testing {

/// A batch in which every expert is chosen equally often with equal probabilities: token t wants experts t, t + 1, ... cyclically.
inline Inputs balanced_inputs(int experts, int k) {
  Inputs inputs;
  inputs.tokens = experts;
  inputs.experts = experts;
  for (int t = 0; t < experts; ++t) {
    for (int e = 0; e < experts; ++e) inputs.logits.push_back((e - t + experts) % experts < k ? 2.0 : -1.0);
  }
  inputs.backward = false;
  return inputs;
}

TEST_CASE_TEMPLATE_DEFINE("AuxLoss of a balanced router is its coefficient, per token K times that", Engine,
                          aux_loss_balanced) {
  const Inputs inputs = balanced_inputs(16, 4);
  const Outcome per_assignment = agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::AuxLoss{.coefficient = 0.5f});
  CHECK(per_assignment.loss == doctest::Approx(0.5).epsilon(2e-6));
  const Outcome per_token = agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs,
                                   mb::AuxLoss{.coefficient = 0.5f, .scale = mb::LossScale::per_token});
  CHECK(per_token.loss == doctest::Approx(2.0).epsilon(2e-6));
}

TEST_CASE_TEMPLATE_DEFINE("AuxLoss grows with imbalance and needs no load", Engine, aux_loss_skewed) {
  const mb::AuxLoss balancer{.coefficient = 0.5f};
  double last = 0;
  for (const double skew : {0.0, 2.0, 6.0}) {
    Inputs inputs = normal_inputs(61, 64, 32, 4, skew);
    const Outcome outcome = agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, balancer);
    CHECK(static_cast<double>(outcome.loss) > last);
    last = static_cast<double>(outcome.loss);
  }
  Inputs with_load = normal_inputs(61, 64, 32, 4);
  with_load.load = random_load(62, 32, 50);
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, with_load, balancer);
}

TEST_CASE_TEMPLATE_DEFINE("scores that do not sum to 1 are normalised, so that shrinking them all does not shrink the loss",
                          Engine, aux_loss_normalised) {
  Inputs inputs = balanced_inputs(16, 4);
  for (double& logit : inputs.logits) logit -= 6;  // sigmoid scores of 0.02 and less
  const Outcome outcome = agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, mb::AuxLoss{.coefficient = 0.5f});
  CHECK(outcome.loss == doctest::Approx(0.5).epsilon(2e-6));
}

TEST_CASE_TEMPLATE_DEFINE("SequenceLoss: three layouts, padding, empty sequences, both scales", Engine,
                          sequence_loss_layouts) {
  const mb::SequenceLoss per_assignment{.coefficient = 0.5f};
  const mb::SequenceLoss per_token{.coefficient = 0.5f, .scale = mb::LossScale::per_token};
  const mb::TopK<4> top_k{};
  using Layout = mb::Sequences::Layout;
  for (const Layout layout : {Layout::sequence_major, Layout::token_major, Layout::offsets}) {
    CAPTURE(static_cast<int>(layout));
    for (const bool padding : {false, true}) {
      Inputs inputs = normal_inputs(63, 48, 24, 4, 1.0);
      inputs.layout = layout;
      inputs.sequences = 6;
      if (layout == Layout::offsets) inputs.offsets = {0, 5, 5, 6, 30, 47, 48};
      if (padding) inputs.active = Random(64).flags(48, 0.4);
      agrees(Engine(), mb::Softmax{}, top_k, inputs, per_assignment);
      agrees(Engine(), mb::Softmax{}, top_k, inputs, per_token);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("SequenceLoss: layouts agree where they say the same, and one sequence is an AuxLoss", Engine,
                          sequence_loss_agreement) {
  const mb::SequenceLoss sequence{.coefficient = 0.5f};
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, sequence};
  Inputs inputs = normal_inputs(65, 48, 24, 4, 1.0);
  inputs.sequences = 6;
  inputs.layout = mb::Sequences::Layout::sequence_major;
  const Outcome major = train(Engine(), router, inputs);
  inputs.layout = mb::Sequences::Layout::offsets;
  inputs.offsets = {0, 8, 16, 24, 32, 40, 48};
  CHECK(same_bits(major, train(Engine(), router, inputs)));

  inputs.sequences = 1;
  inputs.offsets = {0, 48};
  const Outcome one = train(Engine(), router, inputs);
  const Outcome micro_batch =
      train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::AuxLoss{.coefficient = 0.5f}}, inputs);
  CHECK(one.loss == micro_batch.loss);
  CHECK(one.grad_bytes == micro_batch.grad_bytes);
}

TEST_CASE_TEMPLATE_DEFINE("GlobalBatchLoss: F grows over the micro-batches of a step and update clears it", Engine,
                          global_batch) {
  const mb::GlobalBatchLoss balancer{.coefficient = 0.5f};
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, balancer};
  for (int step = 0; step < 2; ++step) {
    std::vector<std::int64_t> load = zero_load(24);
    for (std::uint64_t micro_batch = 0; micro_batch < 4; ++micro_batch) {
      Inputs inputs = normal_inputs(66 + micro_batch, 32, 24, 4, static_cast<double>(micro_batch));
      if (micro_batch == 2) inputs.active = Random(67).flags(32, 0.5);
      inputs.load = load;
      const Outcome outcome = agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, balancer);
      load = outcome.load;
    }
    load = update(Engine(), router, {}, load).load;
    CHECK(load == zero_load(24));
  }
}

TEST_CASE_TEMPLATE_DEFINE("GlobalBatchLoss: a backward after later forwards still sees its own micro-batch's F", Engine,
                          global_batch_late) {
  const Engine engine;
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, mb::GlobalBatchLoss{.coefficient = 0.5f}};
  Inputs inputs = normal_inputs(68, 32, 24, 4, 1.0);
  inputs.load = zero_load(24);
  const Outcome prompt = train(engine, router, inputs);
  Memory<Engine> first = memory_for(engine, router, inputs);
  Memory<Engine> second = memory_for(engine, router, normal_inputs(69, 32, 24, 4, 3.0));
  router.forward(first.forward_args(), first.workspace(), engine.place());
  mb::ForwardArgs later = second.forward_args();
  later.load = first.forward_args().load;
  router.forward(later, second.workspace(), engine.place());
  router.backward(first.backward_args(), first.workspace(), engine.place());
  router.loss(first.loss_args(), first.workspace(), engine.place());
  const Outcome late = first.outcome();
  CHECK(late.grad_bytes == prompt.grad_bytes);
  CHECK(late.loss == prompt.loss);
}

/// 48 tokens of 24 experts and four slots, some not active, in sequences of 5, 0, 35 and 8.
inline Inputs ragged_inputs(std::uint64_t seed) {
  Inputs inputs = normal_inputs(seed, 48, 24, 4, 1.0);
  inputs.active = Random(seed + 1).flags(48, 0.3);
  inputs.load = random_load(seed + 2, 24, 50);
  inputs.sequences = 4;
  inputs.layout = mb::Sequences::Layout::offsets;
  inputs.offsets = {0, 5, 5, 40, 48};
  return inputs;
}

TEST_CASE_TEMPLATE_DEFINE(
    "DeviceLoss: of a micro-batch, of sequences, of the global batch; one to E devices, padding, ragged sequences", Engine,
    device_loss_agreement) {
  const Inputs inputs = ragged_inputs(90);
  for (const int devices : {1, 2, 6, 24}) {
    CAPTURE(devices);
    agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::DeviceLoss{mb::AuxLoss{.coefficient = 0.5f}, devices});
    agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs,
           mb::Combine{mb::DeviceLoss{mb::SequenceLoss{.coefficient = 0.5f}, devices}, mb::AuxLoss{.coefficient = 0.3f}});
    agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs,
           mb::DeviceLoss{mb::GlobalBatchLoss{.coefficient = 0.5f, .scale = mb::LossScale::per_token}, devices});
  }
  // A loss of which nothing is known but its slopes: here over nodes of three devices.
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs,
         mb::DeviceLoss{mb::DeviceLoss{mb::AuxLoss{.coefficient = 0.5f}, 12}, 4});
}

TEST_CASE_TEMPLATE_DEFINE("DeviceLoss of a device per expert is its loss, bit for bit", Engine, device_loss_of_experts) {
  const Inputs inputs = normal_inputs(93, 40, 24, 4, 1.0);
  const mb::AuxLoss loss{.coefficient = 0.5f};
  const mb::DeviceLoss devices{loss, 24};
  CHECK(same_bits(train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, devices}, inputs),
                  train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, loss}, inputs)));
}

TEST_CASE_TEMPLATE_DEFINE("DeviceLoss of a global batch that is one micro-batch is that of the micro-batch", Engine,
                          device_loss_of_window) {
  Inputs inputs = normal_inputs(93, 40, 24, 4, 1.0);
  inputs.load = random_load(94, 24, 50);
  const mb::DeviceLoss of_batch{mb::GlobalBatchLoss{.coefficient = 0.5f, .window = mb::GlobalBatchWindow::micro_batch}, 6};
  const Outcome batch = train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, of_batch}, inputs);
  const Outcome micro_batch =
      train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::DeviceLoss{mb::AuxLoss{.coefficient = 0.5f}, 6}}, inputs);
  CHECK(batch.loss == micro_batch.loss);
  CHECK(batch.grad_bytes == micro_batch.grad_bytes);
}

TEST_CASE_TEMPLATE_DEFINE("DeviceLoss: equally busy devices cost the coefficient, whatever their experts do", Engine,
                          device_loss_balanced) {
  Inputs inputs = rows_of_constant(16, 8, -10.0);
  for (std::size_t t = 0; t < 16; ++t)
    inputs.logits[t * 8 + (t % 2 == 0 ? 1 : 6)] = 10.0;  // expert 1 of device 0, 6 of device 1
  const mb::DeviceLoss device_loss{mb::AuxLoss{.coefficient = 0.5f}, 2};
  CHECK(agrees(Engine(), mb::Softmax{}, mb::TopK<1>{}, inputs, device_loss).loss == doctest::Approx(0.5).epsilon(2e-6));
  CHECK(agrees(Engine(), mb::Softmax{}, mb::TopK<1>{}, inputs, device_loss.loss).loss == doctest::Approx(2).epsilon(2e-6));
  for (std::size_t t = 0; t < 16; ++t) inputs.logits[t * 8 + 2] = 11.0;  // all on device 0
  const double probability_of_device_0 = 0.5 + 0.5 / (1 + std::exp(-1.0));
  CHECK(agrees(Engine(), mb::Softmax{}, mb::TopK<1>{}, inputs, device_loss).loss ==
        doctest::Approx(0.5 * 2 * probability_of_device_0).epsilon(2e-6));
}

TEST_CASE_TEMPLATE_DEFINE("CommunicationLoss: one to E devices, padding, ragged sequences, beside other losses", Engine,
                          communication_loss_agreement) {
  Inputs inputs = ragged_inputs(96);
  const mb::AuxLoss loss{.coefficient = 0.5f};
  const mb::SequenceLoss by_sequence{.coefficient = 0.5f, .scale = mb::LossScale::per_token};
  for (const int devices : {1, 2, 6, 24}) {
    CAPTURE(devices);
    const int reached = std::min(devices, 3);
    agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::CommunicationLoss{loss, devices, reached});
    agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs,
           mb::Combine{mb::AuxLoss{.coefficient = 0.3f}, mb::CommunicationLoss{by_sequence, devices, reached}, mb::ZLoss{}});
  }
  // DeepSeek-V2's three, and one of the global batch, whose load has assignments only.
  const mb::GroupLimitedTopK<4> groups{.groups = 6, .groups_kept = 2};
  agrees(Engine(), mb::Softmax{}, groups, inputs,
         mb::Combine{by_sequence, mb::DeviceLoss{by_sequence, 6}, mb::CommunicationLoss{by_sequence, 6, 2}});
  inputs.bias = normal_bias(100, 24);
  agrees(Engine(), mb::SoftmaxOverSelected{}, mb::TopK<4>{}, inputs,
         mb::Combine{mb::CommunicationLoss{loss, 6, 2}, mb::GlobalBatchLoss{.coefficient = 0.5f}, mb::LossFreeBias{}});
  // Tokens with empty slots, which reach no device, and with the same expert twice.
  agrees(Engine(), mb::Softmax{}, mb::TopP<4>{.p = 0.4f}, inputs,
         mb::Combine{mb::CommunicationLoss{by_sequence, 6, 2}, mb::AuxLoss{.coefficient = 0.3f}});
  Random random(108);
  for (int slot = 0; slot < 48 * 4; ++slot) inputs.replay_experts.push_back(random.chance(0.3) ? -1 : random.integer(0, 5));
  agrees(Engine(), mb::Softmax{}, mb::Replay{mb::TopK<4>{}}, inputs,
         mb::Combine{mb::CommunicationLoss{loss, 12, 4}, by_sequence});
  Inputs single = normal_inputs(99, 48, 24, 1, 1.0);
  agrees(Engine(), mb::Softmax{}, mb::TopK<1>{}, single, mb::CommunicationLoss{loss, 6, 1});
}

TEST_CASE_TEMPLATE_DEFINE(
    "CommunicationLoss: a device per expert is the loss over experts; a plain top-k beside it counts apart", Engine,
    communication_loss_of_experts) {
  Inputs inputs = normal_inputs(93, 40, 24, 4, 1.0);
  const mb::AuxLoss loss{.coefficient = 0.5f};
  const mb::GroupLimitedTopK<4> groups{.groups = 6, .groups_kept = 2};
  const auto outcome = [&](const auto& balancer) {
    return train(Engine(), mb::Router{mb::Softmax{}, groups, balancer}, inputs);
  };
  const Outcome of_experts = outcome(loss);
  const Outcome of_devices = outcome(mb::CommunicationLoss{loss, 24, 4});
  CHECK(of_devices.loss == of_experts.loss);
  CHECK(of_devices.grad_bytes == of_experts.grad_bytes);
  const float from_plain = outcome(mb::FromPlainTopK{loss}).loss;
  const float of_arrivals = outcome(mb::CommunicationLoss{loss, 6, 2}).loss;
  inputs.loss_parts = 2;
  CHECK(outcome(mb::Combine{mb::FromPlainTopK{loss}, mb::CommunicationLoss{loss, 6, 2}}).parts ==
        std::vector<float>{from_plain, of_arrivals});
}

/// A loss of the user's that counts arrivals by the experts that they are counted under, as a part of all assignments.
struct ArrivalLoss {
  static constexpr bool counts_arrivals = true;
  int devices = 0;
  [[nodiscard]] MOEB_INLINE float slope(int expert, const mb::LoadView& load) const { return load.share(expert); }
};
inline Losses losses_of(const ArrivalLoss& balancer, int experts, int /*k*/) {
  const int of_device = experts / balancer.devices;
  oracle::Loss loss;
  loss.slope_of_choices = [=](int expert, const std::vector<std::vector<int>>& choices) {
    double arrivals = 0, slots = 0;
    for (const std::vector<int>& chosen : choices) {
      const auto first =
          std::find_if(chosen.begin(), chosen.end(), [&](int e) { return e / of_device == expert / of_device; });
      arrivals += first != chosen.end() && *first == expert ? 1 : 0;
      slots +=
          static_cast<double>(chosen.size());  // total() has K of each token, but those made where a selection keeps fewer
    }
    return slots == 0 ? 0.0 : arrivals / slots;
  };
  return {loss};
}

TEST_CASE_TEMPLATE_DEFINE("losses of a user's own that count arrivals: under each token's first expert on a device", Engine,
                          user_arrivals) {
  const Inputs inputs = ragged_inputs(109);
  for (const int devices : {1, 2, 6, 24}) {
    CAPTURE(devices);
    agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, ArrivalLoss{devices});
    agrees(Engine(), mb::Softmax{}, mb::TopP<4>{.p = 0.4f}, inputs, ArrivalLoss{devices});
    agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs,
           mb::Combine{mb::SequenceLoss{.coefficient = 0.3f}, ArrivalLoss{devices}});
  }
}

TEST_CASE_TEMPLATE_DEFINE("CommunicationLoss: a token counts once for a device, however many of its experts it has", Engine,
                          communication_loss_once) {
  Inputs inputs = rows_of_constant(16, 8, -10.0);
  for (std::size_t t = 0; t < 16; ++t) {  // two experts of device 0, or one of each
    inputs.logits[t * 8 + 1] = 10.0;
    inputs.logits[t * 8 + (t % 4 == 0 ? 7 : 3)] = 10.0;
  }
  const mb::CommunicationLoss loss{mb::AuxLoss{.coefficient = 0.5f}, 2, 2};
  // 16 tokens reach device 0, whose P is 7/8; 4 reach device 1: D / (M T) = 1 / 16.
  CHECK(agrees(Engine(), mb::Softmax{}, mb::TopK<2>{}, inputs, loss).loss ==
        doctest::Approx(0.5 * (1.0 * 0.875 + 0.25 * 0.125)).epsilon(2e-6));
}

/// A bias that multiplies, beside every selection; a router that only routes ranks as one that trains.
template <class Engine>
void check_factor(const Engine& engine, int experts) {
  CAPTURE(experts);
  const mb::MultiplicativeBias bias{mb::LossFreeBias{}};
  Inputs inputs = normal_inputs(101, 70, experts, 4, 1.0);
  inputs.accumulate = false;
  inputs.bias = normal_bias(102, experts, 0.4);
  inputs.bias[1] = -1.0f;  // of no worth
  inputs.bias[2] = -1.5f;  // the same
  inputs.bias[3] = 0.0f;
  inputs.active = Random(103).flags(70, 0.8);
  const auto check = [&](const auto& scoring, const auto& selection, const auto& balancer) {
    const Outcome outcome = agrees(engine, scoring, selection, inputs, balancer);
    CHECK(route(engine, mb::Router{scoring, selection, balancer}, inputs).experts == outcome.experts);
  };
  check(mb::Softmax{}, mb::TopK<4>{}, bias);
  check(mb::Sigmoid{}, mb::TopK<4>{}, mb::Combine{mb::AuxLoss{}, mb::ZLoss{}, bias});
  check(mb::SqrtSoftplus{}, mb::TopP<4>{.p = 0.9f}, mb::MultiplicativeBias{mb::SmebuBias{}});
  if (experts % 6 != 0) return;
  check(mb::Sigmoid{}, mb::GroupLimitedTopK<4>{.groups = 6, .groups_kept = 2, .group_score_top = 2},
        mb::Combine{bias, mb::SequenceLoss{}});
}

/// Scores that may be infinite.
struct ExponentialScore {
  static constexpr bool non_negative = true;
  [[nodiscard]] MOEB_INLINE float operator()(float logit) const {
    return logit > 80.0f ? mb::infinity<float> : logit < 0.0f ? 0.0f : logit;
  }
  [[nodiscard]] MOEB_INLINE float derivative(float logit, float /*score*/) const { return logit > 0.0f ? 1.0f : 0.0f; }
};

TEST_CASE_TEMPLATE_DEFINE("MultiplicativeBias: ranks by score * (1 + b), for every selection; weights do not see it", Engine,
                          bias_factor) {
  check_factor(Engine(), 7);
  check_factor(Engine(), 24);
}

TEST_CASE_TEMPLATE_DEFINE("MultiplicativeBias: scores of 0, which tie whatever multiplies them, and infinite ones", Engine,
                          bias_factor_edges) {
  Inputs inputs = rows_of_constant(3, 6, -1000.0);  // scores of 0
  inputs.accumulate = false;
  for (std::size_t t = 0; t < 3; ++t) inputs.logits[t * 6 + 5] = 0.0;
  inputs.bias = {-1.5f, 0.0f, 0.5f, 0.0f, -0.5f, 0.0f};
  const mb::Router softmax{mb::Softmax{}, mb::TopK<3>{}, mb::MultiplicativeBias{mb::LossFreeBias{}}};
  CHECK(train(Engine(), softmax, inputs).experts == std::vector<std::int32_t>{5, 0, 1, 5, 0, 1, 5, 0, 1});
  inputs = normal_inputs(107, 20, 24, 2, 1.0);
  inputs.accumulate = false;
  inputs.bias.assign(24, 0.0f);
  for (std::size_t t = 0; t < 20; ++t) inputs.logits[t * 24 + t] = 100.0;  // infinite, and first
  const auto routed = [&](const auto& balancer) {
    return train(Engine(), mb::Router{ExponentialScore{}, mb::TopK<2>{}, balancer}, inputs);
  };
  CHECK(same_bits(routed(mb::MultiplicativeBias{mb::LossFreeBias{}}), routed(mb::LossFreeBias{})));
  CHECK(routed(mb::MultiplicativeBias{mb::LossFreeBias{}}).experts.at(2) == 1);
}

TEST_CASE_TEMPLATE_DEFINE(
    "MultiplicativeBias: a bias of 0 is none, its rule is the other's, and it may decide where a sum does not", Engine,
    bias_factor_rule) {
  Inputs inputs = normal_inputs(104, 40, 24, 4, 1.0);
  inputs.accumulate = false;
  inputs.bias.assign(24, 0.0f);
  const auto routed = [&](const auto& balancer) {
    return train(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, balancer}, inputs);
  };
  CHECK(same_bits(routed(mb::MultiplicativeBias{mb::LossFreeBias{}}), routed(mb::LossFreeBias{})));
  const std::vector<float> before = normal_bias(105, 24);
  const std::vector<std::int64_t> load = random_load(106, 24, 30);
  const mb::Router sum{mb::Sigmoid{}, mb::TopK<4>{}, mb::ProportionalBias{.update_rate = 0.1f}};
  const mb::Router product{mb::Sigmoid{}, mb::TopK<4>{}, mb::MultiplicativeBias{sum.balancer}};
  CHECK(update(Engine(), product, before, load).bias == update(Engine(), sum, before, load).bias);

  Inputs small = rows_of_constant(1, 4, -20.0);  // scores of 2e-9
  small.accumulate = false;
  small.logits[1] = -19.9;
  small.bias = {0.0f, 0.0f, 0.2f, -0.3f};
  CHECK(agrees(Engine(), mb::Sigmoid{}, mb::TopK<1>{}, small, mb::MultiplicativeBias{mb::LossFreeBias{}}).experts ==
        std::vector<std::int32_t>{2});
  small.logits[2] = -20.1;  // 0.905 * 1.2 of what expert 0 has, expert 1 has 1.105
  CHECK(agrees(Engine(), mb::Sigmoid{}, mb::TopK<1>{}, small, mb::MultiplicativeBias{mb::LossFreeBias{}}).experts ==
        std::vector<std::int32_t>{1});
  CHECK(agrees(Engine(), mb::Sigmoid{}, mb::TopK<1>{}, small, mb::LossFreeBias{}).experts == std::vector<std::int32_t>{2});
}

TEST_CASE_TEMPLATE_DEFINE("ProportionalBias: b += u (mean - c) / unit, for every unit and centring", Engine,
                          bias_proportional) {
  using Pair = std::pair<mb::ErrorUnit, oracle::Unit>;
  for (const auto& [unit, meaning] :
       {Pair{mb::ErrorUnit::mean_load, oracle::Unit::mean_load}, Pair{mb::ErrorUnit::total_load, oracle::Unit::total_load},
        Pair{mb::ErrorUnit::token, oracle::Unit::token}}) {
    for (const auto& [centring, centre] :
         {std::pair{mb::Centring::none, oracle::Centring::none}, std::pair{mb::Centring::bias, oracle::Centring::bias},
          std::pair{mb::Centring::step, oracle::Centring::step}}) {
      CAPTURE(static_cast<int>(unit));
      CAPTURE(static_cast<int>(centring));
      const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{},
                              mb::ProportionalBias{.update_rate = 0.01f, .unit = unit, .centring = centring}};
      for (const int experts : {1, 3, 60, 2048}) {
        CAPTURE(experts);
        const std::vector<float> bias = normal_bias(94, experts);
        std::vector<std::int64_t> load = random_load(95, static_cast<std::size_t>(experts), 20);
        load[0] = 300;
        const std::vector<double> want =
            oracle::proportional_bias({bias.begin(), bias.end()}, load, static_cast<double>(0.01f), meaning, centre);
        const Updated updated = update(Engine(), router, bias, load);
        double largest = 0;  // the drift has the roundings of all
        for (const float value : bias) largest = std::max(largest, std::abs(static_cast<double>(value)));
        const double common = centring == mb::Centring::none ? 0.0 : 0.1 * largest;
        double worst = 0;
        for (std::size_t e = 0; e < bias.size(); ++e) {
          const double own = std::abs(want[e]) + std::abs(want[e] - static_cast<double>(bias[e]));
          const double error = std::abs(static_cast<double>(updated.bias[e]) - want[e]) / (own + common);
          if (!(error <= worst)) worst = error;  // NaN, too
        }
        CHECK(worst <= 5e-7);  // two divisions, the step, the sum and the drift
        CHECK(updated.load == zero_load(experts));
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("ProportionalBias: exact at the mean, without tokens and frozen; int64 counts", Engine,
                          bias_at_rest) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::ProportionalBias{.update_rate = 0.5f}};
  CHECK(update(Engine(), router, {0, 0, 0, 0}, {1, 2, 2, 3}).bias == std::vector<float>{0.25f, 0, 0, -0.25f});
  CHECK(update(Engine(), router, {1, 2, 3, 4}, {0, 0, 0, 0}).bias == std::vector<float>{1, 2, 3, 4});
  const std::int64_t many = std::int64_t{1} << 50;
  CHECK(update(Engine(), router, {0, 0, 0, 0}, {2 * many, many, many, 0}).bias == std::vector<float>{-0.5f, 0, 0, 0.5f});
  const mb::Router frozen{mb::Sigmoid{}, mb::TopK<4>{}, mb::ProportionalBias{.update_rate = 0.5f, .frozen = true}};
  const Updated updated = update(Engine(), frozen, {1, 2, 3, 4}, {9, 0, 0, 3});
  CHECK(updated.bias == std::vector<float>{1, 2, 3, 4});
  CHECK(updated.load == zero_load(4));
}

/// The largest of |got - want|, by what an expert has of its own and, for what steps that cancel leave, a tenth of the largest; NaN counts as infinite.
inline double worst_error(const std::vector<float>& start, const std::vector<float>& got, const std::vector<double>& want) {
  double largest = 0;
  for (const double value : want) largest = std::max(largest, std::abs(value));
  double worst = 0;
  for (std::size_t e = 0; e < want.size(); ++e) {
    const double difference = std::abs(static_cast<double>(got[e]) - want[e]);
    if (difference == 0) continue;
    const double error =
        difference / (std::abs(want[e]) + std::abs(want[e] - static_cast<double>(start[e])) + 0.1 * largest);
    if (!(error <= worst)) worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  }
  return worst;
}

TEST_CASE_TEMPLATE_DEFINE("SmebuBias: the published steps, centred before their running mean, for every centring", Engine,
                          bias_smebu) {
  for (const auto& [centring, meaning] :
       {std::pair{mb::Centring::step, oracle::Centring::step}, std::pair{mb::Centring::bias, oracle::Centring::bias},
        std::pair{mb::Centring::none, oracle::Centring::none}}) {
    CAPTURE(static_cast<int>(centring));
    const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{},
                            mb::SmebuBias{.update_rate = 0.02f, .momentum = 0.75f, .slope = 1.5f, .centring = centring}};
    const oracle::Smebu published{static_cast<double>(0.02f), 0.75, 1.5, meaning};
    for (const int experts : {1, 3, 60, 2048}) {
      CAPTURE(experts);
      constexpr std::size_t layers = 3;
      const auto row = static_cast<std::size_t>(experts);
      const std::vector<float> start = normal_bias(120, experts * static_cast<int>(layers));
      std::vector<float> state = start;
      state.resize(2 * start.size(), 0.0f);
      std::vector<std::vector<double>> want, means(layers, std::vector<double>(row, 0.0));
      for (std::size_t l = 0; l < layers; ++l) {
        const auto first = start.begin() + static_cast<std::ptrdiff_t>(l * row);
        want.emplace_back(first, first + experts);
      }
      for (std::uint64_t step = 0; step < 4; ++step) {
        std::vector<std::int64_t> load = random_load(121 + step, row * layers, 20);
        load[0] += 300;
        load[row] += 1;
        for (std::size_t l = 0; l < layers; ++l) {
          const auto first = load.begin() + static_cast<std::ptrdiff_t>(l * row);
          published.step(want[l], means[l], {first, first + experts});
        }
        const Updated updated = update(Engine(), router, state, load, layers);
        CHECK(updated.load == zero_load(experts * static_cast<int>(layers)));
        state = updated.bias;
      }
      for (std::size_t l = 0; l < layers; ++l) {
        const auto at = static_cast<std::ptrdiff_t>(l * row);
        const std::vector<float> bias(state.begin() + at, state.begin() + at + experts);
        // Four steps, each with a drift that has the roundings of all.
        CHECK(worst_error({start.begin() + at, start.begin() + at + experts}, bias, want[l]) <= 1e-6);
        const auto first_kept = state.begin() + static_cast<std::ptrdiff_t>(start.size()) + at;
        std::vector<float> kept(first_kept, first_kept + experts);
        if (centring == mb::Centring::step) {  // means are kept before centring, with which they are the published ones
          const double drift = std::accumulate(kept.begin(), kept.end(), 0.0) / experts;
          for (float& value : kept) value = static_cast<float>(static_cast<double>(value) - drift);
        }
        // Four roundings of steps of 0.02, by a tenth of that.
        CHECK(worst_error(std::vector<float>(row), kept, means[l]) <= 2e-6);
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("PidBias: error, sum of errors and its change, over steps and layers", Engine, bias_pid) {
  const mb::PidBias rule{.proportional = 0.02f, .integral = 0.003f, .derivative = -0.01f};
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, rule};
  for (const int experts : {1, 3, 60, 2048}) {
    CAPTURE(experts);
    const std::vector<float> start = normal_bias(130, 2 * experts);
    std::vector<float> state = start;
    state.resize(3 * start.size(), 0.0f);
    std::vector<std::vector<std::int64_t>> loads[2];
    const std::ptrdiff_t firsts[] = {0, experts};
    for (std::uint64_t step = 0; step < 4; ++step) {
      const std::vector<std::int64_t> load = random_load(131 + step, start.size(), 20);
      for (int l = 0; l < 2; ++l) loads[l].emplace_back(load.begin() + firsts[l], load.begin() + firsts[l] + experts);
      state = update(Engine(), router, state, load, 2).bias;
    }
    for (int l = 0; l < 2; ++l) {
      const std::vector<float> before(start.begin() + firsts[l], start.begin() + firsts[l] + experts);
      const std::vector<double> want =
          oracle::pid_bias({before.begin(), before.end()}, loads[l], static_cast<double>(rule.proportional),
                           static_cast<double>(rule.integral), static_cast<double>(rule.derivative));
      CHECK(worst_error(before, {state.begin() + firsts[l], state.begin() + firsts[l] + experts}, want) <= 1e-6);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("rules with memory: by hand, without tokens, frozen; counts up to 2^50", Engine,
                          bias_with_memory_at_rest) {
  const mb::PidBias pid{.proportional = 1.0f, .integral = 0.5f, .derivative = 0.25f};
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, pid};
  // Biases, sums of errors, last errors. Errors 0.5, 0, 0, -0.5.
  const std::vector<float> state{1, 2, 3, 4, 0.5f, 0, 1, 0, -0.5f, 0, 2, 0};
  CHECK(update(Engine(), router, state, {1, 2, 2, 3}).bias == std::vector<float>{1 + 0.5f + 0.5f + 0.25f, 2, 3 + 0.5f - 0.5f,
                                                                                 4 - 0.5f - 0.25f - 0.125f, 1, 0, 1, -0.5f,
                                                                                 0.5f, 0, 0, -0.5f});
  CHECK(update(Engine(), router, state, {0, 0, 0, 0}).bias == state);
  const std::int64_t many = std::int64_t{1} << 50;
  CHECK(update(Engine(), router, std::vector<float>(12), {2 * many, many, many, 0}).bias ==
        std::vector<float>{-1.75f, 0, 0, 1.75f, -1, 0, 0, 1, -1, 0, 0, 1});
  const mb::Router frozen{mb::Sigmoid{}, mb::TopK<4>{},
                          mb::Combine{mb::AuxLoss{}, mb::PidBias{.integral = 0.5f, .frozen = true}}};
  const Updated updated = update(Engine(), frozen, state, {9, 0, 0, 3});
  CHECK(updated.bias == state);
  CHECK(updated.load == zero_load(4));

  // A tanh of 10 and more is 1: a step of update_rate, halved by the running mean, for whoever has too few.
  const mb::Router smebu{mb::Sigmoid{}, mb::TopK<4>{},
                         mb::SmebuBias{.update_rate = 0.5f, .slope = 20.0f, .centring = mb::Centring::none}};
  CHECK(update(Engine(), smebu, {1, 2, 3, 4, 0, 0, 0, 0.25f}, {1, 2, 2, 3}).bias ==
        std::vector<float>{1.25f, 2, 3, 4 - 0.125f, 0.25f, 0, 0, -0.125f});
  CHECK(update(Engine(), smebu, {1, 2, 3, 4, 0, 0.5f, 0, 0.25f}, {0, 0, 0, 0}).bias ==
        std::vector<float>{1, 2, 3, 4, 0, 0.5f, 0, 0.25f});
}

TEST_CASE_TEMPLATE_DEFINE("without counts no rule moves anything, whatever is centred", Engine, bias_without_counts) {
  const std::vector<float> state{1, 2, 3, 4.5f, 0.5f, 0, 1, 0, -0.5f, 0, 2, 0};
  for (const mb::Centring centring : {mb::Centring::none, mb::Centring::bias, mb::Centring::step}) {
    const auto stays = [&](const auto& rule) {
      std::vector<float> bias = state;
      bias.resize(4 * (1 + static_cast<std::size_t>(mb::bias_memory<std::remove_cvref_t<decltype(rule)>>)));
      CHECK(update(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, rule}, bias, {0, 0, 0, 0}).bias == bias);
    };
    stays(mb::LossFreeBias{.centring = centring});
    stays(mb::ProportionalBias{.centring = centring});
    stays(mb::SmebuBias{.centring = centring});
    stays(mb::PidBias{.integral = 1.0f, .centring = centring});
  }
}

TEST_CASE_TEMPLATE_DEFINE("centring leaves out biases that are no numbers, and what is no number stays", Engine,
                          bias_centring_of_numbers) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto check = [&](const auto& rule, std::vector<std::int64_t> load, const std::vector<float>& want) {
    const std::vector<float> bias =
        update(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<2>{}, rule}, {1, -infinity, 3, nan, 6, 2}, std::move(load)).bias;
    CHECK(bias[1] == -infinity);
    CHECK(std::isnan(bias[3]));
    for (const std::size_t e : {0, 2, 4, 5}) CHECK(bias[e] == want[e]);
  };
  // One step up for three of the four numbers, one down for the third expert.
  const std::vector<std::int64_t> load{0, 0, 6, 0, 0, 0};
  check(mb::LossFreeBias{.update_rate = 1.0f}, load, {2, 0, 2, 0, 7, 3});
  check(mb::LossFreeBias{.update_rate = 1.0f, .centring = mb::Centring::bias}, load, {-1.5f, 0, -1.5f, 0, 3.5f, -0.5f});
  check(mb::LossFreeBias{.update_rate = 1.0f, .centring = mb::Centring::step}, load, {1.5f, 0, 1.5f, 0, 6.5f, 2.5f});
  // Margins that lie in the middle of the second of two bins, at 0.5: half of each bias is left, and half of -0.5 added.
  std::vector<std::int64_t> margins(6 + 2 * 6, 0);
  for (std::size_t e = 0; e < 6; ++e) {
    margins[e] = 1;
    margins[6 + 2 * e + 1] = 3;
  }
  const mb::QuantileBias rule{.momentum = 0.5f, .spacing = mb::MarginBins::even, .bins = 2, .centring = mb::Centring::bias};
  check(rule, margins, {-1, 0, 0, 0, 1.5f, -0.5f});
  // No number at all.
  const Updated all =
      update(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<2>{}, mb::LossFreeBias{.centring = mb::Centring::bias}},
             {nan, -infinity}, {3, 1});
  CHECK(std::isnan(all.bias[0]));
  CHECK(all.bias[1] == -infinity);
}

TEST_CASE_TEMPLATE_DEFINE("rules with memory: a layer alone moves as it does among all", Engine, bias_layer_alone) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::SmebuBias{.update_rate = 0.5f}};
  constexpr int experts = 5, stride = 7;
  constexpr std::int64_t layers = 3;
  const std::vector<float> start = normal_bias(142, 2 * static_cast<int>(layers) * stride);
  const std::vector<std::int64_t> counts = random_load(143, static_cast<std::size_t>(experts) * layers, 20);
  const auto moved = [&](bool one_by_one) {
    typename Engine::template Array<float> bias(engine, start);
    typename Engine::template Array<std::int64_t> load(engine, counts);
    const mb::BiasRef all = mb::BiasRef(bias.data(), experts, layers, stride).with_memory(router.bias_memory);
    const mb::LoadRef loads{load.data(), experts, layers};
    if (!one_by_one) router.update(all, loads, {}, engine.place());
    for (std::int64_t l = 0; one_by_one && l < layers; ++l) router.update(all.layer(l), loads.layer(l), {}, engine.place());
    engine.wait();
    return bias.values();
  };
  CHECK(moved(true) == moved(false));
  CHECK(moved(true) != start);
}

TEST_CASE_TEMPLATE_DEFINE("rules with memory: layers apart and of fewer experts leave what lies between as it is", Engine,
                          bias_with_memory_apart) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::PidBias{.proportional = 1.0f, .integral = 0.5f}};
  constexpr int experts = 4, layers = 2, stride = 6;
  std::vector<float> values(3 * layers * stride, 9.0f);
  for (std::size_t row = 0; row < 3 * layers; ++row)
    std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(row * stride), experts, 0.0f);
  typename Engine::template Array<float> bias(engine, values);
  typename Engine::template Array<std::int64_t> load(engine, {1, 2, 2, 3, 2, 0, 7, 0});
  typename Engine::template Array<std::int32_t> experts_of_layer(engine, {4, 2});
  mb::LoadRef load_ref{load.data(), experts, layers};
  load_ref.experts_of_layer = experts_of_layer.data();
  router.update(mb::BiasRef(bias.data(), experts, layers, stride).with_memory(2), load_ref, {}, engine.place());
  engine.wait();
  CHECK(bias.values() == std::vector<float>{0.75f, 0, 0, -0.75f, 9, 9, -1.5f, 1.5f, 0, 0, 9, 9,    // biases
                                            0.5f,  0, 0, -0.5f,  9, 9, -1,    1,    0, 0, 9, 9,    // sums of errors
                                            0.5f,  0, 0, -0.5f,  9, 9, -1,    1,    0, 0, 9, 9});  // last errors
  CHECK(load.values() == std::vector<std::int64_t>(8, 0));
}

TEST_CASE_TEMPLATE_DEFINE("PidBias with one factor is ProportionalBias, bit for bit", Engine, bias_pid_proportional) {
  const std::vector<float> bias = normal_bias(140, 60);
  const std::vector<std::int64_t> load = random_load(141, 60, 20);
  for (const mb::Centring centring : {mb::Centring::none, mb::Centring::bias, mb::Centring::step}) {
    std::vector<float> state = bias;
    state.resize(180, 0.0f);
    const mb::Router pid{mb::Sigmoid{}, mb::TopK<4>{}, mb::PidBias{.proportional = 0.3f, .centring = centring}};
    const mb::Router proportional{mb::Sigmoid{}, mb::TopK<4>{},
                                  mb::ProportionalBias{.update_rate = 0.3f, .centring = centring}};
    std::vector<float> moved = update(Engine(), pid, state, load).bias;
    moved.resize(60);
    CHECK(moved == update(Engine(), proportional, bias, load).bias);
  }
}

TEST_CASE_TEMPLATE_DEFINE("LossFreeBias: b += u sign(mean - c), exactly, and the load is cleared", Engine, bias_sign_rule) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::LossFreeBias{.update_rate = 1e-3f}};
  for (const int experts : {1, 2, 7, 64, 257, 2048}) {
    CAPTURE(experts);
    std::vector<float> bias = normal_bias(70, experts);
    for (std::uint64_t step = 0; step < 5; ++step) {
      const std::vector<std::int64_t> load = random_load(71 + step, static_cast<std::size_t>(experts), 9);
      const std::int64_t all = std::accumulate(load.begin(), load.end(), std::int64_t{0});
      std::vector<float> want = bias;
      for (std::size_t e = 0; e < load.size(); ++e) {
        const std::int64_t scaled = load[e] * experts;  // E c_i against the sum: mean - c_i without rounding
        if (scaled < all) want[e] += 1e-3f;
        if (scaled > all) want[e] -= 1e-3f;
      }
      const Updated updated = update(Engine(), router, bias, load);
      CHECK(updated.bias == want);
      CHECK(updated.load == zero_load(experts));
      bias = updated.bias;
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("LossFreeBias: an under-loaded expert rises, a mean one stays, no counts change nothing", Engine,
                          bias_direction) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::LossFreeBias{.update_rate = 0.5f}};
  CHECK(update(Engine(), router, {0, 0, 0, 0}, {1, 2, 2, 3}).bias == std::vector<float>{0.5f, 0, 0, -0.5f});
  CHECK(update(Engine(), router, {1, 2, 3, 4}, {0, 0, 0, 0}).bias == std::vector<float>{1, 2, 3, 4});
  const std::int64_t many = std::int64_t{1} << 40;
  CHECK(update(Engine(), router, {0, 0, 0, 0}, {many, many, many + 1, many - 1}).bias ==
        std::vector<float>{0, 0, -0.5f, 0.5f});
}

TEST_CASE_TEMPLATE_DEFINE("LossFreeBias: frozen leaves the bias and clears the load", Engine, bias_frozen) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::LossFreeBias{.update_rate = 0.5f, .frozen = true}};
  const std::vector<float> bias{0.25f, -1, 2, 3};
  const Updated updated = update(Engine(), router, bias, {9, 0, 0, 3});
  CHECK(updated.bias == bias);
  CHECK(updated.load == zero_load(4));
}

TEST_CASE_TEMPLATE_DEFINE("LossFreeBias: centring takes the mean of the bias, or of the step, away", Engine, bias_centring) {
  for (const auto& [centring, meaning] :
       {std::pair{mb::Centring::bias, oracle::Centring::bias}, std::pair{mb::Centring::step, oracle::Centring::step},
        std::pair{mb::Centring::none, oracle::Centring::none}}) {
    CAPTURE(static_cast<int>(centring));
    const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::LossFreeBias{.update_rate = 0.01f, .centring = centring}};
    for (const int experts : {3, 60, 2048}) {
      constexpr std::int64_t layers = 3;
      std::vector<float> bias;
      for (const float value : normal_bias(80, experts * static_cast<int>(layers))) bias.push_back(value + 0.5f);
      std::vector<std::int64_t> load = random_load(81, static_cast<std::size_t>(experts) * layers, 20);
      load[0] = 5000;  // skewed: steps have a mean
      const Updated updated = update(Engine(), router, bias, load, layers);
      for (std::ptrdiff_t l = 0; l < layers; ++l) {
        const std::ptrdiff_t first = l * experts;
        const std::vector<double> want =
            oracle::next_bias({bias.begin() + first, bias.begin() + first + experts},
                              {load.begin() + first, load.begin() + first + experts}, static_cast<double>(0.01f), meaning);
        double worst = 0;
        for (int e = 0; e < experts; ++e) {
          const auto at = static_cast<std::size_t>(first + e);
          const double error = std::abs(static_cast<double>(updated.bias[at]) - want[static_cast<std::size_t>(e)]);
          if (!(error <= worst)) worst = error;  // NaN, too
        }
        CHECK(worst <= 2e-7);  // two float32 roundings of values below 1
      }
    }
  }
}

/// `router` moves a bias from 0 until the skewed batch that it sees again and again is spread evenly.
template <class Engine, class Router>
void check_balances(const Engine& engine, const Router& router, int steps = 200, double most = 0.15) {
  Inputs inputs = normal_inputs(82, 256, 16, 4, 2.0);
  inputs.backward = false;
  inputs.bias.assign(16, 0.0f);
  std::vector<float> state(16 * (1 + Router::bias_memory), 0.0f);
  inputs.load = zero_load(16 * (1 + router.load_bins()));
  const auto max_violation = [](const std::vector<std::int64_t>& counts) {
    return static_cast<double>(*std::max_element(counts.begin(), counts.end())) / 64.0 - 1;
  };
  const double before = max_violation(train(engine, router, inputs).counts);
  for (int step = 0; step < steps; ++step) {
    const Outcome outcome = train(engine, router, inputs);
    state = update(engine, router, state, outcome.load).bias;
    inputs.bias.assign(state.begin(), state.begin() + 16);
  }
  const double after = max_violation(train(engine, router, inputs).counts);
  CHECK(before > 0.5);
  CHECK(after < most);
}

TEST_CASE_TEMPLATE_DEFINE("every rule balances a skewed router within a few hundred steps", Engine, bias_balances) {
  check_balances(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, mb::LossFreeBias{.update_rate = 5e-3f}});
  check_balances(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, mb::ProportionalBias{.update_rate = 2e-2f}});
  check_balances(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, mb::SmebuBias{.update_rate = 5e-3f}});
  check_balances(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{},
                                      mb::PidBias{.proportional = 2e-2f, .integral = 1e-4f, .derivative = 5e-3f}});
}

TEST_CASE_TEMPLATE_DEFINE(
    "QuantileBias balances a skewed router, whatever its scores, within a few steps or, as it is, within tens", Engine,
    quantile_balances) {
  check_balances(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, mb::QuantileBias{.momentum = 0.5f}}, 12, 0.1);
  check_balances(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, mb::QuantileBias{.momentum = 0.0f}}, 6, 0.1);
  check_balances(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, mb::QuantileBias{}}, 50, 0.1);
  // Scores on other scales.
  check_balances(Engine(), mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<4>{}, mb::QuantileBias{}}, 50, 0.1);
  check_balances(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::QuantileBias{}}, 50, 0.1);
}

/// A load [layers, (1 + bins) * experts] without counts whose histograms have these bins' counts, [bins][layers * experts], the smallest margins first.
inline std::vector<std::int64_t> load_of_margins(const std::vector<std::vector<std::int64_t>>& bins,
                                                 std::size_t layers = 1) {
  std::vector<std::int64_t> load;
  const std::size_t experts = bins.front().size() / layers;
  for (std::size_t l = 0; l < layers; ++l) {
    load.insert(load.end(), experts, 0);
    for (std::size_t e = 0; e < experts; ++e) {
      for (const std::vector<std::int64_t>& bin : bins) load.push_back(bin[l * experts + e]);
    }
  }
  return load;
}

TEST_CASE_TEMPLATE_DEFINE("QuantileBias: by hand; without tokens, frozen, a full bin, counts up to 2^50", Engine,
                          quantile_by_hand) {
  const mb::QuantileBias rule{.momentum = 0.0f, .spacing = mb::MarginBins::even, .bins = 4, .centring = mb::Centring::none};
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, rule};
  // Eight tokens, two experts: the fifth largest. Of expert 0 the first of two between -0.5 and 0, of expert 1 the fifth of eight from -1 to -0.5.
  const std::vector<std::vector<std::int64_t>> bins{{2, 8}, {2, 0}, {3, 0}, {1, 0}};
  const Updated updated = update(Engine(), router, {5, 5}, load_of_margins(bins));
  CHECK(updated.bias == std::vector<float>{0.125f, 0.78125f});
  CHECK(updated.load == zero_load(10));
  const mb::QuantileBias half{.momentum = 0.5f, .spacing = mb::MarginBins::even, .bins = 4, .centring = mb::Centring::none};
  const mb::Router slower{mb::Sigmoid{}, mb::TopK<1>{}, half};
  CHECK(update(Engine(), slower, {1, -2}, load_of_margins(bins)).bias == std::vector<float>{0.5625f, -0.609375f});
  const mb::Router centred{mb::Sigmoid{}, mb::TopK<1>{},
                           mb::QuantileBias{.momentum = 0.0f, .spacing = mb::MarginBins::even, .bins = 4}};
  CHECK(update(Engine(), centred, {5, 5}, load_of_margins(bins)).bias == std::vector<float>{-0.328125f, 0.328125f});
  // With the mean of all steps, -4.546875, taken away.
  mb::QuantileBias of_steps = rule;
  of_steps.centring = mb::Centring::step;
  CHECK(update(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<1>{}, of_steps}, {5, 5}, load_of_margins(bins)).bias ==
        std::vector<float>{4.671875f, 5.328125f});
  // One bin an octave: all of expert 0's from 1 to 2, of expert 1's from -2 to -1; then all below 2^-16.
  const mb::Router by_octaves{mb::Sigmoid{}, mb::TopK<1>{},
                              mb::QuantileBias{.momentum = 0.0f, .bins = 45, .centring = mb::Centring::none}};
  std::vector<std::vector<std::int64_t>> octaves(45, std::vector<std::int64_t>(2, 0));
  octaves[22 + 17][0] = octaves[22 - 17][1] = 8;
  CHECK(update(Engine(), by_octaves, {5, 5}, load_of_margins(octaves)).bias == std::vector<float>{-1.4375f, 1.5625f});
  octaves.assign(45, std::vector<std::int64_t>(2, 0));
  octaves[22] = {8, 8};
  CHECK(update(Engine(), by_octaves, {5, 5}, load_of_margins(octaves)).bias == std::vector<float>{0x1p-19f, 0x1p-19f});
  // The top bin, and margins all in one bin: the quarter of them is where a quarter of it lies.
  CHECK(update(Engine(), router, {0, 0, 0, 0}, load_of_margins({{0, 0, 0, 8}, {0, 0, 0, 0}, {0, 8, 0, 0}, {8, 0, 8, 0}}))
            .bias == std::vector<float>{-0.84375f, -0.34375f, -0.84375f, 0.65625f});
  const std::int64_t many = std::int64_t{1} << 50;
  CHECK(update(Engine(), router, {0, 0}, load_of_margins({{many, 0}, {0, 0}, {0, 0}, {many, 2 * many}})).bias ==
        std::vector<float>{0.5f, -0.75f});
  CHECK(update(Engine(), centred, {1, 2}, zero_load(10)).bias == std::vector<float>{1, 2});
  std::vector<std::int64_t> counts_alone = zero_load(10);
  counts_alone[0] = 3;  // of tokens that had no finite threshold, say
  CHECK(update(Engine(), centred, {1, 2}, counts_alone).bias == std::vector<float>{1, 2});
  CHECK(update(Engine(), centred, {1, 2}, counts_alone).load == zero_load(10));
  const mb::QuantileBias still{.bins = 4, .frozen = true};
  const Updated left = update(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<1>{}, mb::Combine{mb::AuxLoss{}, still}}, {1, 2},
                              load_of_margins(bins));
  CHECK(left.bias == std::vector<float>{1, 2});
  CHECK(left.load == zero_load(10));
}

TEST_CASE_TEMPLATE_DEFINE("QuantileBias: within a bin of the exact quantile, layer by layer, for every centring", Engine,
                          quantile_near_exact) {
  for (const auto& [centring, meaning] :
       {std::pair{mb::Centring::bias, oracle::Centring::bias}, std::pair{mb::Centring::step, oracle::Centring::step},
        std::pair{mb::Centring::none, oracle::Centring::none}}) {
    CAPTURE(static_cast<int>(centring));
    for (const int bins : {1, 2, 7, 64, 1021}) {
      CAPTURE(bins);
      const mb::QuantileBias rule{.momentum = 0.25f,
                                  .spacing = mb::MarginBins::even,
                                  .low = -0.75f,
                                  .high = 0.5f,
                                  .bins = bins,
                                  .centring = centring};
      const mb::Router router{mb::Sigmoid{}, mb::TopK<3>{}, rule};
      for (const int experts : {4, 5, 60, 300}) {
        CAPTURE(experts);
        constexpr int layers = 2, tokens = 50;
        const auto row = static_cast<std::size_t>(experts);
        const std::vector<float> start = normal_bias(150, layers * experts);
        std::vector<std::vector<std::int64_t>> counts(static_cast<std::size_t>(bins), zero_load(layers * experts));
        std::vector<std::vector<double>> want;
        Random random(151);
        for (int l = 0; l < layers; ++l) {
          std::vector<std::vector<double>> margins;
          for (int t = 0; t < tokens; ++t) {
            margins.emplace_back();
            for (std::size_t e = 0; e < row; ++e) {
              const double margin = -0.75 + 1.25 * random.uniform();
              const auto bin = static_cast<std::size_t>((margin + 0.75) / 1.25 * bins);
              ++counts[bin][static_cast<std::size_t>(l) * row + e];
              margins.back().push_back(margin);
            }
          }
          const auto first = start.begin() + l * experts;
          want.push_back(
              oracle::quantile_bias({first, first + experts}, oracle::quantiles(margins, 3, experts), 0.25, meaning));
        }
        const Updated updated = update(Engine(), router, start, load_of_margins(counts, layers), layers);
        CHECK(updated.load == zero_load(layers * experts * (1 + bins)));
        double worst = 0;
        for (std::size_t i = 0; i < start.size(); ++i) {
          const double error = std::abs(static_cast<double>(updated.bias[i]) - want[i / row][i % row]);
          if (!(error <= worst)) worst = error;  // NaN, too
        }
        // Three quarters of a bin, once for the expert and, where something is centred, once for the mean.
        const double of_bins = 0.75 * 1.25 / bins * (centring == mb::Centring::none ? 1 : 2);
        CHECK(worst <= of_bins + 1e-6);
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("QuantileBias: as near with bins that are as many in each octave, at any scale", Engine,
                          quantile_octaves) {
  constexpr int experts = 60, tokens = 50;
  for (const int bins : {3, 44, 353, 2114}) {
    CAPTURE(bins);
    const mb::QuantileBias rule{.momentum = 0.25f, .bins = bins, .centring = mb::Centring::none};
    const Bins known = bins_of(rule);
    for (const double scale : {1e-6, 1e-3, 0.1, 5.0}) {
      CAPTURE(scale);
      std::vector<std::vector<std::int64_t>> counts(static_cast<std::size_t>(bins), zero_load(experts));
      std::vector<std::vector<double>> margins;
      Random random(152);
      for (int t = 0; t < tokens; ++t) {
        margins.push_back(random.normals<double>(experts, scale));
        for (std::size_t e = 0; e < experts; ++e) ++counts[static_cast<std::size_t>(known.bin_of(margins.back()[e]))][e];
      }
      const std::vector<float> start = normal_bias(153, experts, scale);
      const std::vector<double> quantiles = oracle::quantiles(margins, 3, experts);
      const std::vector<double> want =
          oracle::quantile_bias({start.begin(), start.end()}, quantiles, 0.25, oracle::Centring::none);
      const Updated updated =
          update(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<3>{}, rule}, start, load_of_margins(counts));
      double worst = 0;  // in bins
      for (std::size_t e = 0; e < experts; ++e) {
        const int bin = known.bin_of(quantiles[e]);
        const double width = known.edge(bin + 1) - known.edge(bin);
        const double error = std::abs(static_cast<double>(updated.bias[e]) - want[e]) - 1e-6 * std::abs(want[e]);
        if (!(error / width <= worst)) worst = error / width;  // NaN, too
      }
      CHECK(worst <= 0.75);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("QuantileBias: forward counts each micro-batch's margins where it accumulates, beside losses",
                          Engine, quantile_forward) {
  const mb::QuantileBias rule{.spacing = mb::MarginBins::even, .low = -0.5f, .high = 0.5f, .bins = 20};
  const mb::Combine balancer{mb::GlobalBatchLoss{.coefficient = 0.5f}, rule, mb::ZLoss{.coefficient = 0.1f}};
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, balancer};
  constexpr int experts = 24;
  std::vector<std::int64_t> load = zero_load(experts * 21);
  std::vector<std::int64_t> sum(load.size() - experts, 0);
  for (std::uint64_t micro_batch = 0; micro_batch < 3; ++micro_batch) {
    Inputs inputs = normal_inputs(160 + micro_batch, 33, experts, 4, static_cast<double>(micro_batch));
    inputs.bias = normal_bias(161, experts);
    inputs.active = Random(162 + micro_batch).flags(33, 0.3);
    if (micro_batch == 1) inputs = with_types(inputs, mb::DataType::bfloat16, mb::DataType::float32, mb::DataType::bfloat16);
    if (micro_batch == 2) inputs.row_padding = 3;
    inputs.load = load;
    inputs.accumulate = false;
    CHECK(agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, balancer).load == load);
    inputs.accumulate = true;
    const Outcome outcome = agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, balancer);
    std::vector<std::int64_t> added(outcome.load.begin() + experts, outcome.load.end());
    for (std::size_t i = 0; i < added.size(); ++i) {
      added[i] -= load[experts + i];
      sum[i] += added[i];
    }
    check_histogram(added, problem_of(mb::Sigmoid{}, mb::TopK<4>{}, inputs), bins_of(rule));
    load = outcome.load;
  }
  CHECK(sum == std::vector<std::int64_t>(load.begin() + experts, load.end()));
  mb::QuantileBias still = rule;
  still.frozen = true;
  Inputs counted = normal_inputs(164, 33, experts, 4);
  counted.bias = normal_bias(161, experts);
  counted.load = zero_load(experts * 21);
  const std::vector<std::int64_t> without_margins =
      train(Engine(),
            mb::Router{mb::Sigmoid{}, mb::TopK<4>{},
                       mb::Combine{mb::GlobalBatchLoss{.coefficient = 0.5f}, still, mb::ZLoss{}}},
            counted)
          .load;
  CHECK(std::accumulate(without_margins.begin(), without_margins.end(), std::int64_t{0}) == 33 * 4);
  Inputs none = normal_inputs(163, 0, experts, 4);
  none.bias = normal_bias(161, experts);
  none.load = load;
  CHECK(train(Engine(), router, none).load == load);
}

TEST_CASE_TEMPLATE_DEFINE("QuantileBias: each layer counts in its own rows, also those of fewer experts", Engine,
                          quantile_layers) {
  const Engine engine;
  const mb::QuantileBias rule{.momentum = 0.5f, .bins = 16};
  const mb::Router router{mb::Sigmoid{}, mb::TopK<2>{}, rule};
  constexpr int experts = 12, layers = 3;
  const std::int32_t of_layer[layers] = {12, 7, 10};
  const std::vector<float> start = normal_bias(170, layers * experts);
  typename Engine::template Array<float> bias(engine, start);
  typename Engine::template Array<std::int64_t> load(engine, zero_load(layers * experts * 17));
  typename Engine::template Array<std::int32_t> experts_of_layer(engine, {12, 7, 10});
  mb::LoadRef all = mb::LoadRef::with_bins(load.data(), 16, experts, layers);
  all.experts_of_layer = experts_of_layer.data();
  std::vector<std::vector<float>> alone;
  for (int l = 0; l < layers; ++l) {
    const int own = of_layer[l];
    Inputs inputs = normal_inputs(171 + static_cast<std::uint64_t>(l), 40, own, 2, 1.0);
    inputs.bias.assign(start.begin() + l * experts, start.begin() + l * experts + own);
    inputs.load = zero_load(own * 17);
    inputs.backward = false;
    alone.push_back(update(engine, router, inputs.bias, train(engine, router, inputs).load).bias);
    Memory<Engine> memory = memory_for(engine, router, inputs);
    mb::ForwardArgs args = memory.forward_args();
    args.load = all.layer(l, own);
    router.forward(args, memory.workspace(), engine.place());
    (void)memory.outcome();
    const std::vector<std::int64_t> so_far = load.values();
    std::int64_t margins = 0;
    for (int i = 0; i < layers * experts * 17; ++i) {
      const int layer = i / (experts * 17), place = i % (experts * 17);
      const std::int64_t cell = so_far[static_cast<std::size_t>(i)];
      if (layer > l || place >= of_layer[layer] * 17) CHECK(cell == 0);
      if (layer == l && place >= own) margins += cell;
    }
    CHECK(margins == 40 * own);
  }
  router.update(mb::BiasRef(bias.data(), experts, layers), all, {}, engine.place());
  engine.wait();
  const std::vector<float> moved = bias.values();
  for (int l = 0; l < layers; ++l) {
    const auto first = moved.begin() + l * experts;
    CHECK(std::vector<float>(first, first + of_layer[l]) == alone[static_cast<std::size_t>(l)]);
    CHECK(std::vector<float>(first + of_layer[l], first + experts) ==
          std::vector<float>(start.begin() + l * experts + of_layer[l], start.begin() + (l + 1) * experts));
  }
  CHECK(load.values() == zero_load(layers * experts * 17));
}

TEST_CASE_TEMPLATE_DEFINE("ZLoss: mean over active tokens of the squared log-sum-exp", Engine, z_loss_value) {
  Inputs inputs = rows_of_constant(5, 8, 1.0);
  const double want = 0.5 * std::pow(1 + std::log(8.0), 2);
  CHECK(agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::ZLoss{.coefficient = 0.5f}).loss ==
        doctest::Approx(want).epsilon(2e-6));
  inputs.active = {1, 0, 1, 1, 0};
  CHECK(agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, mb::ZLoss{.coefficient = 0.5f}).loss ==
        doctest::Approx(want).epsilon(2e-6));
}

TEST_CASE_TEMPLATE_DEFINE("ZLoss: a small coefficient keeps its digits", Engine, z_loss_small) {
  const Inputs inputs = rows_of_constant(5, 8, 1.0);
  for (const float coefficient : {1e-4f, 1e-5f, 1e-6f}) {
    CAPTURE(coefficient);
    const double want = static_cast<double>(coefficient) * std::pow(1 + std::log(8.0), 2);
    const Outcome outcome =
        train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::ZLoss{.coefficient = coefficient}}, inputs);
    CHECK(std::abs(static_cast<double>(outcome.loss) - want) <= 1e-5 * want);
  }
}

TEST_CASE_TEMPLATE_DEFINE("Combine: losses add, parts come in its order, and a bias part has none", Engine, combine_parts) {
  const mb::Combine balancer = everything();
  const mb::TopK<4> top_k{};
  Inputs inputs = full_inputs(83, 40, 24, 4);
  inputs.sequences = 4;
  const Outcome outcome = agrees(Engine(), mb::Softmax{}, top_k, inputs, balancer);
  const oracle::Problem problem = problem_of(mb::Softmax{}, top_k, inputs);
  const std::vector<int> ids(outcome.experts.begin(), outcome.experts.end());
  oracle::Surroundings around;
  around.sequences = 4;
  around.sequence_of_token = sequence_of_tokens(inputs);
  around.accumulated = outcome.load;
  const Losses losses = losses_of(balancer, 24, 4);
  REQUIRE(losses.size() == outcome.parts.size());
  double sum = 0;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    const double want = oracle::loss_value(problem, ids, oracle::evaluate(problem, ids), losses[i], around);
    CHECK(outcome.parts[i] == doctest::Approx(want).epsilon(3e-6).scale(0));
    sum += static_cast<double>(outcome.parts[i]);
  }
  CHECK(outcome.loss == doctest::Approx(sum).epsilon(1e-6).scale(0));
}

TEST_CASE_TEMPLATE_DEFINE("grad_loss and loss_scale multiply the loss's gradient and leave the weights' alone", Engine,
                          loss_scales) {
  const mb::AuxLoss balancer{.coefficient = 0.5f};
  const mb::TopK<4> top_k{};
  Inputs inputs = normal_inputs(84, 40, 24, 4, 1.0);
  inputs.loss_scale = -3.0f;
  inputs.grad_loss = 0.5f;
  agrees(Engine(), mb::Softmax{}, top_k, inputs, balancer);
  inputs.loss_scale = 0.0f;
  inputs.grad_loss.reset();
  const Outcome none = agrees(Engine(), mb::Softmax{}, top_k, inputs, balancer);
  CHECK(none.grad_bytes == train(Engine(), mb::Router{mb::Softmax{}, top_k}, inputs).grad_bytes);
}

/// Replay may leave all of a token's slots empty: its weights are 0, its losses and their gradient are those of any active token.
TEST_CASE_TEMPLATE_DEFINE("a token without experts keeps its losses and their gradient", Engine, token_without_experts) {
  Inputs inputs = normal_inputs(91, 12, 10, 2, 0.5);
  inputs.replay_experts = std::vector<std::int32_t>(24, -1);
  for (std::size_t i = 8; i < 24; ++i) inputs.replay_experts[i] = static_cast<std::int32_t>(i % 2 + i % 5);
  inputs.loss_parts = 2;
  const mb::Combine balancer{mb::AuxLoss{.coefficient = 1.0f}, mb::ZLoss{.coefficient = 0.5f}};
  const Outcome outcome = agrees(Engine(), mb::Sigmoid{}, mb::Replay{mb::TopK<2>{}}, inputs, balancer);
  bool has_gradient = false;
  for (std::size_t e = 0; e < 10; ++e) has_gradient = has_gradient || outcome.grad_logits[e] != 0;
  CHECK(has_gradient);
  CHECK(outcome.weights[0] == 0);
}

}  // namespace testing
