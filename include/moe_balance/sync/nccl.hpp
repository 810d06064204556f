// NcclSync: sums over the ranks of an NCCL communicator, on CUDA streams. start enqueues an all-reduce of int64 counts on a stream of its own, behind
// what the caller's stream holds so far; finish makes the caller's stream wait for it. Neither waits on the host, and a CUDA graph
// captures both. Opt-in: include this file; needs NCCL 2.18 (CMake: moe_balance::nccl). Parses under host compilers, too.
// NcclGatherSync (sync/nccl_gather.cuh) gathers instead and sums in rank order. Whose communicator: docs/distributed.md.
// Source: NVIDIA's NCCL user guide, "Asynchronous errors and error handling", "Fault tolerance", "Using NCCL with CUDA graphs".
#pragma once

#include <moe_balance/concepts.hpp>
#include <moe_balance/error.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <nccl.h>

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 18, 0)
#error "moe_balance/sync/nccl.hpp needs NCCL 2.18 or newer"
#endif

MOEB_NAMESPACE_BEGIN

/// The user's communicator as the Sync policies see it: its ranks, and what becomes of errors. After the first failure it is aborted, so that no
/// kernel of it waits for ever, and every later call raises SyncError.
class NcclConnection {
 public:
  using Seconds = std::chrono::duration<double>;

  NcclConnection(ncclComm_t communicator, Seconds timeout) : communicator_(communicator), timeout_(timeout) {
    MOEB_EXPECTS(communicator != nullptr, call, "communicator", "null", "a communicator that ncclCommInitRank made");
    MOEB_EXPECTS(timeout.count() > 0 && timeout.count() <= 1e9, call, "timeout", std::to_string(timeout.count()),
                 "more than 0 and at most 1e9 seconds");
    int current = 0;
    check_cuda_at_construction("finding the current device", cudaGetDevice(&current));
    check_nccl_at_construction("ncclCommCuDevice", ncclCommCuDevice(communicator, &device_));
    check_nccl_at_construction("ncclCommUserRank", ncclCommUserRank(communicator, &rank_));
    check_nccl_at_construction("ncclCommCount", ncclCommCount(communicator, &ranks_));
    MOEB_EXPECTS(current == device_, call, "the current device", std::to_string(current),
                 std::to_string(device_) + ", the communicator's");
    void* memory = nullptr;
    check_cuda_at_construction("reserving memory that host and device see",
                               cudaHostAlloc(&memory, sizeof(std::int32_t), cudaHostAllocMapped));
    host_flag_.reset(static_cast<std::int32_t*>(memory));
    *host_flag_ = 0;
    check_cuda_at_construction("mapping memory of the host", cudaHostGetDevicePointer(&memory, memory, 0));
    device_flag_ = static_cast<const std::int32_t*>(memory);
  }

  [[nodiscard]] ncclComm_t communicator() const { return communicator_; }
  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int ranks() const { return ranks_; }
  /// Where the device sees whether a sum has failed.
  [[nodiscard]] const std::int32_t* failure_flag() const { return device_flag_; }

  /// Aborts the communicator, for whom it is the user's decision; nothing where it has been aborted already. Waits for a call of NCCL that
  /// another thread is in, as NCCL demands, but no longer than the timeout: one that blocks may wait for a lost rank.
  void abort(const char* in, const std::string& what) { (void)abort_because(sentence(in) + what); }

  /// Raises SyncError when NCCL has met an error since the last call, or any call has failed before.
  void check(const char* in) {
    const ncclResult_t state = asynchronous_state(in);
    if (state != ncclSuccess && state != ncclInProgress)
      fail<SyncError>(in, "finds an asynchronous error: " + text_of(state));
  }

  /// Raises on an error of a CUDA call, after aborting the communicator: this rank will not do its part.
  void cuda(const char* in, const char* what, cudaError_t error) {
    if (error != cudaSuccess) fail<CudaError>(in, std::string(what) + " failed: " + text_of(error));
  }

  /// Calls NCCL by f and raises on an error. A communicator that does not block may still be at it then: waits for that, up to the timeout.
  template <class Function>
  void nccl(const char* in, const char* function, const Function& f) {
    const auto begin = std::chrono::steady_clock::now();
    ncclResult_t result = unless_aborted(in, f);
    while (result == ncclInProgress) {
      result = asynchronous_state(in);
      if (result == ncclInProgress) pause(in, function, begin);
    }
    if (result != ncclSuccess) fail<SyncError>(in, std::string(function) + " failed: " + text_of(result));
  }

