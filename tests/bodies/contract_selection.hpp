// CONTRACT.md, "Selection": lines 1 to 6.
#pragma once

#include "everything.hpp"

#include <bit>
#include <limits>

namespace testing {

inline constexpr double inf = std::numeric_limits<double>::infinity();
inline constexpr double nan = std::numeric_limits<double>::quiet_NaN();

inline Inputs rows(int experts, std::vector<double> logits) {
  Inputs inputs;
  inputs.experts = experts;
  inputs.tokens = static_cast<std::int64_t>(logits.size()) / experts;
  inputs.logits = std::move(logits);
  return inputs;
}

using Ids = std::vector<std::int32_t>;

/// Every active token: K distinct ids in [0, E); every other: -1.
inline void check_ids(const Outcome& outcome, const Inputs& inputs, int k) {
  bool sound = outcome.experts.size() == static_cast<std::size_t>(inputs.tokens * k);
  for (std::size_t t = 0; sound && t < static_cast<std::size_t>(inputs.tokens); ++t) {
    const bool active = inputs.active.empty() || inputs.active[t] != 0;
    std::vector<bool> seen(static_cast<std::size_t>(inputs.experts), false);
    for (std::size_t i = 0; i < static_cast<std::size_t>(k); ++i) {
      const std::int32_t id = outcome.experts[t * static_cast<std::size_t>(k) + i];
      if (!active) {
        sound = sound && id == -1;
        continue;
      }
      sound = sound && id >= 0 && id < inputs.experts && !seen[static_cast<std::size_t>(id)];
      if (sound) seen[static_cast<std::size_t>(id)] = true;
    }
  }
  CHECK(sound);
}

/// Against the oracle where both hold every ranking value exactly, so that each order is decided.
template <class Selection>
void check_exact_ids(const Outcome& outcome, const Selection& selection, const Inputs& inputs) {
  const oracle::Problem problem = problem_of(mb::Identity{}, selection, inputs);
  const std::string difference =
      oracle::check_selection(problem, {outcome.experts.begin(), outcome.experts.end()}, oracle::exact_resolution)
          .first_difference;
  CHECK_MESSAGE(difference.empty(), difference);
}

TEST_CASE_TEMPLATE_DEFINE("contract 1: experts are ranked by score + bias and weights read the raw score", Engine,
                          contract_1) {
  const Engine engine;
  const mb::Router replaying{mb::Sigmoid{}, mb::Replay{mb::TopK<4>{}}};
  for (const double deviation : {0.1, 1.0, 1e7}) {
    CAPTURE(deviation);
    Inputs inputs = normal_inputs(1, 50, 60, 4);
    inputs.bias = normal_bias(2, 60, deviation);
    const Outcome biased = agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, inputs);
    const Outcome unbiased = agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, normal_inputs(1, 50, 60, 4));
    CHECK(biased.experts != unbiased.experts);
    inputs.bias.clear();
    inputs.replay_experts = biased.experts;
    CHECK(route(engine, replaying, inputs).weights_bytes == biased.weights_bytes);
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 1: SoftmaxOverSelected ranks by logit + bias", Engine, contract_1_logits) {
  Inputs inputs = normal_inputs(3, 50, 60, 4);
  inputs.bias = normal_bias(4, 60, 1.0);
  agrees(Engine(), mb::SoftmaxOverSelected{}, mb::TopK<4>{}, inputs);
  // logit + bias puts expert 1 first; softmax + bias would put expert 0 first.
  Inputs apart = rows(4, {3.0, 0.0, -1.0, -2.0});
  apart.bias = {0.0f, 4.0f, 0.0f, 0.0f};
  apart.backward = false;
  const Outcome outcome = train(Engine(), mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<4>{}}, apart);
  CHECK(outcome.experts == Ids{1, 0, 2, 3});
}

