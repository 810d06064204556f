// The global-batch loss over any number of GPUs: each rank routes tokens that prefer experts of its own, and the loss sees all of them. Prints each
// rank's micro-batch loss beside the global-batch loss, and one of the biases that the summed load has moved, alike on all.
//
// One process for all GPUs:   ./nccl_global_batch
// One process per GPU:        mpirun -n 8 ./nccl_global_batch_mpi     (the same, built with -DMOE_BALANCE_EXAMPLE_MPI and MPI)
#include <moe_balance/moe_balance.cuh>
#include <moe_balance/sync/nccl.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(MOE_BALANCE_EXAMPLE_MPI)
#include <mpi.h>
#endif

namespace {

namespace mb = moe_balance;

constexpr int experts = 64;
constexpr int chosen = 4;
constexpr int tokens = 4096;
constexpr int micro_batches = 4;

void cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
void nccl(ncclResult_t result, const char* what) {
  if (result != ncclSuccess) throw std::runtime_error(std::string(what) + ": " + ncclGetErrorString(result));
}

/// Logits that favour a few experts, others on each rank.
std::vector<float> skewed_logits(int rank) {
  std::vector<float> logits(static_cast<std::size_t>(tokens) * experts);
  std::uint64_t state = 0x9e3779b97f4a7c15u + static_cast<std::uint64_t>(rank);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const bool favoured = static_cast<int>(i % experts) / 8 == rank % 8;
    logits[i] = static_cast<float>(state >> 40) * 0x1p-24f + (favoured ? 1.0f : 0.0f);
  }
  return logits;
}

/// Waits until a call on a communicator that does not block is done, at most a minute.
void await(ncclComm_t communicator, ncclResult_t state, const char* what) {
  for (int polls = 0; state == ncclInProgress && polls < 60000; ++polls) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    nccl(ncclCommGetAsyncError(communicator, &state), "ncclCommGetAsyncError");
  }
  nccl(state, what);
}

/// Joins all ranks by a communicator that does not block, the only kind that can be aborted whatever the others do.
ncclComm_t connect(const ncclUniqueId& id, int ranks, int rank) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t communicator = nullptr;
  const ncclResult_t state = ncclCommInitRankConfig(&communicator, ranks, id, rank, &config);
  await(communicator, state, "ncclCommInitRankConfig");
  return communicator;
}

