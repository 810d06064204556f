// What NcclGatherSync does without its kernel: see sync/nccl_gather.cuh.
#pragma once

#include <moe_balance/sync/nccl.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 19, 0)
#error "moe_balance/sync/nccl_gather.cuh needs NCCL 2.19 or newer"
#endif

MOEB_NAMESPACE_BEGIN

/// Sizes of NcclGatherSync's memory: all of it is allocated at construction.
struct NcclGatherOptions {
  std::int64_t largest_sum = 0;  ///< counts in one sum: experts, or layers * experts
  int kept = 2;                  ///< sums whose gathered counts are kept; any number may be under way
};

/// One count's sum over ranks, in rank order; `gathered` is [ranks, n].
MOEB_INLINE std::int64_t sum_in_rank_order(const std::int64_t* gathered, int ranks, std::int64_t n, std::int64_t index) {
  std::int64_t sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += gathered[rank * n + index];
  return sum;
}

/// Gathers every rank's counts into memory of its own, then sums them by `Launch::sum(gathered, ranks, n, counts, stream)`. With NCCL 2.27 or
/// newer that memory is a symmetric window, which NCCL's low-latency kernels serve within an NVLink domain.
template <class Launch>
class NcclAllGather {
 public:
  NcclAllGather(NcclConnection& connection, NcclGatherOptions options) : connection_(&connection), options_(options) {
    const char* call = "NcclGatherSync";
    MOEB_EXPECTS(options.largest_sum >= 1 && options.largest_sum <= std::numeric_limits<std::int32_t>::max(), call,
                 "options.largest_sum", std::to_string(options.largest_sum), "1 to 2147483647");
    MOEB_EXPECTS(options.kept >= 1, call, "options.kept", std::to_string(options.kept), "1 or more");
    allocate();
  }
  NcclAllGather(const NcclAllGather&) = delete;
  NcclAllGather& operator=(const NcclAllGather&) = delete;
  ~NcclAllGather() { release(); }

  void check(std::int64_t n) const {
    MOEB_EXPECTS(n >= 0 && n <= options_.largest_sum, "NcclGatherSync::start", "n", std::to_string(n),
                 "0 to " + std::to_string(options_.largest_sum) + ", options.largest_sum");
  }

  void enqueue(std::int64_t* counts, std::int64_t n, cudaStream_t side) {
    std::int64_t* const own = own_counts(started_);
    std::int64_t* const gathered = gathered_counts(started_);
    ++started_;
    connection_->cuda(
        "start", "copying counts",
        cudaMemcpyAsync(own, counts, static_cast<std::size_t>(n) * sizeof(std::int64_t), cudaMemcpyDeviceToDevice, side));
    connection_->nccl("start", "ncclAllGather", [&] {
      return ncclAllGather(own, gathered, static_cast<std::size_t>(n), ncclInt64, connection_->communicator(), side);
    });
    connection_->cuda("start", "summing counts", Launch::sum(gathered, connection_->ranks(), n, counts, side));
  }

  /// The counts of each rank in the sum started last: device memory [ranks, n], there when that sum is finished, and until
  /// options.kept further sums have been started.
  [[nodiscard]] const std::int64_t* counts_of_ranks() const {
    return started_ == 0 ? nullptr : gathered_counts(started_ - 1);
  }

 private:
  /// Words of one rank's counts: an even number, so that each part starts at a multiple of 16 bytes.
  [[nodiscard]] std::int64_t row_words() const { return (options_.largest_sum + 1) / 2 * 2; }
  /// Words of one sum: this rank's counts, then all ranks'.
  [[nodiscard]] std::int64_t slot_words() const { return row_words() * (connection_->ranks() + 1); }
  [[nodiscard]] std::int64_t* own_counts(std::int64_t sum) const {
    return memory_.data + slot_words() * (sum % options_.kept);
  }
  [[nodiscard]] std::int64_t* gathered_counts(std::int64_t sum) const { return own_counts(sum) + row_words(); }

  /// Freed with the object, also where the constructor fails after it.
  struct Memory {
    std::int64_t* data = nullptr;
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
      if (data != nullptr) (void)ncclMemFree(data);
    }
  };

  void allocate() {
    const std::size_t bytes =
        static_cast<std::size_t>(slot_words()) * static_cast<std::size_t>(options_.kept) * sizeof(std::int64_t);
    void* memory = nullptr;
    connection_->nccl("NcclGatherSync", "ncclMemAlloc", [&] { return ncclMemAlloc(&memory, bytes); });
    memory_.data = static_cast<std::int64_t*>(memory);
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
    if (connection_->ranks() == 1) return;  // nobody to share it with
    connection_->nccl("NcclGatherSync", "ncclCommWindowRegister", [&] {
      return ncclCommWindowRegister(connection_->communicator(), memory, bytes, &window_, NCCL_WIN_COLL_SYMMETRIC);
    });
  }
  void release() {
    if (window_ == nullptr) return;  // NCCL registers nothing where it has no symmetric memory
    connection_->nccl_at_end([&] { return ncclCommWindowDeregister(connection_->communicator(), window_); });
  }
  ncclWindow_t window_ = nullptr;
#else
  }
  void release() {}
#endif

  NcclConnection* connection_;
  NcclGatherOptions options_;
  Memory memory_;
  std::int64_t started_ = 0;
};

MOEB_NAMESPACE_END