TEST_CASE_TEMPLATE_DEFINE("contract 2: larger first, equal values by smaller id, ids in that order", Engine, contract_2) {
  const Engine engine;
  const mb::Router router{mb::Identity{}, mb::TopK<4>{}};
  CHECK(route(engine, router, rows(6, {1, 3, 2, 3, 0, 2})).experts == Ids{1, 3, 2, 5});
  for (const int experts : {4, 5, 31, 32, 33, 64, 65, 160, 257, 1024, 2048}) {
    CAPTURE(experts);
    Random random(static_cast<std::uint64_t>(experts));
    Inputs inputs = normal_inputs(5, 40, experts, 4);
    for (double& logit : inputs.logits) logit = 0.5 * random.integer(-2, 2);
    check_exact_ids(route(engine, router, inputs), mb::TopK<4>{}, inputs);
    inputs.bias.assign(static_cast<std::size_t>(experts), 0.0f);
    for (float& bias : inputs.bias) bias = 0.5f * static_cast<float>(random.integer(-1, 1));
    check_exact_ids(route(engine, router, inputs), mb::TopK<4>{}, inputs);
    inputs.logits.assign(inputs.logits.size(), 0.75);
    inputs.bias.clear();
    check_exact_ids(route(engine, router, inputs), mb::TopK<4>{}, inputs);
    inputs.backward = false;
    for (const Outcome& equal :
         {agrees(engine, mb::Softmax{}, mb::TopK<4>{}, inputs), agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, inputs),
          agrees(engine, mb::SqrtSoftplus{}, mb::TopK<4>{}, inputs)}) {
      CHECK(Ids(equal.experts.begin(), equal.experts.begin() + 4) == Ids{0, 1, 2, 3});
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 2: equal group scores go to the smaller group", Engine, contract_2_groups) {
  const mb::GroupLimitedTopK<4> selection{.groups = 8, .groups_kept = 3, .group_score_top = 2};
  const mb::Router router{mb::Identity{}, selection};
  Random random(7);
  for (const int experts : {16, 64, 160, 512}) {
    Inputs inputs = normal_inputs(6, 60, experts, 4);
    for (double& logit : inputs.logits) logit = 0.5 * random.integer(-2, 2);
    check_exact_ids(route(Engine(), router, inputs), selection, inputs);
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 3: any bits in the logits give K distinct ids in [0, E)", Engine, contract_3) {
  const Engine engine;
  Random random(8);
  const double largest = std::numeric_limits<float>::max();
  const std::vector<double> special{0.0, -0.0, inf, -inf, nan, -nan, largest, -largest, 1e-45, -1e-45, 1e-38, 1.0};
  for (const int experts : {4, 9, 33, 64, 257}) {
    CAPTURE(experts);
    Inputs inputs = normal_inputs(9, 60, experts, 4);
    const std::vector<float> bits = random.any_floats(inputs.logits.size());
    for (std::size_t i = 0; i < bits.size(); ++i) {
      inputs.logits[i] = i % 2 == 0 ? static_cast<double>(bits[i]) : special[random.bits() % special.size()];
    }
    inputs.active = random.flags(60, 0.1);
    check_exact_ids(route(engine, mb::Router{mb::Identity{}, mb::TopK<4>{}}, inputs), mb::TopK<4>{}, inputs);
    const auto finite_and_distinct = [&](const auto& scoring) {
      const Outcome outcome = train(engine, mb::Router{scoring, mb::TopK<4>{}}, inputs);
      check_ids(outcome, inputs, 4);
      for (const double weight : outcome.weights) CHECK(std::isfinite(weight));
      for (const double gradient : outcome.grad_logits) CHECK(!std::isnan(gradient));
    };
    finite_and_distinct(mb::Identity{});
    finite_and_distinct(mb::Softmax{});
    finite_and_distinct(mb::SoftmaxOverSelected{});
    finite_and_distinct(mb::Sigmoid{});
    finite_and_distinct(mb::SqrtSoftplus{});
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 3: NaN ranks below -inf, and -0 equals +0", Engine, contract_3_order) {
  const mb::Router router{mb::Identity{}, mb::TopK<4>{}};
  CHECK(route(Engine(), router, rows(5, {nan, -inf, 1, nan, -nan})).experts == Ids{2, 1, 0, 3});
  CHECK(route(Engine(), router, rows(5, {-nan, nan, nan, -inf, inf})).experts == Ids{4, 3, 0, 1});
  CHECK(route(Engine(), router, rows(5, {-0.0, 0.0, -0.0, 0.0, -1})).experts == Ids{0, 1, 2, 3});
  CHECK(route(Engine(), router, rows(5, {0.0, -0.0, 1, -0.0, 0.0})).experts == Ids{2, 0, 1, 3});
  Inputs negative_zero_bias = rows(5, {-0.0, 0.0, -0.0, 0.0, -1});
  negative_zero_bias.bias.assign(5, -0.0f);
  CHECK(route(Engine(), router, negative_zero_bias).experts == Ids{0, 1, 2, 3});
  CHECK(route(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}}, rows(5, {nan, -inf, 1, -200, nan})).experts ==
        Ids{2, 1, 3, 0});
  CHECK(route(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}}, rows(5, {nan, -inf, 1, 0, nan})).experts ==
        Ids{2, 3, 1, 0});
}