/// One rank: a step of several micro-batches on the current device.
void train(ncclComm_t communicator) {
  cudaStream_t stream = nullptr;
  cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  {
    const mb::NcclSync sync(communicator);
    const mb::LossFreeBias rule{.update_rate = 1e-3f};
    const mb::Router router{mb::Softmax{}, mb::TopK<chosen>{}, mb::Combine{mb::GlobalBatchLoss{.coefficient = 1.0f}, rule},
                            sync};
    // The same on one rank and one micro-batch: the micro-batch loss, by the kernels that are there anyway.
    const mb::GlobalBatchLoss here{.coefficient = 1.0f, .window = mb::GlobalBatchWindow::micro_batch};
    const mb::Router local{mb::Softmax{}, mb::TopK<chosen>{}, mb::Combine{here, rule}};
    const mb::Shape shape{.tokens = tokens, .experts = experts};
    const mb::Buffer<float, cudaStream_t> logits(std::size_t{tokens} * experts, stream),
        grad_logits(std::size_t{tokens} * experts, stream);
    const mb::Buffer<float, cudaStream_t> weights(std::size_t{tokens} * chosen, stream), losses(2, stream);
    const mb::Buffer<std::int32_t, cudaStream_t> ids(std::size_t{tokens} * chosen, stream);
    const mb::Bias<cudaStream_t> bias(experts, 1, stream);
    const mb::Load<cudaStream_t> load(experts, 1, stream);
    const mb::Saved<cudaStream_t> saved(router, shape, stream), local_saved(local, shape, stream);
    const std::vector<float> host_logits = skewed_logits(sync.rank());
    cuda(cudaMemcpyAsync(logits.data(), host_logits.data(), logits.bytes(), cudaMemcpyHostToDevice, stream),
         "copying logits");

    const mb::MatrixView x(logits.data(), tokens, experts), w(weights.data(), tokens, chosen),
        dx(grad_logits.data(), tokens, experts);
    const mb::MatrixView e(ids.data(), tokens, chosen);
    for (int m = 0; m < micro_batches; ++m) {
      router.forward({.logits = x, .experts = e, .weights = w, .bias = bias.ref(), .load = load.ref(), .saved = saved.ref()},
                     {}, stream);
      if (m + 1 == micro_batches) router.start_update(load.ref(), {}, stream);
      // Here the experts run, and beside them the sum over ranks.
      router.loss({.saved = saved.ref(), .experts = experts, .value = losses.data()}, {}, stream);
      router.backward({.logits = x, .experts = e, .grad_logits = dx, .saved = saved.ref()}, {}, stream);
    }
    router.finish_update(bias.ref(), load.ref(), {}, stream);
    local.forward(
        {.logits = x, .experts = e, .weights = w, .bias = bias.ref(), .saved = local_saved.ref(), .accumulate = false}, {},
        stream);
    local.loss({.saved = local_saved.ref(), .experts = experts, .value = losses.data() + 1}, {}, stream);

    // Before anything blocks, be it cudaStreamSynchronize or a copy to pageable memory: a rank that is lost must not hold this one up.
    sync.wait(stream);
    std::vector<float> values(2), biases(experts);
    cuda(cudaMemcpy(values.data(), losses.data(), losses.bytes(), cudaMemcpyDeviceToHost), "copying losses");
    cuda(cudaMemcpy(biases.data(), bias.data(), experts * sizeof(float), cudaMemcpyDeviceToHost), "copying biases");
    std::printf("rank %d of %d: micro-batch loss %.4f, global-batch loss %.4f, bias of expert 0 %+.4f\n", sync.rank(),
                sync.ranks(), static_cast<double>(values[1]), static_cast<double>(values[0]),
                static_cast<double>(biases[0]));
  }
  cuda(cudaStreamDestroy(stream), "destroying a stream");
}

/// After an error the communicator is left as it is: it may have been aborted.
void run_rank(const ncclUniqueId& id, int ranks, int rank) {
  const ncclComm_t communicator = connect(id, ranks, rank);
  train(communicator);
  nccl(ncclCommDestroy(communicator), "ncclCommDestroy");
}

int device_count() {
  int devices = 0;
  cuda(cudaGetDeviceCount(&devices), "this example needs a GPU");
  return devices;
}

#if defined(MOE_BALANCE_EXAMPLE_MPI)
/// This process is one rank, on the GPU of its place on the machine.
void run_as_rank() {
  int rank = 0;
  int ranks = 1;
  int place = 0;
  MPI_Comm machine = MPI_COMM_NULL;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &place);
  cuda(cudaSetDevice(place % device_count()), "cudaSetDevice");
  ncclUniqueId id{};
  if (rank == 0) nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
  MPI_Bcast(&id, sizeof(id), MPI_BYTE, 0, MPI_COMM_WORLD);
  run_rank(id, ranks, rank);
}
#else
/// One thread for each GPU of this process.
void run_in_one_process() {
  const int devices = device_count();
  ncclUniqueId id{};
  nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
  std::vector<std::string> errors(static_cast<std::size_t>(devices));
  std::vector<std::thread> threads;
  for (int device = 0; device < devices; ++device) {
    threads.emplace_back([&, device] {
      try {
        cuda(cudaSetDevice(device), "cudaSetDevice");
        run_rank(id, devices, device);
      } catch (const std::exception& error) {
        errors[static_cast<std::size_t>(device)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& error : errors) {
    if (!error.empty()) throw std::runtime_error(error);
  }
}
#endif

}  // namespace

int main(int argc, char** argv) {
  try {
#if defined(MOE_BALANCE_EXAMPLE_MPI)
    MPI_Init(&argc, &argv);
    run_as_rank();
    MPI_Finalize();
#else
    (void)argc;
    (void)argv;
    run_in_one_process();
#endif
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nccl_global_batch: %s\n", error.what());
    std::_Exit(1);  // not MPI_Finalize, which would wait for ranks that are lost
  }
  return 0;
}
