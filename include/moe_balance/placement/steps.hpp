// The steps that improve a placement of experts: what each would do to the loads of ranks and to the moves, without doing it.
#pragma once

#include <moe_balance/placement/work.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

MOEB_NAMESPACE_BEGIN

namespace detail {

/// Finds the best step from a placement. A step's loads are the placement's and what changes, never summed anew; the comparison's slack is wider
/// than their rounding.
template <class = void>
class PlacementSteps {
 public:
  /// With `previous` ([P], or empty) moves are counted from it.
  PlacementSteps(const PlacementWork<>& work, const std::vector<std::int32_t>& previous)
      : work_(work), holders_(at(work.experts())), had_(at(work.experts())) {
    for (std::size_t p = 0; p < previous.size(); ++p) add(had_[at(previous[p])], work.rank_of(static_cast<int>(p)));
    counts_moves_ = !previous.empty();
  }

  /// The step that lowers the busiest rank's load most, of those after which no more than `most_moves` experts have moved; first -1 where none
  /// does. Experts stay on their nodes. Replicas of an expert on one rank are alike: the first stands for all.
  [[nodiscard]] PlacementStep best(int most_moves) {
    look();
    PlacementBalance best = balance_;
    PlacementStep chosen;
    const auto consider = [&](const PlacementStep& step, const PlacementBalance& reached) {
      if (!(reached < best) || (counts_moves_ && moves_after(step) > most_moves)) return;
      best = reached;
      chosen = step;
    };
    const int busy = by_load_.front();
    for (const int p : firsts_) {
      if (work_.rank_of(p) != busy) continue;
      const std::int32_t expert = work_.expert_at(p);
      look_at(expert);
      for (const int q : firsts_) {
        const std::int32_t other = work_.expert_at(q);
        const int rank = work_.rank_of(q);
        if (other == expert || work_.node_of_rank(rank) != work_.node_of_rank(busy)) continue;
        if (rank != busy) consider({p, q, -1}, after_exchange(busy, expert, rank, other));
        if (work_.replicas(other) > 1) consider({q, -1, expert}, after_replacement(rank, other, best));
      }
    }
    return chosen;
  }

 private:
  /// A rank with replicas of an expert.
  struct Holder {
    int rank;
    int copies;
  };

  template <class Integer>
  [[nodiscard]] static std::size_t at(Integer index) {
    return static_cast<std::size_t>(index);
  }

  /// Ranks come in ascending order. Whether it is the rank's first replica.
  static bool add(std::vector<Holder>& holders, int rank) {
    const bool first = holders.empty() || holders.back().rank != rank;
    if (first) holders.push_back({rank, 0});
    ++holders.back().copies;
    return first;
  }
  [[nodiscard]] static int copies(const std::vector<Holder>& holders, int rank) {
    for (const Holder& holder : holders) {
      if (holder.rank == rank) return holder.copies;
    }
    return 0;
  }

  /// Takes up the placement as it is now.
  void look() {
    for (std::vector<Holder>& holders : holders_) holders.clear();
    firsts_.clear();
    for (int p = 0; p < work_.places(); ++p) {
      if (add(holders_[at(work_.expert_at(p))], work_.rank_of(p))) firsts_.push_back(p);
    }
    load_.clear();
    for (int rank = 0; rank < work_.ranks(); ++rank) load_.push_back(work_.load_of_rank(rank));
    balance_ = {*std::max_element(load_.begin(), load_.end()),
                std::inner_product(load_.begin(), load_.end(), load_.begin(), 0.0)};
    sort_by_load(by_load_, load_);
    moves_ = 0;
    for (const int p : firsts_) moves_ += std::max(0, surplus(work_.rank_of(p), work_.expert_at(p)));
  }

  static void sort_by_load(std::vector<int>& ranks, const std::vector<double>& load) {
    ranks.resize(load.size());
    std::iota(ranks.begin(), ranks.end(), 0);
    std::stable_sort(ranks.begin(), ranks.end(), [&](int a, int b) { return load[at(a)] > load[at(b)]; });
  }

