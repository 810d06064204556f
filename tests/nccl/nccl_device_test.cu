// NcclSync and NcclGatherSync linked with NCCL itself: without a device their construction is a clear error; with one, a rank that is alone
// computes what SingleDevice does, also in a CUDA graph.
#include "engine_cuda.cuh"

#include "call.hpp"
#include "make_inputs.hpp"

#include <moe_balance/sync/nccl_gather.cuh>

#include <doctest/doctest.h>

#include <chrono>
#include <exception>
#include <functional>
#include <initializer_list>
#include <string>
#include <thread>

namespace testing {

namespace {

using Seconds = mb::NcclSync::Seconds;
constexpr int experts = 60;

void nccl_check(ncclResult_t result, const char* what) {
  if (result != ncclSuccess) throw std::runtime_error(std::string(what) + ": " + ncclGetErrorString(result));
}

/// A communicator of one rank on device 0. A test that ends early may leave it aborted: then nothing is called on it.
class Alone {
 public:
  explicit Alone(bool blocking = true) {
    cuda_check(cudaSetDevice(0), "cudaSetDevice");
    ncclUniqueId id{};
    nccl_check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = blocking ? 1 : 0;
    ncclResult_t state = ncclCommInitRankConfig(&communicator_, 1, id, 0, &config);
    for (int polls = 0; state == ncclInProgress && polls < 60000; ++polls) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      nccl_check(ncclCommGetAsyncError(communicator_, &state), "ncclCommGetAsyncError");
    }
    nccl_check(state, "ncclCommInitRankConfig");
  }
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;
  ~Alone() {
    if (std::uncaught_exceptions() == 0 && !aborted) (void)ncclCommDestroy(communicator_);
  }
  [[nodiscard]] ncclComm_t communicator() const { return communicator_; }

  bool aborted = false;

