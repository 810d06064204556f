// CONTRACT.md lines 12 and 13 on a GPU: calls only enqueue, so a CUDA graph captures them; one graph serves many batch sizes.
#include "cuda_graph.cuh"

#include "bodies/everything.hpp"

#include <cmath>
#include <numeric>

namespace testing {

namespace {

const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};

}  // namespace

TEST_CASE("contract 12: forward, loss and backward are captured in a CUDA graph and replay with the same bits") {
  const CudaEngine engine;
  const Inputs inputs = full_inputs(121, 200, 160, 4);
  const Outcome direct = train(engine, router, inputs);
  Memory<CudaEngine> memory = memory_for(engine, router, inputs);
  const auto graph = captured(engine, [&] {
    router.forward(memory.forward_args(), memory.workspace(), engine.place());
    router.loss(memory.loss_args(), memory.workspace(), engine.place());
    router.backward(memory.backward_args(), memory.workspace(), engine.place());
  });
  CHECK(memory.outcome().load == inputs.load);  // captured, not run
  replay(engine, graph);
  CHECK(same_bits(memory.outcome(), direct));
  replay(engine, graph);
  const Outcome twice = memory.outcome();
  for (std::size_t e = 0; e < 160; ++e) CHECK(twice.load[e] == inputs.load[e] + 2 * direct.counts[e]);
}

TEST_CASE("contract 12: few tokens, counts and sums included, are one node of a graph, which replays with the same bits") {
  const CudaEngine engine;
  const mb::Router small{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}};
  int major = 0;
  cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "cudaDeviceGetAttribute");
  for (const std::int64_t tokens : {0, 1, 8, 9, 57, 64, 65}) {
    CAPTURE(tokens);
    const Inputs inputs = normal_inputs(124, tokens, 256, 8);
    Memory<CudaEngine> direct = memory_for(engine, small, inputs);
    small.forward(direct.forward_args(), direct.workspace(), engine.place());
    const Outcome want = direct.outcome();
    const std::int64_t assignments = std::accumulate(want.counts.begin(), want.counts.end(), std::int64_t{0});
    CHECK(assignments == 8 * tokens);
    Memory<CudaEngine> memory = memory_for(engine, small, inputs);
    const auto enqueue = [&] { small.forward(memory.forward_args(), memory.workspace(), engine.place()); };
    const bool clears = tokens <= 8 || (tokens <= 64 && major >= 9);  // 8 tokens a block, 8 blocks a cluster
    const std::size_t nodes = clears ? 1 : 2;  // or a kernel that clears counts and sums, and routing behind it
    CHECK(nodes_of(graph_of(engine, enqueue)) == nodes);
    const auto graph = captured(engine, enqueue);
    for (int i = 0; i < 3; ++i) {
      replay(engine, graph);
      CHECK(same_bits(memory.outcome(), want));
    }
  }
}

TEST_CASE("contract 12: margins are counted by a node of a graph, of many tokens by two, and replay to the same counts") {
  const CudaEngine engine;
  const mb::Router with_margins{mb::Softmax{}, mb::TopK<4>{}, mb::QuantileBias{.bins = 50}};
  for (const std::int64_t tokens : {500, 3000}) {
    CAPTURE(tokens);
    Inputs inputs = normal_inputs(125, tokens, 64, 4);
    inputs.bias = normal_bias(126, 64, 0.01);
    inputs.load = zero_load(64 * 51);
    inputs.backward = false;
    const Outcome want = train(engine, with_margins, inputs);
    Memory<CudaEngine> memory = memory_for(engine, with_margins, inputs);
    const auto enqueue = [&] { with_margins.forward(memory.forward_args(), memory.workspace(), engine.place()); };
    CHECK(nodes_of(graph_of(engine, enqueue)) == (tokens == 500 ? 3 : 4));  // what clears counts, routing, and margins
    const auto graph = captured(engine, enqueue);
    replay(engine, graph);
    CHECK(memory.outcome().load == want.load);
    replay(engine, graph);
    const Outcome twice = memory.outcome();
    for (std::size_t i = 0; i < want.load.size(); ++i) CHECK(twice.load[i] == 2 * want.load[i]);
  }
}

TEST_CASE("contract 12: route and update are captured in a CUDA graph") {
  const CudaEngine engine;
  const Inputs inputs = full_inputs(122, 200, 160, 4);
  Memory<CudaEngine> memory = memory_for(engine, router, inputs);
  const mb::ForwardArgs args = memory.forward_args();
  const auto graph = captured(engine, [&] {
    router.route(memory.route_args(), memory.workspace(), engine.place());
    router.update(args.bias, args.load, memory.workspace(), engine.place());
  });
  replay(engine, graph);
  const Outcome outcome = memory.outcome();
  CHECK(outcome.experts == route(engine, router, inputs).experts);
  CHECK(outcome.load == zero_load(160));
  const std::vector<double> want =
      oracle::next_bias({inputs.bias.begin(), inputs.bias.end()}, inputs.load, 1e-3, oracle::Centring::none);
  for (std::size_t e = 0; e < 160; ++e) {
    const double rounding = 1.2e-7 * (std::abs(static_cast<double>(inputs.bias[e])) + 1e-3);
    CHECK(std::abs(static_cast<double>(outcome.bias[e]) - want[e]) <= rounding);
  }
}

TEST_CASE("contract 13: one captured graph serves every batch size through tokens_on_device") {
  const CudaEngine engine;
  Inputs inputs = full_inputs(123, 200, 160, 4);
  inputs.tokens_on_device = 200;
  Memory<CudaEngine> memory = memory_for(engine, router, inputs);
  CudaEngine::Array<std::int64_t> tokens(engine, {200});
  mb::ForwardArgs forward = memory.forward_args();
  forward.tokens_on_device = tokens.data();
  forward.accumulate = false;
  mb::BackwardArgs backward = memory.backward_args();
  backward.tokens_on_device = tokens.data();
  const auto graph = captured(engine, [&] {
    router.forward(forward, memory.workspace(), engine.place());
    router.loss(memory.loss_args(), memory.workspace(), engine.place());
    router.backward(backward, memory.workspace(), engine.place());
  });
  for (const std::int64_t count : {200, 0, 1, 37, 199}) {
    engine.upload(tokens.data(), &count, sizeof count);
    replay(engine, graph);
    Outcome replayed = memory.outcome();
    replayed.status = {};
    Inputs direct_inputs = inputs;
    direct_inputs.tokens_on_device = count;
    direct_inputs.accumulate = false;
    Outcome direct = train(engine, router, direct_inputs);
    direct.status = {};
    CHECK(same_bits(replayed, direct));
  }
}

}  // namespace testing
