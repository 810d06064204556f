// A fake of what sync/nccl.hpp calls of NCCL and of the CUDA runtime, for one process without a GPU. Streams are queues that a scheduler runs in a
// random order, as far as events and collectives allow; any call can be made to fail. One translation unit includes this file, and links
// neither library.
#pragma once

#include "random.hpp"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

/// Returns whether it is done; one that is not stays at the head of its stream.
using FakeOperation = std::function<bool()>;

struct CUstream_st {
  std::deque<FakeOperation> operations;
};
struct CUevent_st {
  std::int64_t recorded = 0;
  std::int64_t reached = 0;
};

/// One collective of a group: the ranks' counts, as they were when each rank's stream came to it.
struct FakeCollective {
  std::map<int, std::vector<std::int64_t>> parts;
};

struct ncclComm {
  std::vector<FakeCollective>* collectives = nullptr;
  int rank = 0;
  int ranks = 1;
  std::size_t issued = 0;
  ncclResult_t asynchronous = ncclSuccess;
  std::atomic<bool> aborted = false;
  std::atomic<bool> in_collective = false;
};

namespace fake {

/// Results that calls give instead of their own, by function: one is taken by each call.
inline std::map<std::string, std::deque<int>> results;
/// How often each function was called.
inline std::map<std::string, int> calls;
/// What a collective does on the host, besides.
inline std::function<void()> in_collective;
/// NCCL functions that were given an aborted communicator, or aborted one that another thread was in a call on.
inline std::vector<std::string> calls_after_abort;
inline std::recursive_mutex mutex;  ///< of results, calls and calls_after_abort
inline int devices = 1;
inline int current_device = 0;
inline int streams = 0;
inline int events = 0;
inline int allocations = 0;
inline std::vector<std::unique_ptr<CUstream_st>> all_streams;
inline std::vector<std::unique_ptr<CUevent_st>> all_events;

inline void reset() {
  results.clear();
  calls.clear();
  calls_after_abort.clear();
  in_collective = nullptr;
  devices = 1;
  current_device = 0;
}

template <class Result>
Result result_of(const char* function) {
  const std::lock_guard lock(mutex);
  ++calls[function];
  std::deque<int>& planned = results[function];
  if (planned.empty()) return static_cast<Result>(0);
  const int result = planned.front();
  planned.pop_front();
  return static_cast<Result>(result);
}

inline ncclResult_t nccl(const char* function, ncclComm_t communicator) {
  const std::lock_guard lock(mutex);
  if (communicator != nullptr && communicator->aborted) calls_after_abort.push_back(function);
  return result_of<ncclResult_t>(function);
}

/// A collective's part on the host; its result where the communicator is gone in the meantime.
inline ncclResult_t collective(const char* function, ncclComm_t communicator) {
  const ncclResult_t result = nccl(function, communicator);
  communicator->in_collective = true;
  if (in_collective) in_collective();
  communicator->in_collective = false;
  return communicator->aborted ? ncclInternalError : result;
}

inline cudaStream_t new_stream() {
  all_streams.push_back(std::make_unique<CUstream_st>());
  return all_streams.back().get();
}

/// Lets one stream, chosen at random, do its next operation; false when none can.
inline bool step(testing::Random& random) {
  const std::size_t count = all_streams.size();
  const auto first = static_cast<std::size_t>(random.integer(0, static_cast<int>(count) - 1));
  for (std::size_t i = 0; i < count; ++i) {
    CUstream_st& stream = *all_streams[(first + i) % count];
    if (!stream.operations.empty() && stream.operations.front()()) {
      stream.operations.pop_front();
      return true;
    }
  }
  return false;
}

/// Runs all streams as far as they come; whether all are empty then.
inline bool run(std::uint64_t seed) {
  testing::Random random(seed);
  while (step(random)) {
  }
  return std::all_of(all_streams.begin(), all_streams.end(), [](const auto& stream) { return stream->operations.empty(); });
}

/// The communicators of one group.
struct Group {
  std::vector<FakeCollective> collectives;
  std::vector<ncclComm> ranks;
  explicit Group(int count) : ranks(static_cast<std::size_t>(count)) {
    for (int r = 0; r < count; ++r) {
      ranks[static_cast<std::size_t>(r)].collectives = &collectives;
      ranks[static_cast<std::size_t>(r)].rank = r;
      ranks[static_cast<std::size_t>(r)].ranks = count;
    }
  }
};

/// Enqueues a collective: waits for all ranks' parts, or, as NCCL's kernels do, for the abort, which lets an incomplete result pass; then lets `receive` write its result.
template <class Receive>
void enqueue_collective(const void* send, std::size_t count, ncclComm_t communicator, cudaStream_t stream, Receive receive) {
  const std::size_t index = communicator->issued++;
  auto* const collectives = communicator->collectives;
  if (collectives->size() <= index) collectives->resize(index + 1);
  const int rank = communicator->rank;
  const auto ranks = static_cast<std::size_t>(communicator->ranks);
  stream->operations.push_back([=] {
    auto& parts = (*collectives)[index].parts;
    const auto* const words = static_cast<const std::int64_t*>(send);
    if (parts.count(rank) == 0) parts[rank].assign(words, words + count);
    if (parts.size() < ranks && !communicator->aborted) return false;
    receive(parts);
    return true;
  });
}

}  // namespace fake

