// Kernels of ours may be started while the one before them runs: they must wait for what it writes, on streams and in graphs. GPU only.
#define MOE_BALANCE_CUDA_MIN_EXPERTS 64
#define MOE_BALANCE_CUDA_MAX_EXPERTS 64
#include "cuda_graph.cuh"

#include "call.hpp"
#include "make_inputs.hpp"

#include <moe_balance/dispatch/permutation.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
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
template <class Read>
void check_waits(const CudaEngine& engine, const void* memory, std::size_t bytes, const std::function<void()>& enqueue,
                 const Read& read) {
  REQUIRE(bytes % 4 == 0);
  auto* to = static_cast<std::uint32_t*>(const_cast<void*>(memory));
  std::vector<std::uint32_t> values(bytes / 4);
  engine.wait();
  cuda_check(cudaMemcpy(values.data(), to, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy to the host");
  CudaEngine::Array<std::uint32_t> kept(engine, values);
  enqueue();
  const auto want = read();
  const auto late = [&] {
    write_late<<<1, 256, 0, engine.place()>>>(kept.data(), to, static_cast<std::int64_t>(values.size()), 400'000);
    enqueue();
  };
  const auto forget = [&] {
    cuda_check(cudaMemsetAsync(to, 0, bytes, engine.place()), "cudaMemsetAsync");
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

struct AsBits {
  Outcome outcome;
  friend bool operator==(const AsBits& a, const AsBits& b) { return same_bits(a.outcome, b.outcome); }
};

}  // namespace

TEST_CASE("route, forward, backward and loss wait for the kernel before them") {
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, mb::Combine{mb::LossFreeBias{}, mb::AuxLoss{.coefficient = 0.1f}}};
  const CudaEngine engine;
  for (const std::int64_t tokens : {5, 100, 3000}) {  // one block, a cluster, beside a kernel that clears
    CAPTURE(tokens);
    Inputs inputs = normal_inputs(181, tokens, 64, 4);
    inputs.bias.assign(64, 0.0f);
    inputs.accumulate = false;
    Memory<CudaEngine> memory = memory_for(engine, router, inputs);
    const auto bits = [&] { return AsBits{memory.outcome()}; };
    const mb::ForwardArgs forward = memory.forward_args();
    const std::size_t bytes = inputs.logits.size() * sizeof(float);
    check_waits(
        engine, forward.logits.data, bytes, [&] { router.route(memory.route_args(), memory.workspace(), engine.place()); },
        bits);
    check_waits(
        engine, forward.logits.data, bytes, [&] { router.forward(forward, memory.workspace(), engine.place()); }, bits);
    check_waits(
        engine, forward.logits.data, bytes,
        [&] { router.backward(memory.backward_args(), memory.workspace(), engine.place()); }, bits);
    check_waits(
        engine, memory.saved().data, memory.saved().bytes, [&] { router.loss(memory.loss_args(), {}, engine.place()); },
        bits);
  }
}

TEST_CASE("a permutation waits for the kernel before it") {
  const CudaEngine engine;
  for (const std::int64_t tokens : {30, 5000, 20000}) {  // one launch, two, of which the second starts early, and does not
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
    check_waits(engine, experts.data(), ids.size() * 4, enqueue, [&] { return slot_of_row.values(); });
  }
}

}  // namespace testing
