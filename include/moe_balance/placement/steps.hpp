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
      : work_(work),
        counts_moves_(!previous.empty()),
        holders_(at(work.experts())),
        had_(at(work.experts())),
        gained_by_busy_(at(work.experts()), 0),
        gained_by_rank_(at(work.ranks()), 0) {
    for (std::size_t p = 0; p < previous.size(); ++p) add(had_[at(previous[p])], work.rank_of(static_cast<int>(p)));
  }

  /// The step that lowers the busiest rank's load most, of those after which no more than `most_moves` experts have moved; first -1 where none
  /// does. Experts stay on their nodes. Replicas of an expert on one rank are alike: the first stands for all.
  [[nodiscard]] PlacementStep best(int most_moves) {
    look();
    PlacementBalance best = balance_;
    PlacementStep chosen;
    const int busy = by_load_.front();
    const auto consider = [&](const PlacementStep& step, const PlacementBalance& reached) {
      if (!(reached < best)) return;
      best = reached;
      chosen = step;
    };
    for (const First& first : firsts_) {
      if (first.rank != busy) continue;
      look_at(first.expert);
      for (const First& second : firsts_) {
        if (second.expert == first.expert || work_.node_of_rank(second.rank) != work_.node_of_rank(busy)) continue;
        const int moves = moves_ + gained_by_rank_[at(second.rank)] - second.lost;
        const int exchanged = moves + gained_by_busy_[at(second.expert)] - first.lost;
        if (second.rank != busy && exchanged <= most_moves) {
          consider({first.place, second.place, -1, exchanged}, after_exchange(first, second));
        }
        if (moves <= most_moves && work_.replicas(second.expert) > 1) {
          consider({second.place, -1, first.expert, moves}, after_replacement(second, best));
        }
      }
    }
    return chosen;
  }

 private:
  /// A rank's first replica of an expert.
  struct First {
    int place;
    int rank;
    std::int32_t expert;
    int lost;  ///< moves that the rank makes less with a replica less
  };
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
      const std::int32_t expert = work_.expert_at(p);
      if (add(holders_[at(expert)], work_.rank_of(p))) firsts_.push_back({p, work_.rank_of(p), expert, 0});
    }
    load_.clear();
    for (int rank = 0; rank < work_.ranks(); ++rank) load_.push_back(work_.load_of_rank(rank));
    balance_ = {*std::max_element(load_.begin(), load_.end()),
                std::inner_product(load_.begin(), load_.end(), load_.begin(), 0.0)};
    sort_by_load(by_load_, load_);
    count_moves();
  }

  void count_moves() {
    moves_ = 0;
    if (!counts_moves_) return;
    for (First& first : firsts_) {
      const int more = surplus(first.rank, first.expert);
      first.lost = more > 0 ? 1 : 0;
      moves_ += std::max(0, more);
    }
    for (int e = 0; e < work_.experts(); ++e) gained_by_busy_[at(e)] = surplus(by_load_.front(), e) >= 0 ? 1 : 0;
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

  [[nodiscard]] PlacementBalance after_exchange(const First& first, const First& second) const {
    const int busy = first.rank;
    const int rank = second.rank;
    const double difference = work_.share(first.expert) - work_.share(second.expert);
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

  /// Takes up what a replica more of an expert does to the loads of ranks that have some, and to the moves of each.
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
    if (!counts_moves_) return;
    std::fill(gained_by_rank_.begin(), gained_by_rank_.end(), 1);
    for (const Holder& had : had_[at(expert)]) gained_by_rank_[at(had.rank)] = surplus(had.rank, expert) >= 0 ? 1 : 0;
  }

  /// A replica becomes one of the expert looked at. No better than `best` where a load is seen that is above it.
  [[nodiscard]] PlacementBalance after_replacement(const First& replaced, const PlacementBalance& best) const {
    const std::vector<Holder>& holders = holders_[at(replaced.expert)];
    const double share = work_.share(replaced.expert, work_.replicas(replaced.expert) - 1);
    const double rise = share - work_.share(replaced.expert);
    PlacementBalance result{0, lowered_squares_};
    for (const Holder& holder : holders) {
      const double old = lowered_[at(holder.rank)];
      double load = old + holder.copies * rise;
      if (holder.rank == replaced.rank) load += added_share_ - share;
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
  bool counts_moves_;
  std::vector<std::vector<Holder>> holders_;  ///< [E], of the placement
  std::vector<std::vector<Holder>> had_;      ///< [E], of previous
  std::vector<First> firsts_;
  std::vector<double> load_;  ///< [R]
  std::vector<int> by_load_;  ///< [R]: ranks, busiest first
  PlacementBalance balance_;
  int moves_ = 0;
  std::vector<int>
      gained_by_busy_;  ///< [E]: moves that the busiest rank makes more with a replica more; 0 where none are counted
  std::vector<int> gained_by_rank_;  ///< [R]: that a rank makes more with the expert of look_at
  // After look_at, with a replica more of its expert: the share of each, and loads without the added one.
  double added_share_ = 0;
  std::vector<double> lowered_;
  std::vector<int> by_lowered_;
  double lowered_squares_ = 0;
};

}  // namespace detail

MOEB_NAMESPACE_END
