// NcclSync: sums over the ranks of an NCCL communicator, on CUDA streams. start enqueues an all-reduce of int64 counts on a stream of its own, behind
// what the caller's stream holds so far; finish makes the caller's stream wait for it. Neither waits on the host, and a CUDA graph
// captures both. Opt-in: include this file; needs NCCL 2.18 (CMake: moe_balance::nccl). Parses under host compilers, too.
// NcclGatherSync (sync/nccl_gather.cuh) gathers instead and sums in rank order. Whose communicator: docs/distributed.md.
// Source: NVIDIA's NCCL user guide, "Using NCCL with CUDA graphs".
#pragma once

#include <moe_balance/sync/nccl_connection.hpp>
#include <moe_balance/sync_concepts.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

MOEB_NAMESPACE_BEGIN

/// Sums in place, by NCCL's all-reduce.
class NcclAllReduce {
 public:
  explicit NcclAllReduce(NcclConnection& connection) : connection_(&connection) {}

  void check(std::int64_t /*n*/) const {}
  void enqueue(std::int64_t* counts, std::int64_t n, cudaStream_t side) const {
    connection_->nccl("start", "ncclAllReduce", [&] {
      return ncclAllReduce(counts, counts, static_cast<std::size_t>(n), ncclInt64, ncclSum, connection_->communicator(),
                           side);
    });
  }

 private:
  NcclConnection* connection_;
};

/// A handle; copies share their state: a stream of the highest priority, events, and what is under way. The communicator stays the user's, who
/// keeps it alive as long as any copy, and calls nothing on it, not even ncclCommDestroy, after an error has aborted it. Used by one thread at a
/// time, but for `abort`.
///
/// NCCL aborts safely only what does not block: make the communicator with config.blocking = 0 and wait until it is ready. A call on
/// one that blocks may wait on the host for a lost rank, for ever. Best it is one of its own, so that sums queue behind nobody else's; which
/// needs NCCL 2.26 with NCCL_LAUNCH_ORDER_IMPLICIT=1, as sums run beside what the other communicators of this device do: docs/distributed.md.
///
/// `counts` is device memory, which must stay alive until finish of it, or `wait`, and what they enqueued, is done. In a CUDA graph, start and
/// finish of a sum belong into one capture. The last copy goes when streams have passed all calls that used it.
///
/// Where a rank leaves, the others' streams wait for it. A program that then blocks in cudaStreamSynchronize, or copies to pageable
/// memory, hangs; `wait(stream)` waits as well, finds NCCL's asynchronous errors, and after the timeout aborts the communicator and raises.
template <class Exchange>
class BasicNcclSync {
 public:
  using Seconds = NcclConnection::Seconds;

  /// A reference to a communicator whose device is current. Further arguments are the exchange's. `timeout` bounds `wait`, and start where the
  /// communicator does not block. Errors: InvalidArgument; CudaError, without a device for one; SyncError.
  template <class... Options>
  explicit BasicNcclSync(ncclComm_t communicator, Seconds timeout, Options... options)
      : state_(std::make_shared<State>(communicator, timeout, options...)) {}
  /// With a timeout of 60 s.
  explicit BasicNcclSync(ncclComm_t communicator) : BasicNcclSync(communicator, std::chrono::seconds(60)) {}
  template <class... Options>
  BasicNcclSync(std::nullptr_t, Options...) = delete;

  [[nodiscard]] int ranks() const { return state_->connection.ranks(); }
  [[nodiscard]] int rank() const { return state_->connection.rank(); }

  /// Enqueues the sum of `n` counts behind what `stream` holds. A sum of the same counts that nobody has finished is given up, in stream order.
  /// Errors: InvalidArgument; SyncError, also for an asynchronous error of an earlier sum; CudaError.
  void start(std::int64_t* counts, std::int64_t n, cudaStream_t stream) const {
    State& state = *state_;
    state.connection.check("start");
    state.exchange.check(n);
    state.await("start", counts, stream);
    const cudaEvent_t event = state.take_event();
    state.connection.cuda("start", "cudaEventRecord", cudaEventRecord(event, stream));
    state.connection.cuda("start", "cudaStreamWaitEvent", cudaStreamWaitEvent(state.side, event, 0));
    state.exchange.enqueue(counts, n, state.side);
    state.connection.cuda("start", "cudaEventRecord", cudaEventRecord(event, state.side));
    state.under_way[counts] = event;
  }

