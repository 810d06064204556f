// ThreadSync: sums over the threads of one process, each a rank; for tests and for programs that run one thread per rank on the CPU. An include
// of its own, outside the umbrella headers, as those of the other ranks are.
// start adds the rank's counts to a sum that all ranks share and returns; finish waits until every rank has started that sum.
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/sync_concepts.hpp>
#include <moe_balance/views.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

MOEB_NAMESPACE_BEGIN

/// One rank's handle. Copies share their state; a handle is used by one thread at a time. Sums are matched by order: the i-th that each rank
/// starts is the same one.
class ThreadSync {
 public:
  using Seconds = std::chrono::duration<double>;

  /// The handles of all ranks of a new group; element r is that of rank r. `timeout` bounds each wait for the other ranks.
  /// Errors: InvalidArgument.
  [[nodiscard]] static std::vector<ThreadSync> group(int ranks, Seconds timeout = Seconds(60)) {
    MOEB_EXPECTS(ranks >= 1, "ThreadSync::group", "ranks", std::to_string(ranks), "1 or more");
    MOEB_EXPECTS(timeout.count() > 0 && timeout.count() <= 1e9, "ThreadSync::group", "timeout",
                 std::to_string(timeout.count()), "more than 0 and at most 1e9 seconds");
    const auto shared = std::make_shared<Group>(ranks, timeout);
    std::vector<ThreadSync> handles;
    for (int rank = 0; rank < ranks; ++rank) handles.push_back(ThreadSync(shared, rank));
    return handles;
  }

  [[nodiscard]] int ranks() const { return static_cast<int>(group_->started.size()); }
  [[nodiscard]] int rank() const { return rank_; }

  /// Adds `n` counts to the sum; waits for nobody. A sum of the same counts that nobody has finished is given up.
  /// Errors: InvalidArgument; SyncError when a rank has failed before, or adds another number of counts to this sum.
  void start(std::int64_t* counts, std::int64_t n, const Host& /*place*/) const {
    MOEB_EXPECTS(n >= 0, "ThreadSync::start", "n", std::to_string(n), "0 or more");
    const std::lock_guard lock(group_->mutex);
    raise_earlier_failure("start");
    give_up(counts);
    const std::int64_t index = group_->started[own_index()]++;
    Sum& sum = sum_of(index);
    if (sum.arrived == 0) sum.counts.assign(static_cast<std::size_t>(n), 0);
    if (static_cast<std::int64_t>(sum.counts.size()) != n) {
      fail_all("start", "adds " + std::to_string(n) + " counts to sum " + std::to_string(index) +
                            ", to which another rank has added " + std::to_string(sum.counts.size()));
    }
    for (std::size_t i = 0; i < sum.counts.size(); ++i) sum.counts[i] += counts[i];
    group_->under_way.push_back({rank_, counts, index});
    if (++sum.arrived == ranks()) group_->changed.notify_all();
  }

  /// Waits for the other ranks and writes the sum. Errors: SyncError, with `counts` as they were, when a rank has failed or does not start
  /// the sum within the timeout; it then fails in all ranks.
  void finish(std::int64_t* counts, const Host& /*place*/) const {
    std::unique_lock lock(group_->mutex);
    const UnderWay* mine = find_under_way(counts);
    if (mine == nullptr) return raise_earlier_failure("finish");
    const std::int64_t index = mine->index;
    group_->changed.wait_for(lock, group_->timeout,
                             [&] { return sum_of(index).arrived == ranks() || !group_->failure.empty(); });
    raise_earlier_failure("finish");
    const Sum& sum = sum_of(index);  // only now: while this rank waits, others start sums, which moves them
    if (sum.arrived < ranks()) {
      fail_all("finish", "waited " + std::to_string(group_->timeout.count()) + " s for " + missing_ranks(index) +
                             " to start sum " + std::to_string(index) + " of " + std::to_string(sum.counts.size()) +
                             " counts");
    }
    for (std::size_t i = 0; i < sum.counts.size(); ++i) counts[i] = sum.counts[i];
    give_up(counts);
  }