TEST_CASE_TEMPLATE_DEFINE("contract 3: an excluded expert ranks below NaN", Engine, contract_3_excluded) {
  const mb::GroupLimitedTopK<4> selection{.groups = 2, .groups_kept = 1, .group_score_top = 1};
  const mb::Router router{mb::Identity{}, selection};
  CHECK(route(Engine(), router, rows(8, {nan, 5, nan, nan, 4, 4, 4, 4})).experts == Ids{1, 0, 2, 3});
  CHECK(route(Engine(), router, rows(8, {-1, -2, -3, -4, nan, nan, -0.5, nan})).experts == Ids{6, 4, 5, 7});
  CHECK(route(Engine(), router, rows(8, {nan, nan, nan, nan, -inf, nan, nan, nan})).experts == Ids{4, 5, 6, 7});
  // Negative values in the kept group still beat a dropped group (peers that masked with 0 got this wrong).
  CHECK(route(Engine(), router, rows(8, {-1, -9, -9, -8, -2, -2, -2, -2})).experts == Ids{0, 3, 1, 2});
  Random random(10);
  Inputs inputs = normal_inputs(11, 80, 64, 4);
  for (double& logit : inputs.logits) {
    if (random.chance(0.6)) logit = random.chance(0.5) ? nan : -inf;
  }
  const mb::GroupLimitedTopK<4> wider{.groups = 8, .groups_kept = 2, .group_score_top = 2};
  check_exact_ids(route(Engine(), mb::Router{mb::Identity{}, wider}, inputs), wider, inputs);
}

TEST_CASE_TEMPLATE_DEFINE(
    "contract 4: a non-finite logit among the chosen gives weights 0, gradient 0 and a count in status", Engine,
    contract_4) {
  const Engine engine;
  Inputs inputs = full_inputs(12, 40, 12, 4);
  const auto poke = [&](int token, int expert, double value) {
    inputs.logits[static_cast<std::size_t>(token * 12 + expert)] = value;
  };
  inputs.active.assign(40, 1);
  inputs.active[7] = 0;
  for (int e = 0; e < 12; ++e) poke(0, e, nan);
  for (int e = 0; e < 12; ++e) poke(1, e, -inf);
  for (int e = 3; e < 12; ++e) poke(2, e, e % 2 == 0 ? nan : -inf);  // three finite logits, K = 4
  poke(3, 5, inf);
  for (int e = 0; e < 12; ++e) poke(7, e, nan);  // inactive: not counted
  for (int e = 4; e < 12; ++e) poke(8, e, nan);  // exactly K finite: an ordinary token
  for (int e = 8; e < 12; ++e) poke(9, e, -inf);
  const Outcome outcome = agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, inputs, everything());
  CHECK(outcome.status.non_finite_tokens == 4);
  for (std::size_t t : {0u, 1u, 2u, 3u}) {
    for (std::size_t k = 0; k < 4; ++k) CHECK(outcome.weights[t * 4 + k] == 0);
    for (std::size_t e = 0; e < 12; ++e) CHECK(outcome.grad_logits[t * 12 + e] == 0);
  }
  CHECK(outcome.weights[8 * 4] > 0);

  inputs.bias.clear();
  inputs.load.clear();
  poke(9, 3, 400.0);
  poke(10, 3, -400.0);
  for (const Outcome& other :
       {agrees(engine, mb::SoftmaxOverSelected{}, mb::TopK<4>{}, inputs),
        agrees(engine, mb::Softmax{}, mb::TopK<4>{}, inputs), agrees(engine, mb::SqrtSoftplus{}, mb::TopK<4>{}, inputs)}) {
    CHECK(other.status.non_finite_tokens == 4);
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 4: status is added to, never cleared", Engine, contract_4_status) {
  const Engine engine;
  const Inputs inputs = rows(4, {nan, 1, 2, 3, 1, 2, 3, 4, inf, 0, 0, 0});
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}};
  Memory<Engine> memory = memory_for(engine, router, inputs);
  router.forward(memory.forward_args(), memory.workspace(), engine.place());
  CHECK(memory.outcome().status.non_finite_tokens == 2);
  router.route(memory.route_args(), memory.workspace(), engine.place());
  CHECK(memory.outcome().status.non_finite_tokens == 4);
}

