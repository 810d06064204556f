// MpiSync: sums over the ranks of an MPI communicator, on the CPU, without blocking: start begins an MPI_Iallreduce, finish completes it. Opt-in:
// include this file; needs MPI 3 (CMake: moe_balance::mpi).
// The communicator is the group that shares a sum: docs/distributed.md says which one that is in each kind of parallelism.
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/sync_concepts.hpp>
#include <moe_balance/views.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include <mpi.h>

MOEB_NAMESPACE_BEGIN

/// A handle; copies share their state. Sums run in buffers of its own, so that MPI never writes into the caller's memory, not even after a
/// timeout. Used by one thread at a time, one that MPI allows to call it: with MPI_THREAD_MULTIPLE several threads may each have their own. The last
/// copy goes before MPI_Finalize; it waits for sums that nobody has read, up to the timeout. One that goes later leaves all to MPI.
///
/// MPI has no way to cancel a sum that a dead rank holds up. After a SyncError every call raises again, and the program ends with MPI_Abort or
/// std::_Exit: MPI_Finalize might wait for that rank for ever. An MPI that kills all ranks with the first, as mpirun does by default, or
/// that aborts when a connection breaks, ends the program before.
class MpiSync {
 public:
  using Seconds = std::chrono::duration<double>;

  /// Collective over `communicator`, of which it keeps a duplicate, so that its messages meet nobody else's and its errors are returned to
  /// it. `timeout` bounds each wait for the other ranks, this one too. Errors: InvalidArgument; SyncError when MPI fails or a rank does not
  /// come within the timeout.
  explicit MpiSync(MPI_Comm communicator, Seconds timeout = std::chrono::seconds(60))
      : state_(std::make_shared<State>(communicator, timeout)) {}
  MpiSync(std::nullptr_t, Seconds = std::chrono::seconds(60)) = delete;

  [[nodiscard]] int ranks() const { return state_->ranks; }
  [[nodiscard]] int rank() const { return state_->rank; }

  /// Begins a sum of `n` counts; they are copied, and `counts` stays as it is until finish. A sum of the same counts that nobody has
  /// finished is completed first and given up. Errors: InvalidArgument; SyncError.
  void start(std::int64_t* counts, std::int64_t n, const Host& /*place*/) const {
    constexpr std::int64_t most = std::numeric_limits<int>::max() - Sum::header;
    MOEB_EXPECTS(n >= 0 && n <= most, "MpiSync::start", "n", std::to_string(n), "0 to " + std::to_string(most));
    state_->raise_earlier_failure("start");
    if (is_started(counts)) state_->put_aside(state_->completed("start", counts));
    state_->start(counts, n);
  }

  /// Waits for the sum and writes it. Errors: SyncError, with `counts` as they were, when MPI fails, the sum does not complete within
  /// the timeout, or ranks have started it with different numbers of counts.
  void finish(std::int64_t* counts, const Host& /*place*/) const {
    state_->raise_earlier_failure("finish");
    if (!is_started(counts)) return;
    std::unique_ptr<Sum> sum = state_->completed("finish", counts);
    std::copy(sum->words.begin() + Sum::header, sum->words.end(), counts);
    state_->put_aside(std::move(sum));
  }

  /// Whether a sum of `counts` has been started and not finished.
  [[nodiscard]] bool is_started(const std::int64_t* counts) const { return state_->under_way.count(counts) != 0; }

 private:
  /// What MPI sums: a header, which tells whether all ranks give the same number of counts, and the counts. MPI itself does not find that out:
  /// some ranks would get wrong sums. Sums of values and of their squares are those of equal values only where all are equal (else
  /// their variance is not 0), and that for every rank alike; of both halves of n, so that no square overflows.
  struct Sum {
    static constexpr std::int64_t header = 4;
    std::vector<std::int64_t> words;
    MPI_Request request = MPI_REQUEST_NULL;
    std::int64_t index = 0;

    [[nodiscard]] static std::array<std::int64_t, header> header_of(std::int64_t n) {
      const std::int64_t low = n & 0xffff;
      const std::int64_t high = n >> 16;
      return {low, low * low, high, high * high};
    }
    void assign(const std::int64_t* counts, std::int64_t n) {
      const auto begin = header_of(n);
      words.assign(begin.begin(), begin.end());
      words.insert(words.end(), counts, counts + n);
    }
    [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(words.size()) - header; }
    [[nodiscard]] bool is_alike(std::int64_t ranks) const {
      const auto own = header_of(size());
      return std::equal(own.begin(), own.end(), words.begin(), [&](auto one, auto all) { return one * ranks == all; });
    }
  };