 private:
  ncclComm_t communicator_ = nullptr;
};

using Balancer = mb::Combine<mb::GlobalBatchLoss, mb::LossFreeBias>;

template <class Sync>
auto router_with(const Sync& sync) {
  return mb::Router{mb::Softmax{}, mb::TopK<2>{}, Balancer{mb::GlobalBatchLoss{}, mb::LossFreeBias{}}, sync};
}

Inputs inputs() {
  Inputs inputs = normal_inputs(161, 40, experts, 2);
  inputs.bias.assign(experts, 0.0f);
  inputs.load.assign(experts, 3);
  return inputs;
}

/// One step, with two sums under way at once.
template <class Router>
void enqueue_step(const Router& router, Memory<CudaEngine>& memory, cudaStream_t stream) {
  const mb::ForwardArgs args = memory.forward_args();
  router.forward(args, memory.workspace(), stream);
  router.start_update(args.load, memory.workspace(), stream);
  router.loss(memory.loss_args(), memory.workspace(), stream);
  router.backward(memory.backward_args(), memory.workspace(), stream);
  router.finish_update(args.bias, args.load, memory.workspace(), stream);
}

/// What two steps leave where nothing is summed.
Outcome two_steps_alone() {
  const CudaEngine engine;
  const auto router = router_with(mb::SingleDevice{});
  Memory<CudaEngine> memory = memory_for(engine, router, inputs());
  for (int i = 0; i < 2; ++i) enqueue_step(router, memory, engine.place());
  return memory.outcome();
}

void check_same(const Outcome& got, const Outcome& want) {
  CHECK(same_bits(got, want));
  CHECK(got.bias == want.bias);
  CHECK(got.load == std::vector<std::int64_t>(experts, 0));
  CHECK(got.bias != std::vector<float>(experts, 0.0f));
}

template <class Sync>
void check_call_by_call(const Sync& sync, const Outcome& want) {
  const CudaEngine engine;
  const auto router = router_with(sync);
  Memory<CudaEngine> memory = memory_for(engine, router, inputs());
  for (int i = 0; i < 2; ++i) enqueue_step(router, memory, engine.place());
  sync.wait(engine.place());
  check_same(memory.outcome(), want);
}

/// One captured step, launched twice. What runs once before it is captured has loaded all kernels.
template <class Sync>
void check_in_graph(const Sync& sync, const Outcome& want, cudaStreamCaptureMode mode) {
  const CudaEngine engine;
  const auto router = router_with(sync);
  Memory<CudaEngine> memory = memory_for(engine, router, inputs());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda_check(cudaStreamBeginCapture(engine.place(), mode), "cudaStreamBeginCapture");
  enqueue_step(router, memory, engine.place());
  cuda_check(cudaStreamEndCapture(engine.place(), &graph), "cudaStreamEndCapture");
  cuda_check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  for (int i = 0; i < 2; ++i) cuda_check(cudaGraphLaunch(executable, engine.place()), "cudaGraphLaunch");
  sync.wait(engine.place());
  check_same(memory.outcome(), want);
  cuda_check(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
  cuda_check(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

template <class Sync>
void check_as_single_device(const Sync& sync) {
  const Outcome want = two_steps_alone();
  CHECK(sync.rank() == 0);
  CHECK(sync.ranks() == 1);
  check_call_by_call(sync, want);
  for (const auto mode : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed}) {
    CAPTURE(mode);
    check_in_graph(sync, want, mode);
  }
  check_call_by_call(sync, want);  // events that a capture has recorded serve again
  sync.check();
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
  check_as_single_device(mb::NcclSync(alone.communicator()));
}

TEST_CASE("NcclSync: the same with a communicator that does not block") {
  if (!cuda_skip_reason().empty()) return;
  const Alone alone(false);
  check_as_single_device(mb::NcclSync(alone.communicator()));
}

TEST_CASE("NcclGatherSync: one rank on one device computes what SingleDevice does, also in a CUDA graph") {
  if (!cuda_skip_reason().empty()) return;
  const Alone alone;
  const mb::NcclGatherSync sync(alone.communicator(), Seconds(60), mb::NcclGatherOptions{.largest_sum = experts});
  check_as_single_device(sync);

  const CudaEngine engine;
  const std::vector<std::int64_t> own{3, 1, 4};
  CudaEngine::Array<std::int64_t> counts(engine, own);
  sync.start(counts.data(), 3, engine.place());
  sync.finish(counts.data(), engine.place());
  std::vector<std::int64_t> of_ranks(3);
  sync.wait(engine.place());
  cuda_check(
      cudaMemcpy(of_ranks.data(), sync.exchange().counts_of_ranks(), 3 * sizeof(std::int64_t), cudaMemcpyDeviceToHost),
      "cudaMemcpy to the host");
  CHECK(of_ranks == own);
  CHECK(counts.values() == own);
}

TEST_CASE("NcclSync: after an abort every call raises, and an update on the device leaves bias and load as they are") {
  if (!cuda_skip_reason().empty()) return;
  Alone alone;
  const mb::NcclSync sync(alone.communicator());
  const CudaEngine engine;
  const auto router = router_with(sync);
  Memory<CudaEngine> memory = memory_for(engine, router, inputs());
  const mb::ForwardArgs args = memory.forward_args();
  sync.abort("this test wants it");
  alone.aborted = true;
  for (const auto& call : std::initializer_list<std::function<void()>>{
           [&] { router.start_update(args.load, memory.workspace(), engine.place()); },
           [&] { router.forward(args, memory.workspace(), engine.place()); },
           [&] { sync.finish(args.load.counts, engine.place()); }, [&] { sync.wait(engine.place()); },
           [&] { sync.check(); }}) {
    CHECK_THROWS_AS(call(), mb::SyncError);
  }
  // As a stream does that an abort lets go on: the update behind the sum that was aborted.
  using Problem = mb::UpdateProblem<Balancer>;
  mb::Engine<cudaStream_t>::update(Problem{router.balancer, args.bias, args.load, 2, 1, sync.failure_flag()},
                                   engine.place());
  Outcome outcome = memory.outcome();
  CHECK(outcome.bias == std::vector<float>(experts, 0.0f));
  CHECK(outcome.load == std::vector<std::int64_t>(experts, 3));
  mb::Engine<cudaStream_t>::update(Problem{router.balancer, args.bias, args.load, 2, 1, nullptr}, engine.place());
  CHECK(memory.outcome().load == std::vector<std::int64_t>(experts, 0));
}

}  // namespace testing