  /// Makes `stream` wait for the sum; waits for nothing itself. Errors: SyncError; CudaError.
  void finish(std::int64_t* counts, cudaStream_t stream) const {
    state_->connection.check("finish");
    state_->await("finish", counts, stream);
  }

  /// Whether a sum of `counts` has been started and not finished.
  [[nodiscard]] bool is_started(const std::int64_t* counts) const { return state_->under_way.count(counts) != 0; }

  /// Raises SyncError, and aborts the communicator, when NCCL has met an error. start and finish call it, too.
  void check() const { state_->connection.check("check"); }

  /// Aborts the communicator where the user knows that a rank is lost: in place of ncclCommAbort, which would let an update go on with a sum that
  /// is not complete. Every later call raises SyncError, which says `why`. Any thread may call it, while another one is in any other call.
  void abort(const std::string& why) const { state_->connection.abort("abort", "gives up: " + why); }

  /// What kernels read of failures; see UpdateProblem.
  [[nodiscard]] const std::int32_t* failure_flag() const { return state_->connection.failure_flag(); }

  /// In place of cudaStreamSynchronize on a stream that waits for sums: returns when the stream has done all it holds. Errors: SyncError
  /// when NCCL meets an error or the timeout is over, and the communicator is aborted; CudaError.
  void wait(cudaStream_t stream) const { state_->connection.wait(stream); }

  /// The exchange, for what it offers besides.
  [[nodiscard]] const Exchange& exchange() const { return state_->exchange; }

 private:
  struct State {
    NcclConnection connection;
    Exchange exchange;
    cudaStream_t side = nullptr;
    std::unordered_map<const std::int64_t*, cudaEvent_t> under_way;
    std::vector<cudaEvent_t> events;  ///< all that were created
    std::vector<cudaEvent_t> idle;    ///< those that no sum under way has

    template <class... Options>
    State(ncclComm_t communicator, Seconds timeout, Options... options)
        : connection(communicator, timeout), exchange(connection, options...) {
      int lowest = 0;
      int highest = 0;
      connection.cuda("NcclSync", "cudaDeviceGetStreamPriorityRange", cudaDeviceGetStreamPriorityRange(&lowest, &highest));
      connection.cuda("NcclSync", "cudaStreamCreateWithPriority",
                      cudaStreamCreateWithPriority(&side, cudaStreamNonBlocking, highest));
    }
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State() {
      for (const cudaEvent_t event : events) (void)cudaEventDestroy(event);
      if (side != nullptr) (void)cudaStreamDestroy(side);
    }

    [[nodiscard]] cudaEvent_t take_event() {
      if (idle.empty()) {
        cudaEvent_t created = nullptr;
        connection.cuda("start", "cudaEventCreateWithFlags", cudaEventCreateWithFlags(&created, cudaEventDisableTiming));
        events.push_back(created);
        return created;
      }
      const cudaEvent_t event = idle.back();
      idle.pop_back();
      return event;
    }

    /// A wait takes the event as it was last recorded, so that the event serves the next sum at once.
    void await(const char* in, const std::int64_t* counts, cudaStream_t stream) {
      const auto found = under_way.find(counts);
      if (found == under_way.end()) return;
      const cudaEvent_t event = found->second;
      connection.cuda(in, "cudaStreamWaitEvent", cudaStreamWaitEvent(stream, event, 0));
      under_way.erase(found);
      idle.push_back(event);
    }
  };

  std::shared_ptr<State> state_;
};

/// Sums by ncclAllReduce.
using NcclSync = BasicNcclSync<NcclAllReduce>;
static_assert(SyncPolicyOn<NcclSync, cudaStream_t>);

MOEB_NAMESPACE_END
