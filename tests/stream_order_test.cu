// Kernels of ours may be started while the one before them runs: they must wait for what it writes, on streams and in graphs. GPU only.
#define MOE_BALANCE_CUDA_MIN_EXPERTS 64
#define MOE_BALANCE_CUDA_MAX_EXPERTS 64
#include "cuda_graph.cuh"

#include "call.hpp"
#include "make_inputs.hpp"

#include <moe_balance/dispatch/permutation.hpp>
#include <moe_balance/dispatch/permute.hpp>
#include <moe_balance/dispatch/received_experts.hpp>
#include <moe_balance/dispatch/route_and_permute.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

namespace testing {

namespace {

/// Lets the next kernel start at once, and writes long after.
__global__ void write_late(const std::uint32_t* from, std::uint32_t* to, std::int64_t words, long long cycles) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
  for (std::int64_t i = threadIdx.x; i < words; i += blockDim.x) to[i] = from[i];
}

/// Runs enqueue() right behind a kernel that has yet to write the memory it reads; read() must then give what it gives when all was there before.
/// `poison()` spoils what the call writes.
template <class Read>
void check_waits(const CudaEngine& engine, const void* memory, std::size_t bytes, const std::function<void()>& poison,
                 const std::function<void()>& enqueue, const Read& read) {
  REQUIRE(bytes % 4 == 0);
  auto* to = static_cast<std::uint32_t*>(const_cast<void*>(memory));
  std::vector<std::uint32_t> values(bytes / 4);
  engine.wait();
  cuda_check(cudaMemcpy(values.data(), to, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy to the host");
  CudaEngine::Array<std::uint32_t> kept(engine, values);
  poison();
  enqueue();
  const auto want = read();
  const auto late = [&] {
    write_late<<<1, 256, 0, engine.place()>>>(kept.data(), to, static_cast<std::int64_t>(values.size()), 400'000);
    enqueue();
  };
  const auto forget = [&] {
    cuda_check(cudaMemsetAsync(to, 0, bytes, engine.place()), "cudaMemsetAsync");
    poison();
    engine.wait();
  };
  forget();
  late();
  CHECK(read() == want);
  const auto graph = captured(engine, late);
  forget();
  replay(engine, graph);
  CHECK(read() == want);
}

void fill(const CudaEngine& engine, const void* memory, std::size_t bytes, int byte = 0x5a) {
  cuda_check(cudaMemsetAsync(const_cast<void*>(memory), byte, bytes, engine.place()), "cudaMemsetAsync");
}

struct AsBits {
  Outcome outcome;
  friend bool operator==(const AsBits& a, const AsBits& b) { return same_bits(a.outcome, b.outcome); }
};

}  // namespace

TEST_CASE("route, forward, backward and loss wait for the kernel before them") {
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, mb::Combine{mb::LossFreeBias{}, mb::AuxLoss{.coefficient = 0.1f}}};
  const CudaEngine engine;
  for (const std::int64_t tokens : {5, 100, 3000}) {  // one block, a cluster, behind a kernel that clears
    CAPTURE(tokens);
    Inputs inputs = normal_inputs(181, tokens, 64, 4);
    inputs.bias.assign(64, 0.0f);
    inputs.accumulate = false;
    Memory<CudaEngine> memory = memory_for(engine, router, inputs);
    const auto bits = [&] { return AsBits{memory.outcome()}; };
    const mb::ForwardArgs forward = memory.forward_args();
    const std::size_t bytes = inputs.logits.size() * sizeof(float);
    const auto spoil_ids = [&] {
      fill(engine, forward.experts.data, static_cast<std::size_t>(tokens) * 16);
      fill(engine, forward.weights.data, static_cast<std::size_t>(tokens) * 16);
    };
    const auto spoil_all = [&] {
      spoil_ids();
      fill(engine, memory.saved().data, memory.saved().bytes);
    };
    check_waits(
        engine, forward.logits.data, bytes, spoil_ids,
        [&] { router.route(memory.route_args(), memory.workspace(), engine.place()); }, bits);
    check_waits(
        engine, forward.logits.data, bytes, spoil_all, [&] { router.forward(forward, memory.workspace(), engine.place()); },
        bits);
    const mb::BackwardArgs backward = memory.backward_args();
    check_waits(
        engine, forward.logits.data, bytes, [&] { fill(engine, backward.grad_logits.data, bytes); },
        [&] { router.backward(backward, memory.workspace(), engine.place()); }, bits);
    const mb::LossArgs loss = memory.loss_args();
    check_waits(
        engine, memory.saved().data, memory.saved().bytes, [&] { fill(engine, loss.value, sizeof(float)); },
        [&] { router.loss(loss, {}, engine.place()); }, bits);
  }
}

TEST_CASE("the kernels that count margins wait for the kernel before them, and for each other") {
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, mb::QuantileBias{.bins = 50}};
  const CudaEngine engine;
  for (const std::int64_t tokens : {100, 3000}) {  // one, and two
    CAPTURE(tokens);
    Inputs inputs = normal_inputs(184, tokens, 64, 4);
    inputs.bias.assign(64, 0.0f);
    inputs.load = zero_load(64 * 51);
    Memory<CudaEngine> memory = memory_for(engine, router, inputs);
    const mb::ForwardArgs forward = memory.forward_args();
    const auto spoil = [&] {
      fill(engine, forward.experts.data, static_cast<std::size_t>(tokens) * 16);
      fill(engine, memory.workspace().data, memory.workspace().bytes);
      fill(engine, forward.load.counts, inputs.load.size() * sizeof(std::int64_t), 0);
    };
    check_waits(
        engine, forward.logits.data, inputs.logits.size() * sizeof(float), spoil,
        [&] { router.forward(forward, memory.workspace(), engine.place()); }, [&] { return memory.outcome().load; });
  }
}

TEST_CASE("update waits for the kernel before it") {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::LossFreeBias{}};
  const CudaEngine engine;
  std::vector<std::int64_t> counts(64);
  for (std::size_t e = 0; e < counts.size(); ++e) counts[e] = static_cast<std::int64_t>(e * e % 50 + 1);
  CudaEngine::Array<std::int64_t> load(engine, counts);
  CudaEngine::Array<float> bias(engine, std::vector<float>(64));
  check_waits(
      engine, load.data(), counts.size() * 8, [&] { fill(engine, bias.data(), 64 * sizeof(float), 0); },
      [&] {
        router.update({bias.data(), 64}, {load.data(), 64}, {}, engine.place());
      },
      [&] { return bias.values(); });
  CHECK(bias.values()[0] != 0.0f);
}

