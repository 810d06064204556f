// An NCCL communicator as the Sync policies see it. sync/nccl.hpp includes it.
// Source: NVIDIA's NCCL user guide, "Asynchronous errors and error handling", "Fault tolerance".
#pragma once

#include <moe_balance/error.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

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

MOEB_NAMESPACE_END