  /// Whether a sum of `counts` has been started here and not finished.
  [[nodiscard]] bool is_started(const std::int64_t* counts) const {
    const std::lock_guard lock(group_->mutex);
    return find_under_way(counts) != nullptr;
  }

  /// For a rank that cannot go on: all ranks' waits and later calls end with SyncError, which says `why`.
  void fail(const std::string& why) const {
    const std::lock_guard lock(group_->mutex);
    record_failure("fail", "gives up: " + why);
  }

 private:
  struct Sum {
    std::int64_t index;
    std::vector<std::int64_t> counts{};
    int arrived = 0;
    int left = 0;  ///< ranks that have read it or given it up
  };
  /// A sum that a rank has started and neither finished nor given up, and the memory that it is of.
  struct UnderWay {
    int rank;
    const std::int64_t* counts;
    std::int64_t index;
  };
  /// Few sums are under way at a time: lists without order, looked through.
  struct Group {
    Group(int ranks, Seconds limit) : timeout(limit), started(static_cast<std::size_t>(ranks)) {}
    const Seconds timeout;
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::int64_t> started;  ///< by each rank
    std::vector<Sum> sums;
    std::vector<UnderWay> under_way;
    std::string failure;
  };

  ThreadSync(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}

  [[nodiscard]] std::size_t own_index() const { return static_cast<std::size_t>(rank_); }

  /// The sum with this index; a new one where no rank has started it.
  [[nodiscard]] Sum& sum_of(std::int64_t index) const {
    for (Sum& sum : group_->sums) {
      if (sum.index == index) return sum;
    }
    group_->sums.push_back(Sum{index});
    return group_->sums.back();
  }

  /// This rank's sum of these counts; null where it has none under way.
  [[nodiscard]] UnderWay* find_under_way(const std::int64_t* counts) const {
    for (UnderWay& entry : group_->under_way) {
      if (entry.rank == rank_ && entry.counts == counts) return &entry;
    }
    return nullptr;
  }

  template <class T>
  static void remove(std::vector<T>& list, T& element) {
    if (&element != &list.back()) element = std::move(list.back());
    list.pop_back();
  }

  /// Forgets a sum; the last rank to do so frees it.
  void give_up(const std::int64_t* counts) const {
    UnderWay* mine = find_under_way(counts);
    if (mine == nullptr) return;
    Sum& sum = sum_of(mine->index);
    if (++sum.left == ranks()) remove(group_->sums, sum);
    remove(group_->under_way, *mine);
  }

  [[nodiscard]] std::string missing_ranks(std::int64_t index) const {
    std::string names;
    for (std::size_t r = 0; r < group_->started.size(); ++r) {
      if (group_->started[r] <= index) names += (names.empty() ? "rank " : ", ") + std::to_string(r);
    }
    return names;
  }

  void raise_earlier_failure(const char* call) const {
    if (group_->failure.empty()) return;
    raise<SyncError>(sentence(call) + "finds the group failed: " + group_->failure);
  }

  [[noreturn]] void fail_all(const char* call, const std::string& what) const {
    record_failure(call, what);
    raise<SyncError>(sentence(call) + what);
  }

  void record_failure(const char* call, const std::string& what) const {
    if (group_->failure.empty()) group_->failure = sentence(call) + what;
    group_->changed.notify_all();
  }

  [[nodiscard]] std::string sentence(const char* call) const {
    return std::string("moe_balance: ThreadSync::") + call + ": rank " + std::to_string(rank_) + " of " +
           std::to_string(ranks()) + " ";
  }

  std::shared_ptr<Group> group_;
  int rank_;
};
static_assert(SyncPolicyOn<ThreadSync, Host>);

MOEB_NAMESPACE_END