  /// A communicator on its way; MPI writes to it until its request is complete.
  struct Duplicate {
    MPI_Comm communicator = MPI_COMM_NULL;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  struct State {
    Seconds timeout;
    MPI_Comm communicator = MPI_COMM_NULL;
    int rank = 0;
    int ranks = 1;
    std::int64_t started = 0;
    std::unordered_map<const std::int64_t*, std::unique_ptr<Sum>> under_way;
    std::vector<std::unique_ptr<Sum>> idle;  ///< read sums, whose memory the next ones take
    std::string failure;

    State(MPI_Comm given, Seconds limit) : timeout(limit) {
      const char* call = "MpiSync";
      MOEB_EXPECTS(limit.count() > 0 && limit.count() <= 1e9, call, "timeout", std::to_string(limit.count()),
                   "more than 0 and at most 1e9 seconds");
      MOEB_EXPECTS(mpi_is_up(), call, "communicator", "given while MPI is not running", "between MPI_Init and MPI_Finalize");
      MOEB_EXPECTS(given != MPI_COMM_NULL, call, "communicator", "MPI_COMM_NULL",
                   "a communicator that this rank belongs to");
      int between_groups = 0;
      check(call, "MPI_Comm_test_inter", MPI_Comm_test_inter(given, &between_groups));
      MOEB_EXPECTS(between_groups == 0, call, "communicator", "an inter-communicator", "a communicator of one group");
      check(call, "MPI_Comm_rank", MPI_Comm_rank(given, &rank));
      check(call, "MPI_Comm_size", MPI_Comm_size(given, &ranks));
      duplicate(call, given);
      check(call, "MPI_Comm_set_errhandler", MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN));
    }
    State(const State&) = delete;
    State& operator=(const State&) = delete;

    /// Sums that nobody has read are completed, as other ranks may wait for them. Memory that MPI may still write to is never freed.
    ~State() {
      const auto deadline = std::chrono::steady_clock::now() + timeout;
      bool all_complete = failure.empty() && mpi_is_up();
      for (auto& [counts, sum] : under_way) {
        if (!all_complete || test_until(sum->request, deadline) != Wait::complete) {
          all_complete = false;
          (void)sum.release();
        }
      }
      if (all_complete && communicator != MPI_COMM_NULL) (void)MPI_Comm_free(&communicator);
    }

    void start(const std::int64_t* counts, std::int64_t n) {
      std::unique_ptr<Sum> sum = std::make_unique<Sum>();
      if (!idle.empty()) {
        sum = std::move(idle.back());
        idle.pop_back();
      }
      sum->assign(counts, n);
      sum->index = started++;
      Sum& begun = *(under_way[counts] = std::move(sum));
      check("start", "MPI_Iallreduce",
            MPI_Iallreduce(MPI_IN_PLACE, begun.words.data(), static_cast<int>(begun.words.size()), MPI_INT64_T, MPI_SUM,
                           communicator, &begun.request));
    }

    /// Waits for the sum of `counts` and takes it out.
    [[nodiscard]] std::unique_ptr<Sum> completed(const char* call, const std::int64_t* counts) {
      const auto found = under_way.find(counts);
      Sum& sum = *found->second;
      const std::string what = "sum " + std::to_string(sum.index) + " of " + std::to_string(sum.size()) + " counts";
      await(call, sum.request, what);
      if (!sum.is_alike(ranks)) fail(call, "finds that other ranks gave another number of counts to " + what);
      std::unique_ptr<Sum> result = std::move(found->second);
      under_way.erase(found);
      return result;
    }

    void put_aside(std::unique_ptr<Sum> sum) { idle.push_back(std::move(sum)); }

    void raise_earlier_failure(const char* call) const {
      if (!failure.empty()) raise<SyncError>(sentence(call) + "finds that an earlier sum failed: " + failure);
    }

   private:
    /// Where a rank does not come, the memory that MPI may still write to stays.
    void duplicate(const char* call, MPI_Comm given) {
      auto copy = std::make_unique<Duplicate>();
      check(call, "MPI_Comm_idup", MPI_Comm_idup(given, &copy->communicator, &copy->request));
      Duplicate& begun = *copy.release();
      await(call, begun.request, "the group");
      copy.reset(&begun);
      communicator = copy->communicator;
    }

