// CONTRACT.md, "Running": lines 13 and 15, and how views and state lie in memory (line 14 is errors.hpp; 12 needs a GPU).
#pragma once

#include "everything.hpp"

namespace testing {

TEST_CASE_TEMPLATE_DEFINE("contract 13: rows from *tokens_on_device on are inactive", Engine, contract_13) {
  for (const std::int64_t tokens : {0, 1, 17, 39, 40, 41, 1000}) {
    CAPTURE(tokens);
    Inputs inputs = full_inputs(41, 40, 64, 4);
    inputs.tokens_on_device = tokens;
    const Outcome outcome = agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, everything());
    const Outcome inference = route(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, everything()}, inputs);
    CHECK(inference.experts == outcome.experts);
    CHECK(inference.weights_bytes == outcome.weights_bytes);
    CHECK(inference.counts == outcome.counts);
    inputs.active.clear();
    agrees(Engine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, everything());
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 15: accumulate = false leaves the load alone and changes nothing else", Engine,
                          contract_15) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::Combine{mb::AuxLoss{}, mb::LossFreeBias{}}};
  Inputs inputs = full_inputs(42, 40, 64, 4);
  inputs.loss_parts = 1;
  const Outcome training = train(Engine(), router, inputs);
  for (std::size_t e = 0; e < 64; ++e) CHECK(training.load[e] == inputs.load[e] + training.counts[e]);
  inputs.accumulate = false;
  Outcome again = train(Engine(), router, inputs);
  CHECK(again.load == inputs.load);
  CHECK(again.bias == inputs.bias);
  again.load = training.load;
  CHECK(same_bits(again, training));
}

TEST_CASE_TEMPLATE_DEFINE("contract 15: recomputing a forward after it was counted gives the same gradient", Engine,
                          contract_15_again) {
  // Activation checkpointing: the second forward finds its own counts in the load.
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
  const Inputs inputs = full_inputs(43, 40, 64, 4);
  const Outcome first = train(engine, router, inputs);
  Inputs recomputed = inputs;
  recomputed.load = first.load;
  recomputed.accumulate = false;
  CHECK(same_bits(train(engine, router, recomputed), first));
}

TEST_CASE_TEMPLATE_DEFINE("contract 15: route and backward touch neither bias nor load", Engine, contract_15_route) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
  const Inputs inputs = full_inputs(44, 40, 64, 4);
  Memory<Engine> memory = memory_for(engine, router, inputs);
  router.route(memory.route_args(), memory.workspace(), engine.place());
  CHECK(memory.outcome().load == inputs.load);
  CHECK(memory.outcome().bias == inputs.bias);
  router.forward(memory.forward_args(), memory.workspace(), engine.place());
  const Outcome after_forward = memory.outcome();
  router.backward(memory.backward_args(), memory.workspace(), engine.place());
  router.loss(memory.loss_args(), memory.workspace(), engine.place());
  CHECK(memory.outcome().load == after_forward.load);
  CHECK(memory.outcome().bias == inputs.bias);
}

TEST_CASE_TEMPLATE_DEFINE("contract 15: a forward adds to the load once, however often its backward runs", Engine,
                          contract_15_twice) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
  const Inputs inputs = full_inputs(45, 40, 64, 4);
  Memory<Engine> memory = memory_for(engine, router, inputs);
  router.forward(memory.forward_args(), memory.workspace(), engine.place());
  router.backward(memory.backward_args(), memory.workspace(), engine.place());
  const Outcome once = memory.outcome();
  router.backward(memory.backward_args(), memory.workspace(), engine.place());
  CHECK(same_bits(memory.outcome(), once));
}

TEST_CASE_TEMPLATE_DEFINE("route gives the ids, weights and counts of forward", Engine, route_is_forward) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
  const Inputs inputs = full_inputs(46, 40, 160, 4);
  const Outcome training = train(Engine(), router, inputs);
  const Outcome inference = route(Engine(), router, inputs);
  CHECK(inference.experts == training.experts);
  CHECK(inference.weights_bytes == training.weights_bytes);
  CHECK(inference.counts == training.counts);
}

TEST_CASE_TEMPLATE_DEFINE(
    "Replay: ids are taken as given, weights come from the scores, invalid ids are counted and treated as -1", Engine,
    replay_ids) {
  const mb::Replay replay{mb::TopK<4>{.scaling_factor = 2.5f}};
  Inputs inputs = normal_inputs(49, 30, 24, 4);
  inputs.bias = normal_bias(50, 24, 5.0);
  inputs.active = Random(51).flags(30, 0.2);
  inputs.active[0] = 0;  // what an inactive token brings is not looked at
  inputs.active[1] = inputs.active[2] = inputs.active[3] = inputs.active[4] = 1;
  inputs.replay_experts = replayed_ids(52, 30, 24, 4);
  const auto given = [&](int token, std::int32_t a, std::int32_t b, std::int32_t c, std::int32_t d) {
    const std::int32_t ids[] = {a, b, c, d};
    std::copy(ids, ids + 4, inputs.replay_experts.begin() + token * 4);
  };
  given(0, 99, 99, 99, 99);
  given(1, 23, -1, 0, -1);
  given(2, 24, 5, -2, 7);
  given(3, -1, -1, -1, -1);
  given(4, 2147483647, -2147483647 - 1, 3, 1);
  const Outcome outcome = agrees(Engine(), mb::Sigmoid{}, replay, inputs);
  CHECK(outcome.status.invalid_experts == 4);
  CHECK(outcome.experts[8] == -1);
  CHECK(outcome.experts[9] == 5);
  CHECK(outcome.weights[12] == 0);

  inputs.replay_tokens = Random(53).flags(30, 0.5);
  for (std::size_t t = 0; t < 5; ++t) inputs.replay_tokens[t] = 0;
  CHECK(agrees(Engine(), mb::Sigmoid{}, replay, inputs).status.invalid_experts == 0);
}