extern "C" {

cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  const auto result = fake::result_of<cudaError_t>("cudaHostAlloc");
  if (result != cudaSuccess) return result;
  *memory = std::malloc(bytes);
  ++fake::allocations;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  --fake::allocations;
  return fake::result_of<cudaError_t>("cudaFreeHost");
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return fake::result_of<cudaError_t>("cudaHostGetDevicePointer");
}
cudaError_t cudaGetDevice(int* device) {
  *device = fake::current_device;
  return fake::devices == 0 ? cudaErrorNoDevice : fake::result_of<cudaError_t>("cudaGetDevice");
}
cudaError_t cudaPeekAtLastError(void) {
  return fake::result_of<cudaError_t>("cudaPeekAtLastError");
}
cudaError_t cudaGetLastError(void) {
  return fake::result_of<cudaError_t>("cudaGetLastError");
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorNoDevice ? "cudaErrorNoDevice" : "cudaErrorOfTheFake";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "made to fail";
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = 0;
  *highest = -5;
  return fake::result_of<cudaError_t>("cudaDeviceGetStreamPriorityRange");
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  const auto result = fake::result_of<cudaError_t>("cudaStreamCreateWithPriority");
  if (result != cudaSuccess) return result;
  if (flags != cudaStreamNonBlocking || priority != -5) return cudaErrorInvalidValue;
  *stream = fake::new_stream();
  ++fake::streams;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
  --fake::streams;
  return fake::result_of<cudaError_t>("cudaStreamDestroy");
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const auto result = fake::result_of<cudaError_t>("cudaStreamQuery");
  if (result != cudaSuccess) return result;
  static testing::Random random(1);
  (void)fake::step(random);
  return stream->operations.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const auto result = fake::result_of<cudaError_t>("cudaEventCreateWithFlags");
  if (result != cudaSuccess) return result;
  if (flags != cudaEventDisableTiming) return cudaErrorInvalidValue;
  fake::all_events.push_back(std::make_unique<CUevent_st>());
  *event = fake::all_events.back().get();
  ++fake::events;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) {
  --fake::events;
  return fake::result_of<cudaError_t>("cudaEventDestroy");
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto result = fake::result_of<cudaError_t>("cudaEventRecord");
  if (result != cudaSuccess) return result;
  stream->operations.push_back([event, version = ++event->recorded] {
    event->reached = std::max(event->reached, version);
    return true;
  });
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const auto result = fake::result_of<cudaError_t>("cudaStreamWaitEvent");
  if (result != cudaSuccess) return result;
  stream->operations.push_back([event, version = event->recorded] { return event->reached >= version; });
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  const auto result = fake::result_of<cudaError_t>("cudaMemcpyAsync");
  if (result != cudaSuccess) return result;
  stream->operations.push_back([=] {
    std::memcpy(to, from, bytes);
    return true;
  });
  return cudaSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclSystemError ? "unhandled system error" : "an NCCL error";
}
const char* ncclGetLastError(ncclComm_t) {
  return "of the fake";
}
ncclResult_t ncclCommCuDevice(const ncclComm_t communicator, int* device) {
  *device = 0;
  return fake::nccl("ncclCommCuDevice", communicator);
}
ncclResult_t ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  *rank = communicator->rank;
  return fake::nccl("ncclCommUserRank", communicator);
}
ncclResult_t ncclCommCount(const ncclComm_t communicator, int* count) {
  *count = communicator->ranks;
  return fake::nccl("ncclCommCount", communicator);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t communicator, ncclResult_t* state) {
  const std::lock_guard lock(fake::mutex);
  *state = communicator->asynchronous;
  if (const auto planned = fake::results["asynchronous state"]; !planned.empty()) {
    *state = fake::result_of<ncclResult_t>("asynchronous state");
  }
  return fake::nccl("ncclCommGetAsyncError", communicator);
}
ncclResult_t ncclCommAbort(ncclComm_t communicator) {
  const ncclResult_t result = fake::nccl("ncclCommAbort", communicator);
  if (communicator->in_collective) fake::calls_after_abort.push_back("a collective");
  communicator->aborted = true;
  return result;
}
ncclResult_t ncclAllReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t communicator, cudaStream_t stream) {
  const ncclResult_t result = fake::collective("ncclAllReduce", communicator);
  if (result != ncclSuccess && result != ncclInProgress) return result;
  if (type != ncclInt64 || operation != ncclSum || send != receive) return ncclInvalidArgument;
  fake::enqueue_collective(send, count, communicator, stream, [=](const auto& parts) {
    auto* const words = static_cast<std::int64_t*>(receive);
    for (std::size_t i = 0; i < count; ++i) {
      words[i] = 0;
      for (const auto& part : parts) words[i] += part.second[i];
    }
  });
  return result;
}
ncclResult_t ncclAllGather(const void* send, void* receive, std::size_t count, ncclDataType_t type, ncclComm_t communicator,
                           cudaStream_t stream) {
  const ncclResult_t result = fake::collective("ncclAllGather", communicator);
  if (result != ncclSuccess && result != ncclInProgress) return result;
  if (type != ncclInt64) return ncclInvalidArgument;
  fake::enqueue_collective(send, count, communicator, stream, [=](const auto& parts) {
    auto* words = static_cast<std::int64_t*>(receive);
    for (const auto& part : parts) words = std::copy(part.second.begin(), part.second.end(), words);
  });
  return result;
}
ncclResult_t ncclMemAlloc(void** memory, std::size_t bytes) {
  const ncclResult_t result = fake::nccl("ncclMemAlloc", nullptr);
  if (result != ncclSuccess) return result;
  *memory = std::malloc(bytes);
  ++fake::allocations;
  return ncclSuccess;
}
ncclResult_t ncclMemFree(void* memory) {
  std::free(memory);
  --fake::allocations;
  return fake::nccl("ncclMemFree", nullptr);
}
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
ncclResult_t ncclCommWindowRegister(ncclComm_t communicator, void* memory, std::size_t, ncclWindow_t* window, int flags) {
  *window = static_cast<ncclWindow_t>(memory);
  return flags == NCCL_WIN_COLL_SYMMETRIC ? fake::nccl("ncclCommWindowRegister", communicator) : ncclInvalidArgument;
}
ncclResult_t ncclCommWindowDeregister(ncclComm_t communicator, ncclWindow_t) {
  return fake::nccl("ncclCommWindowDeregister", communicator);
}
#endif

}  // extern "C"