    /// Returns when the request is complete.
    void await(const char* call, MPI_Request& request, const std::string& what) {
      const auto begin = std::chrono::steady_clock::now();
      const Wait wait = test_until(request, begin + timeout);
      if (wait == Wait::complete) return;
      const Seconds waited = std::chrono::steady_clock::now() - begin;
      const std::string text = "waited " + std::to_string(waited.count()) + " s for ";
      if (wait == Wait::failed) fail(call, text + what + ", then " + failure);
      fail(call, text + "all ranks to join " + what + "; a rank has left, stalled or failed");
    }

    enum class Wait : std::uint8_t { complete, late, failed };

    [[nodiscard]] static bool mpi_is_up() {
      int initialised = 0;
      int finalised = 0;
      (void)MPI_Initialized(&initialised);
      (void)MPI_Finalized(&finalised);
      return initialised != 0 && finalised == 0;
    }

    /// Polls, at first as fast as others let it, then every 50 us, so that ranks that share a core get on.
    template <class Deadline>
    [[nodiscard]] Wait test_until(MPI_Request& request, const Deadline& deadline) {
      constexpr int eager_polls = 1000;
      for (std::int64_t poll = 0;; ++poll) {
        int complete = 0;
        if (const int error = state_of(request, complete); error != MPI_SUCCESS) {
          failure = "MPI failed: " + text_of(error);
          return Wait::failed;
        }
        if (complete != 0) return Wait::complete;
        if (std::chrono::steady_clock::now() >= deadline) return Wait::late;
        if (poll < eager_polls) {
          std::this_thread::yield();
        } else {
          std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
      }
    }

    /// Errors of MPI_COMM_WORLD are returned while it lives, in one thread at a time, as each puts back the handler that it found. Open MPI
    /// hands an error of a sum over any communicator to that handler, which by default ends the program.
    struct ErrorsAreReturned {
      inline static std::mutex mutex;
      std::lock_guard<std::mutex> lock{mutex};
      MPI_Errhandler before = MPI_ERRHANDLER_NULL;
      ErrorsAreReturned() {
        (void)MPI_Comm_get_errhandler(MPI_COMM_WORLD, &before);
        (void)MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
      }
      ErrorsAreReturned(const ErrorsAreReturned&) = delete;
      ErrorsAreReturned& operator=(const ErrorsAreReturned&) = delete;
      ~ErrorsAreReturned() {
        (void)MPI_Comm_set_errhandler(MPI_COMM_WORLD, before);
        (void)MPI_Errhandler_free(&before);
      }
    };

    /// Frees the request when it is complete. The handler of MPI_COMM_WORLD is touched then only, not by every poll.
    [[nodiscard]] static int state_of(MPI_Request& request, int& complete) {
      const int error = MPI_Request_get_status(request, &complete, MPI_STATUS_IGNORE);
      if (error != MPI_SUCCESS || complete == 0) return error;
      const ErrorsAreReturned guard;
      return MPI_Test(&request, &complete, MPI_STATUS_IGNORE);
    }

    void check(const char* call, const char* function, int error) {
      if (error != MPI_SUCCESS) fail(call, std::string(function) + " failed: " + text_of(error));
    }

    [[noreturn]] void fail(const char* call, const std::string& what) {
      failure = sentence(call) + what;
      raise<SyncError>(failure);
    }

    [[nodiscard]] std::string sentence(const char* call) const {
      return std::string("moe_balance: MpiSync::") + call + ": rank " + std::to_string(rank) + " of " +
             std::to_string(ranks) + " ";
    }

    [[nodiscard]] static std::string text_of(int error) {
      char text[MPI_MAX_ERROR_STRING + 1] = {};
      int length = 0;
      // Open MPI's own codes are negative, and it takes asking for their text as another error.
      if (error < 0 || MPI_Error_string(error, text, &length) != MPI_SUCCESS) return "error " + std::to_string(error);
      return std::string(text, static_cast<std::size_t>(length));
    }
  };

  std::shared_ptr<State> state_;
};
static_assert(SyncPolicyOn<MpiSync, Host>);

MOEB_NAMESPACE_END
