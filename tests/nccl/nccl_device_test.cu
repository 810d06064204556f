// NcclSync and NcclGatherSync linked with NCCL itself: without a device their construction is a clear error; with one, a rank that is alone
// computes what SingleDevice does, also in a CUDA graph.
#include "engine_cuda.cuh"

#include "call.hpp"
#include "make_inputs.hpp"

#include <moe_balance/sync/nccl_gather.cuh>

#include <doctest/doctest.h>

#include <string>

namespace testing {

namespace {

using Seconds = mb::NcclSync::Seconds;
constexpr int experts = 60;

void nccl_check(ncclResult_t result, const char* what) {
  if (result != ncclSuccess) throw std::runtime_error(std::string(what) + ": " + ncclGetErrorString(result));
}

/// A communicator of one rank on device 0.
struct Alone {
  ncclComm_t communicator = nullptr;
  Alone() {
    cuda_check(cudaSetDevice(0), "cudaSetDevice");
    nccl_check(ncclCommInitAll(&communicator, 1, nullptr), "ncclCommInitAll");
  }
  ~Alone() { (void)ncclCommDestroy(communicator); }
};

template <class Sync>
auto router_with(const Sync& sync) {
  return mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::Combine{mb::GlobalBatchLoss{}, mb::LossFreeBias{}}, sync};
}

Inputs inputs() {
  Inputs inputs = normal_inputs(161, 40, experts, 2);
  inputs.bias.assign(experts, 0.0f);
  inputs.load.assign(experts, 3);
  return inputs;
}

template <class Sync>
void check_as_single_device(const Sync& sync) {
  const CudaEngine engine;
  CHECK(same_bits(train(engine, router_with(sync), inputs()), train(engine, router_with(mb::SingleDevice{}), inputs())));
  sync.check();

  Memory<CudaEngine> memory = memory_for(engine, router_with(sync), inputs());
  const auto router = router_with(sync);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda_check(cudaStreamBeginCapture(engine.place(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  router.forward(memory.forward_args(), memory.workspace(), engine.place());
  router.loss(memory.loss_args(), memory.workspace(), engine.place());
  router.backward(memory.backward_args(), memory.workspace(), engine.place());
  cuda_check(cudaStreamEndCapture(engine.place(), &graph), "cudaStreamEndCapture");
  cuda_check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  cuda_check(cudaGraphLaunch(executable, engine.place()), "cudaGraphLaunch");
  sync.wait(engine.place());
  CHECK(same_bits(memory.outcome(), train(engine, router_with(mb::SingleDevice{}), inputs())));
  (void)cudaGraphExecDestroy(executable);
  (void)cudaGraphDestroy(graph);
}

}  // namespace

TEST_CASE("NcclSync: without a device its construction is a clear error") {
  if (cuda_skip_reason().empty()) return;
  const auto stranger =
      reinterpret_cast<ncclComm_t>(std::uintptr_t{4096});  // no communicator can be made; this one is not looked at
  const std::string start = "moe_balance: NcclSync: finding the current device: cudaError";
  try {
    (void)mb::NcclSync(stranger);
    FAIL("no error");
  } catch (const mb::CudaError& error) {
    CHECK(std::string(error.what()).substr(0, start.size()) == start);
    MESSAGE(std::string(error.what()));
  }
  CHECK_THROWS_AS((void)mb::NcclGatherSync(stranger, Seconds(1), mb::NcclGatherOptions{.largest_sum = 8}), mb::CudaError);
}

TEST_CASE("NcclSync: one rank on one device computes what SingleDevice does, also in a CUDA graph") {
  if (!cuda_skip_reason().empty()) return;
  const Alone alone;
  check_as_single_device(mb::NcclSync(alone.communicator));
}

TEST_CASE("NcclGatherSync: one rank on one device computes what SingleDevice does, also in a CUDA graph") {
  if (!cuda_skip_reason().empty()) return;
  const Alone alone;
  check_as_single_device(mb::NcclGatherSync(alone.communicator, Seconds(60), mb::NcclGatherOptions{.largest_sum = experts}));
}

}  // namespace testing