  /// Replicas of an expert that a rank has beyond those it had.
  [[nodiscard]] int surplus(int rank, std::int32_t expert) const {
    return copies(holders_[at(expert)], rank) - copies(had_[at(expert)], rank);
  }
  [[nodiscard]] int moves_of(int rank, std::int32_t loses, std::int32_t gains) const {
    return (surplus(rank, gains) >= 0 ? 1 : 0) - (surplus(rank, loses) > 0 ? 1 : 0);
  }
  [[nodiscard]] int moves_after(const PlacementStep& step) const {
    const std::int32_t old = work_.expert_at(step.first);
    if (step.second < 0) return moves_ + moves_of(work_.rank_of(step.first), old, step.expert);
    const std::int32_t other = work_.expert_at(step.second);
    return moves_ + moves_of(work_.rank_of(step.first), old, other) + moves_of(work_.rank_of(step.second), other, old);
  }

  [[nodiscard]] PlacementBalance after_exchange(int busy, std::int32_t expert, int rank, std::int32_t other) const {
    const double difference = work_.share(expert) - work_.share(other);
    const double loads[] = {load_[at(busy)] - difference, load_[at(rank)] + difference};
    PlacementBalance result{std::max(loads[0], loads[1]), balance_.squares};
    for (const int third : by_load_) {
      if (third == busy || third == rank) continue;
      result.busiest = std::max(result.busiest, load_[at(third)]);
      break;
    }
    result.squares += loads[0] * loads[0] - load_[at(busy)] * load_[at(busy)];
    result.squares += loads[1] * loads[1] - load_[at(rank)] * load_[at(rank)];
    return result;
  }

  /// Takes up what a replica more of an expert does to the loads of ranks that have some.
  void look_at(std::int32_t expert) {
    added_share_ = work_.share(expert, work_.replicas(expert) + 1);
    lowered_ = load_;
    lowered_squares_ = balance_.squares;
    for (const Holder& holder : holders_[at(expert)]) {
      double& load = lowered_[at(holder.rank)];
      load += holder.copies * (added_share_ - work_.share(expert));
      lowered_squares_ += load * load - load_[at(holder.rank)] * load_[at(holder.rank)];
    }
    sort_by_load(by_lowered_, lowered_);
  }

  /// A replica of `other` on `rank` becomes one of the expert looked at. No better than `best` where a load is seen that is above it.
  [[nodiscard]] PlacementBalance after_replacement(int rank, std::int32_t other, const PlacementBalance& best) const {
    const std::vector<Holder>& holders = holders_[at(other)];
    const double share = work_.share(other, work_.replicas(other) - 1);
    PlacementBalance result{0, lowered_squares_};
    for (const Holder& holder : holders) {
      const double old = lowered_[at(holder.rank)];
      double load = old + holder.copies * (share - work_.share(other));
      if (holder.rank == rank) load += added_share_ - share;
      if (load > best.busiest * (1 + 1e-11)) return {load, 0};
      result.busiest = std::max(result.busiest, load);
      result.squares += load * load - old * old;
    }
    for (const int each : by_lowered_) {
      if (copies(holders, each) > 0) continue;
      result.busiest = std::max(result.busiest, lowered_[at(each)]);
      break;
    }
    return result;
  }

  const PlacementWork<>& work_;
  bool counts_moves_ = false;
  std::vector<std::vector<Holder>> holders_;  ///< [E], of the placement
  std::vector<std::vector<Holder>> had_;      ///< [E], of previous
  std::vector<int> firsts_;                   ///< places with a rank's first replica of an expert
  std::vector<double> load_;                  ///< [R]
  std::vector<int> by_load_;                  ///< [R]: ranks, busiest first
  PlacementBalance balance_;
  int moves_ = 0;
  // After look_at, with a replica more of its expert: the share of each, and loads without the added one.
  double added_share_ = 0;
  std::vector<double> lowered_;
  std::vector<int> by_lowered_;
  double lowered_squares_ = 0;
};

}  // namespace detail

MOEB_NAMESPACE_END