TEST_CASE_TEMPLATE_DEFINE("contract 5: an inactive token gets ids -1, weights 0, no count, no loss, gradient 0", Engine,
                          contract_5) {
  const Engine engine;
  Inputs inputs = full_inputs(13, 60, 16, 4);
  for (std::size_t t = 0; t < 60; ++t) {
    if (inputs.active[t] == 0) inputs.logits[t * 16 + t % 16] = t % 2 == 0 ? nan : 1e30;  // nothing of it may leak
  }
  const Outcome with_padding = agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, inputs, everything());
  check_ids(with_padding, inputs, 4);

  // The same active tokens without the padding between them: same counts, same loss, bit for bit.
  Inputs dense = inputs;
  dense.tokens = 0;
  dense.logits.clear();
  dense.grad_weights.clear();
  dense.active.clear();
  for (std::size_t t = 0; t < 60; ++t) {
    if (inputs.active[t] == 0) continue;
    ++dense.tokens;
    for (std::size_t e = 0; e < 16; ++e) dense.logits.push_back(inputs.logits[t * 16 + e]);
    for (std::size_t k = 0; k < 4; ++k) dense.grad_weights.push_back(inputs.grad_weights[t * 4 + k]);
  }
  const Outcome without = agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, dense, everything());
  CHECK(without.counts == with_padding.counts);
  CHECK(without.load == with_padding.load);
  CHECK(without.loss == with_padding.loss);
  std::size_t row = 0;
  for (std::size_t t = 0; t < 60; ++t) {
    const bool active = inputs.active[t] != 0;
    bool same = true;
    for (std::size_t k = 0; k < 4; ++k)
      same = same && with_padding.weights[t * 4 + k] == (active ? without.weights[row * 4 + k] : 0.0);
    for (std::size_t e = 0; e < 16; ++e) {
      same = same && with_padding.grad_logits[t * 16 + e] == (active ? without.grad_logits[row * 16 + e] : 0.0);
    }
    CHECK(same);
    row += active ? 1 : 0;
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 5: a batch of padding only has loss 0 and no NaN", Engine, contract_5_all) {
  Inputs inputs = full_inputs(14, 9, 16, 4);
  inputs.active.assign(9, 0);
  const Outcome outcome = agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, everything());
  CHECK(outcome.loss == 0.0f);
  CHECK(outcome.load == inputs.load);
}

TEST_CASE_TEMPLATE_DEFINE("contract 6: K = E, K = 1, E = 1, one token, any E", Engine, contract_6) {
  const Engine engine;
  agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, full_inputs(15, 30, 4, 4), everything());
  for (const int experts : {1, 2, 3, 7, 60}) {
    Inputs inputs = normal_inputs(16, 30, experts, 1);
    agrees(engine, mb::Softmax{}, mb::TopK<1>{}, inputs, mb::AuxLoss{.coefficient = 0.5f});
  }
  for (const int experts :
       {5, 13, 60, 63, 64, 65, 127, 128, 129, 160, 257, 384, 512, 513, 896, 1000, 1024, 1025, 2047, 2048}) {
    CAPTURE(experts);
    agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, full_inputs(17, experts < 300 ? 20 : 5, experts, 4), everything());
  }
  agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, full_inputs(18, 1, 160, 4), everything());
}

TEST_CASE_TEMPLATE_DEFINE("contract 6: all logits equal and all -inf are defined", Engine, contract_6_equal) {
  const Engine engine;
  Inputs inputs = full_inputs(19, 12, 16, 4);
  inputs.bias.assign(16, 0.0f);
  inputs.logits.assign(inputs.logits.size(), -3.25);
  agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, inputs, everything());
  inputs.logits.assign(inputs.logits.size(), -inf);
  const Outcome outcome = agrees(engine, mb::Sigmoid{}, mb::TopK<4>{}, inputs, everything());
  CHECK(outcome.loss == 0.0f);
  inputs.load.clear();
  inputs.bias.clear();
  for (const Outcome& softmax : {agrees(engine, mb::Softmax{}, mb::TopK<4>{}, inputs),
                                 agrees(engine, mb::SoftmaxOverSelected{}, mb::TopK<4>{}, inputs)}) {
    for (std::size_t t = 0; t < 12; ++t) {
      if (inputs.active[t] != 0)
        CHECK(Ids(softmax.experts.begin() + static_cast<std::ptrdiff_t>(4 * t),
                  softmax.experts.begin() + static_cast<std::ptrdiff_t>(4 * t + 4)) == Ids{0, 1, 2, 3});
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 6: T = 0 clears outputs and writes a loss of 0", Engine, contract_6_no_tokens) {
  Inputs inputs = full_inputs(20, 0, 16, 4);
  const Outcome outcome = agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, everything());
  CHECK(outcome.counts == zero_load(16));
  CHECK(outcome.load == inputs.load);
  CHECK(outcome.loss == 0.0f);
  for (const float part : outcome.parts) CHECK(part == 0.0f);
  CHECK(route(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}}, inputs).counts == zero_load(16));
}

}  // namespace testing