TEST_CASE("a permutation waits for the kernel before it") {
  const CudaEngine engine;
  for (const std::int64_t tokens : {30, 5000, 20000}) {  // one launch, two, of which the second starts early where multiprocessors are enough
    CAPTURE(tokens);
    Random random(182);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens * 4));
    for (std::int32_t& id : ids) id = random.integer(0, 63);
    CudaEngine::Array<std::int32_t> experts(engine, ids);
    CudaEngine::Array<std::int64_t> offsets(engine, std::vector<std::int64_t>(65));
    CudaEngine::Array<std::int64_t> row_of_slot(engine, std::vector<std::int64_t>(ids.size()));
    CudaEngine::Array<std::int64_t> slot_of_row(engine, std::vector<std::int64_t>(ids.size()));
    const std::size_t bytes = mb::permutation_workspace_bytes(tokens, 4, 64);
    CudaEngine::Array<std::int64_t> workspace(engine, std::vector<std::int64_t>(bytes / 8 + 2));
    const auto enqueue = [&] {
      mb::permutation({.experts = mb::MatrixView<const std::int32_t>(experts.data(), tokens, 4),
                       .offsets = {offsets.data(), 65},
                       .row_of_slot = {row_of_slot.data(), tokens, 4},
                       .slot_of_row = {slot_of_row.data(), static_cast<std::int64_t>(ids.size())}},
                      {workspace.data(), bytes}, engine.place());
    };
    const auto spoil = [&] {
      fill(engine, offsets.data(), 65 * 8);
      fill(engine, row_of_slot.data(), ids.size() * 8);
      fill(engine, slot_of_row.data(), ids.size() * 8);
      fill(engine, workspace.data(), bytes);
    };
    check_waits(engine, experts.data(), ids.size() * 4, spoil, enqueue,
                [&] { return std::pair(slot_of_row.values(), row_of_slot.values()); });
  }
}

/// Both fused calls, each twice, so that the second writes over what the first has read of its workspace.
template <class Router>
void check_fused_waits(const Router& router, std::int64_t tokens, std::int64_t sequences) {
  CAPTURE(tokens);
  CAPTURE(sequences);
  const CudaEngine engine;
  Inputs inputs = normal_inputs(183, tokens, 64, 4);
  inputs.accumulate = false;
  inputs.sequences = sequences;
  inputs.loss_parts = 1;
  const mb::Shape shape = shape_of(inputs);
  Memory<CudaEngine> memory(engine, inputs, Router::k, mb::route_and_permute_workspace_bytes(router, shape),
                            router.saved_bytes(shape), false);
  const auto slots = static_cast<std::size_t>(tokens * Router::k);
  CudaEngine::Array<std::int64_t> offsets(engine, std::vector<std::int64_t>(65));
  CudaEngine::Array<std::int64_t> row_of_slot(engine, std::vector<std::int64_t>(slots));
  CudaEngine::Array<std::int64_t> slot_of_row(engine, std::vector<std::int64_t>(slots));
  mb::ForwardArgs forward = memory.forward_args();
  forward.counts = nullptr;
  mb::RouteArgs route = memory.route_args();
  route.counts = nullptr;
  const mb::PermutationArgs order{.experts = {},
                                  .offsets = {offsets.data(), 65},
                                  .row_of_slot = {row_of_slot.data(), tokens, Router::k},
                                  .slot_of_row = {slot_of_row.data(), static_cast<std::int64_t>(slots)}};
  const mb::Workspace workspace = memory.workspace();
  const auto spoil = [&] {
    fill(engine, forward.experts.data, slots * 4);
    fill(engine, forward.weights.data, slots * 4);
    fill(engine, memory.saved().data, memory.saved().bytes);
    fill(engine, offsets.data(), 65 * 8);
    fill(engine, row_of_slot.data(), slots * 8);
    fill(engine, slot_of_row.data(), slots * 8);
    fill(engine, workspace.data, workspace.bytes);
  };
  const auto results = [&] {
    const Outcome outcome = memory.outcome();
    return std::tuple(AsBits{outcome}, outcome.saved, offsets.values(), row_of_slot.values(), slot_of_row.values());
  };
  const std::size_t bytes = inputs.logits.size() * sizeof(float);
  const auto twice = [](const std::function<void()>& call) {
    return [=] {
      call();
      call();
    };
  };
  check_waits(engine, forward.logits.data, bytes, spoil,
              twice([&] { mb::route_and_permute(router, route, order, workspace, engine.place()); }), results);
  check_waits(engine, forward.logits.data, bytes, spoil,
              twice([&] { mb::forward_and_permute(router, forward, order, workspace, engine.place()); }), results);
}