TEST_CASE_TEMPLATE_DEFINE("rows may be longer than their content, and what lies between them stays as it was", Engine,
                          row_strides) {
  for (const std::int64_t padding : {1, 3, 4, 8, 64}) {
    CAPTURE(padding);
    for (const int experts : {16, 60, 257}) {
      for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16}) {
        Inputs inputs = with_types(full_inputs(47, 20, experts, 4), type, type, type);
        const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
        const Outcome dense = train(Engine(), router, inputs);
        inputs.row_padding = padding;
        const Outcome spread = train(Engine(), router, inputs);
        CHECK(spread.padding_untouched);
        CHECK(same_bits(dense, spread));
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("state of many layers lies in one block: each forward touches its own layer, update all of them",
                          Engine, many_layers) {
  const Engine engine;
  constexpr int experts = 12;
  constexpr std::int64_t layers = 5;
  constexpr std::int64_t stride = 16;
  constexpr float outside = 99.0f;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::LossFreeBias{.update_rate = 0.25f}};
  std::vector<float> bias_values(layers * stride, outside);
  std::vector<std::int64_t> load_values(layers * stride, 77);
  for (std::int64_t l = 0; l < layers; ++l) {
    for (int e = 0; e < experts; ++e) {
      bias_values[static_cast<std::size_t>(l * stride + e)] = 0.125f * static_cast<float>((e + l) % 3);
      load_values[static_cast<std::size_t>(l * stride + e)] = 0;
    }
  }
  typename Engine::template Array<float> bias(engine, bias_values);
  typename Engine::template Array<std::int64_t> load(engine, load_values);
  const mb::BiasRef bias_ref{bias.data(), experts, layers, stride};
  const mb::LoadRef load_ref{load.data(), experts, layers, stride};

  std::vector<double> want_bias(bias_values.begin(), bias_values.end());
  for (std::int64_t l = 0; l < layers; ++l) {
    Inputs inputs = normal_inputs(48 + static_cast<std::uint64_t>(l), 30, experts, 4, 2.0);
    Memory<Engine> memory = memory_for(engine, router, inputs);
    mb::ForwardArgs args = memory.forward_args();
    args.bias = bias_ref.layer(l);
    args.load = load_ref.layer(l);
    router.forward(args, memory.workspace(), engine.place());
    const Outcome outcome = memory.outcome();
    const std::ptrdiff_t first = l * stride;
    inputs.bias.assign(bias_values.begin() + first, bias_values.begin() + first + experts);
    const oracle::Problem problem = problem_of(mb::Sigmoid{}, mb::TopK<4>{}, inputs);
    const std::vector<oracle::Int> counts = oracle::evaluate(problem, oracle::choose(problem)).counts;
    CHECK(outcome.counts == counts);
    std::copy(counts.begin(), counts.end(), load_values.begin() + first);
    CHECK(load.values() == load_values);
    const std::vector<double> next =
        oracle::next_bias({inputs.bias.begin(), inputs.bias.end()}, counts, 0.25, oracle::Centring::none);
    std::copy(next.begin(), next.end(), want_bias.begin() + first);
  }
  const std::size_t bytes = router.workspace_bytes(mb::Shape{.tokens = 0, .experts = experts});
  typename Engine::template Array<std::max_align_t> scratch(
      engine, std::vector<std::max_align_t>(bytes / sizeof(std::max_align_t) + 1));
  router.update(bias_ref, load_ref, mb::Workspace{scratch.data(), bytes}, engine.place());
  engine.wait();
  const std::vector<float> got = bias.values();
  CHECK(std::vector<double>(got.begin(), got.end()) == want_bias);
  for (std::int64_t l = 0; l < layers; ++l) {
    for (int e = 0; e < experts; ++e) load_values[static_cast<std::size_t>(l * stride + e)] = 0;
  }
  CHECK(load.values() == load_values);
}

TEST_CASE_TEMPLATE_DEFINE(
    "layers with different numbers of experts share a block: each balances its own, the whole row is cleared", Engine,
    different_layers) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{},
                          mb::LossFreeBias{.update_rate = 0.5f, .centring = mb::Centring::bias}};
  typename Engine::template Array<std::int32_t> experts(engine, {4, 2, 3});
  typename Engine::template Array<std::int64_t> load(engine, {9, 1, 1, 1, 3, 5, 77, 77, 0, 6, 0, 77});
  typename Engine::template Array<float> bias(engine, {0, 0, 0, 0, 1, 1, 9, 9, 0, 0, 0, 9});
  mb::LoadRef block{load.data(), 4, 3};
  block.experts_of_layer = experts.data();
  router.update(mb::BiasRef{bias.data(), 4, 3}, block, {}, engine.place());
  engine.wait();
  const float third = 0.5f / 3;
  const std::vector<float> got = bias.values();
  const std::vector<float> want{-0.75f, 0.25f, 0.25f,        0.25f,         0.5f,         -0.5f,
                                9,      9,     0.5f - third, -0.5f - third, 0.5f - third, 9};
  for (std::size_t i = 0; i < want.size(); ++i) CHECK(got[i] == doctest::Approx(want[i]).epsilon(1e-6).scale(0));
  CHECK(load.values() == std::vector<std::int64_t>(12, 0));
}

}  // namespace testing