  /// Calls f, unless the communicator has been aborted: for destructors.
  template <class Function>
  void nccl_at_end(const Function& f) const {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) (void)f();
  }

  /// Waits on the host until the stream has done all it holds; polls, so that a rank that left cannot hold it up for longer than the
  /// timeout.
  void wait(cudaStream_t stream) {
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
      check("wait");
      const cudaError_t state = cudaStreamQuery(stream);
      if (state == cudaSuccess) return;
      if (state != cudaErrorNotReady) cuda("wait", "the stream", state);
      if (cudaPeekAtLastError() == cudaErrorNotReady) (void)cudaGetLastError();  // no failure for a later call to report
      pause("wait", "the stream, whose sums not all ranks have joined", begin);
    }
  }

  [[nodiscard]] static std::string text_of(cudaError_t error) {
    return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  }

 private:
  static constexpr const char* call = "NcclSync";

  /// What f, a call of NCCL, returns. No other thread aborts in between: an aborted communicator is gone. Not under the lock, as f may block.
  template <class Function>
  [[nodiscard]] ncclResult_t unless_aborted(const char* in, const Function& f) {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_.empty()) raise_aborted(in);
      ++calls_in_nccl_;
    }
    const ncclResult_t result = f();
    const std::lock_guard lock(mutex_);
    --calls_in_nccl_;
    out_of_nccl_.notify_all();
    return result;
  }

  [[nodiscard]] ncclResult_t asynchronous_state(const char* in) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = unless_aborted(in, [&] { return ncclCommGetAsyncError(communicator_, &state); });
    if (result != ncclSuccess) fail<SyncError>(in, "ncclCommGetAsyncError failed: " + text_of(result));
    return state;
  }

  /// Between two polls; fails when the time is up.
  void pause(const char* in, const char* what, std::chrono::steady_clock::time_point begin) {
    const Seconds waited = std::chrono::steady_clock::now() - begin;
    if (waited >= timeout_) fail<SyncError>(in, "waited " + std::to_string(waited.count()) + " s for " + what);
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }

  /// Raises Error, or SyncError where another thread has aborted before.
  template <class Error>
  [[noreturn]] void fail(const char* in, const std::string& what) {
    const bool is_first = abort_because(sentence(in) + what);
    const std::lock_guard lock(mutex_);
    if (!is_first) raise_aborted(in);
    raise<Error>(failure_);
  }

  [[noreturn]] void raise_aborted(const char* in) const {
    raise<SyncError>(sentence(in) + "finds its communicator aborted: " + failure_);
  }

  /// Whether this call is the one that aborts. The flag first: the abort lets streams go on with sums that are not complete, and an update behind
  /// one must leave bias and load as they are.
  [[nodiscard]] bool abort_because(const std::string& what) {
    std::unique_lock lock(mutex_);
    if (!failure_.empty()) return false;
    failure_ = what;
    std::atomic_ref<std::int32_t>(*host_flag_).store(1);
    out_of_nccl_.wait_for(lock, timeout_, [&] { return calls_in_nccl_ == 0; });
    const ncclResult_t aborted = ncclCommAbort(communicator_);
    failure_ += aborted == ncclSuccess ? "; the communicator was aborted"
                                       : std::string("; aborting the communicator failed: ") + ncclGetErrorString(aborted);
    return true;
  }

  static void check_cuda_at_construction(const char* what, cudaError_t error) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // reported here: the next call must not be blamed for it
    raise<CudaError>(std::string("moe_balance: NcclSync: ") + what + ": " + text_of(error));
  }

  void check_nccl_at_construction(const char* function, ncclResult_t result) const {
    if (result != ncclSuccess) raise<SyncError>(std::string("moe_balance: NcclSync: ") + function + ": " + text_of(result));
  }

  [[nodiscard]] std::string sentence(const char* in) const {
    return std::string("moe_balance: NcclSync::") + in + ": rank " + std::to_string(rank_) + " of " +
           std::to_string(ranks_) + " ";
  }

  [[nodiscard]] static std::string text_of(ncclResult_t result) {
    const char* details = ncclGetLastError(nullptr);  // the thread's; the communicator may be gone
    const std::string text = ncclGetErrorString(result);
    return details == nullptr || *details == '\0' ? text : text + " (" + details + ")";
  }

  ncclComm_t communicator_;
  Seconds timeout_;
  int device_ = 0;
  int rank_ = 0;
  int ranks_ = 1;
  mutable std::mutex mutex_;  ///< of failure_ and calls_in_nccl_, and of the communicator's end
  std::condition_variable out_of_nccl_;
  std::string failure_;
  int calls_in_nccl_ = 0;
  struct FreeHostMemory {
    void operator()(std::int32_t* memory) const { (void)cudaFreeHost(memory); }
  };
  std::unique_ptr<std::int32_t, FreeHostMemory> host_flag_;
  const std::int32_t* device_flag_ = nullptr;
};

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