TEST_CASE("the fused calls wait for the kernel before them, and for each other") {
  for (const std::int64_t tokens : {100, 3000, 20000}) {
    check_fused_waits(mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::AuxLoss{.coefficient = 0.1f}}, tokens, 1);
    check_fused_waits(mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::SequenceLoss{.coefficient = 0.1f}}, tokens, 2);
  }
}

TEST_CASE("received_experts waits for the kernel before it, and for itself") {
  const CudaEngine engine;
  constexpr std::int64_t ranks = 8;
  constexpr std::int64_t local = 32;
  std::vector<std::int64_t> sent(ranks * local);
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<std::int64_t>(i * i % 90);
  CudaEngine::Array<std::int64_t> counts(engine, sent);
  CudaEngine::Array<std::int32_t> experts(engine, std::vector<std::int32_t>(ranks * local * 96));
  CudaEngine::Array<std::int64_t> offsets(engine, std::vector<std::int64_t>(ranks + 1));
  const std::size_t bytes = mb::received_experts_workspace_bytes(ranks, local);
  CudaEngine::Array<std::int64_t> workspace(engine, std::vector<std::int64_t>(bytes / 8 + 2));
  check_waits(
      engine, counts.data(), sent.size() * 8,
      [&] {
        fill(engine, experts.data(), ranks * local * 96 * 4);
        fill(engine, offsets.data(), (ranks + 1) * 8);
        fill(engine, workspace.data(), bytes);
      },
      [&] {
        for (int call = 0; call < 2; ++call) {
          mb::received_experts({.counts = mb::MatrixView<const std::int64_t>(counts.data(), ranks, local),
                                .experts = {experts.data(), ranks * local * 96, 1},
                                .align = 8,
                                .receive_offsets = {offsets.data(), ranks + 1}},
                               {workspace.data(), bytes}, engine.place());
        }
      },
      [&] { return std::pair(experts.values(), offsets.values()); });
}

TEST_CASE("combine and its backward pass wait for the kernel before them") {
  const CudaEngine engine;
  constexpr std::int64_t tokens = 300;
  constexpr std::int64_t hidden = 64;
  std::vector<std::int64_t> order(tokens);
  for (std::int64_t i = 0; i < tokens; ++i) order[static_cast<std::size_t>(i)] = i * 7 % tokens;
  std::vector<std::int64_t> inverse(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) inverse[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
  CudaEngine::Array<std::int64_t> row_of_slot(engine, order);
  CudaEngine::Array<std::int64_t> slot_of_row(engine, inverse);
  std::vector<float> values(tokens * hidden);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 1000 + 1);
  CudaEngine::Array<float> states(engine, values);
  CudaEngine::Array<float> outputs(engine, values);
  CudaEngine::Array<float> dots(engine, std::vector<float>(tokens));
  const auto matrix = [&](auto& array) { return mb::MatrixView<float>(array.data(), tokens, hidden); };
  const mb::MatrixView<const std::int64_t> rows_of(row_of_slot.data(), tokens, 1);
  const std::size_t bytes = values.size() * sizeof(float);
  const auto spoil = [&] {
    fill(engine, outputs.data(), bytes);
    fill(engine, dots.data(), tokens * sizeof(float));
  };
  const auto read = [&] { return std::pair(outputs.values(), dots.values()); };
  check_waits(
      engine, states.data(), bytes, spoil,
      [&] {
        mb::combine({.permuted = matrix(states), .row_of_slot = rows_of, .combined = matrix(outputs)}, {}, engine.place());
      },
      read);
  check_waits(
      engine, states.data(), bytes, spoil,
      [&] {
        mb::combine_backward({.grad_combined = matrix(states),
                              .row_of_slot = rows_of,
                              .slot_of_row = {slot_of_row.data(), tokens},
                              .grad_permuted = matrix(outputs),
                              .permuted = matrix(states),
                              .grad_weights = mb::MatrixView<float>(dots.data(), tokens, 1)},
                             {}, engine.place());
      },
      read);
}

}  // namespace testing
