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
    for (std::size_t p = 0; p < previous.size(); ++p) {
      if (previous[p] >= 0) add(had_[at(previous[p])], work.rank_of(static_cast<int>(p)));
    }
  }

  /// The step that lowers the busiest rank's load most, of those after which no more than `most_moves` experts have moved: an exchange, or one
  /// replica more of an expert that the busiest rank has; where none does, another expert in the place of a replica there. First -1 where no step
  /// does. Experts stay on their nodes. Replicas of an expert on one rank are alike: the first stands for all.
  [[nodiscard]] PlacementStep best(int most_moves) {
    look();
    most_moves_ = most_moves;
    best_ = balance_;
    chosen_ = {};
    for (const First& first : firsts_) {
      if (first.rank == busy()) consider_helping(first);
    }
    if (chosen_.first >= 0) return chosen_;
    for (const First& first : firsts_) {
      if (first.rank == busy() && work_.replicas(first.expert) > 1) consider_giving_up(first);
    }
    return chosen_;
  }

 private:
  /// A rank's first replica of an expert.
  struct First {
    int place;
    int rank;
    std::int32_t expert;
    double share;
    bool near;  ///< on the busiest rank's node
    int lost;   ///< moves that the rank makes less with a replica less
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
    const auto found = std::lower_bound(holders.begin(), holders.end(), rank,
                                        [](const Holder& holder, int wanted) { return holder.rank < wanted; });
    return found != holders.end() && found->rank == rank ? found->copies : 0;
  }

  [[nodiscard]] int busy() const { return by_load_.front(); }
  [[nodiscard]] bool is_near(int rank) const { return work_.node_of_rank(rank) == work_.node_of_rank(busy()); }

  /// Whether a placement with this load on a rank cannot be better than the best so far.
  [[nodiscard]] bool too_much(double load) const { return load > best_.busiest * (1 + 1e-11); }

  void consider(const PlacementStep& step, const PlacementBalance& reached) {
    if (!(reached < best_)) return;
    best_ = reached;
    chosen_ = step;
  }

  /// The busiest rank's replica changes places with another, or another becomes a further replica of its expert.
  void consider_helping(const First& first) {
    look_at(first.expert, 1);
    for (const First& second : firsts_) {
      if (second.expert == first.expert || !second.near) continue;
      const int moves = moves_ + gained_by_rank_[at(second.rank)] - second.lost;
      const int exchanged = moves + gained_by_busy_[at(second.expert)] - first.lost;
      if (second.rank != busy() && exchanged <= most_moves_) {
        consider({first.place, second.place, -1, exchanged}, after_exchange(first, second));
      }
      if (moves <= most_moves_ && may_give_way(second)) {
        consider({second.place, -1, first.expert, moves}, after_replacement(second.expert, -1, second.rank));
      }
    }
  }

  /// Whether a replica can become one of the expert looked at, and neither the load of the highest other rank, which does not fall with it, nor its own
  /// rank's, which falls by its share, rules it out.
  [[nodiscard]] bool may_give_way(const First& replaced) const {
    if (work_.replicas(replaced.expert) == 1) return false;
    const std::size_t other = by_changed_.front() == replaced.rank ? 1 : 0;
    if (other < by_changed_.size() && too_much(changed_[at(by_changed_[other])])) return false;
    return !too_much(changed_[at(replaced.rank)] + changed_share_ - replaced.share);
  }

  /// The busiest rank's replica becomes one of another expert; its own expert's other replicas share what it carried.
  void consider_giving_up(const First& first) {
    look_at(first.expert, -1);
    for (std::int32_t expert = 0; expert < work_.experts(); ++expert) {
      const int moves = moves_ + gained_by_busy_[at(expert)] - first.lost;
      if (expert == first.expert || moves > most_moves_ || !has_near(expert)) continue;
      consider({first.place, -1, expert, moves}, after_replacement(expert, 1, busy()));
    }
  }

  [[nodiscard]] bool has_near(std::int32_t expert) const {
    const std::vector<Holder>& holders = holders_[at(expert)];
    return std::any_of(holders.begin(), holders.end(), [&](const Holder& holder) { return is_near(holder.rank); });
  }

  /// Takes up the placement as it is now.
  void look() {
    load_.clear();
    for (int rank = 0; rank < work_.ranks(); ++rank) load_.push_back(work_.load_of_rank(rank));
    balance_ = {*std::max_element(load_.begin(), load_.end()),
                std::inner_product(load_.begin(), load_.end(), load_.begin(), 0.0)};
    sort_by_load(by_load_, load_);
    for (std::vector<Holder>& holders : holders_) holders.clear();
    firsts_.clear();
    for (int rank = 0, p = 0; rank < work_.ranks(); ++rank) {
      const bool near = is_near(rank);
      for (const int end = p + work_.places() / work_.ranks(); p < end; ++p) {
        const std::int32_t expert = work_.expert_at(p);
        if (add(holders_[at(expert)], rank)) firsts_.push_back({p, rank, expert, work_.share(expert), near, 0});
      }
    }
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
    for (int e = 0; e < work_.experts(); ++e) gained_by_busy_[at(e)] = surplus(busy(), e) >= 0 ? 1 : 0;
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
    const double difference = first.share - second.share;
    const double loads[] = {load_[at(busy)] - difference, load_[at(rank)] + difference};
    PlacementBalance result{std::max(loads[0], loads[1]), balance_.squares};
    if (too_much(result.busiest)) return result;
    for (const int third : by_load_) {
      if (third == busy || third == rank) continue;
      result.busiest = std::max(result.busiest, load_[at(third)]);
      break;
    }
    result.squares += loads[0] * loads[0] - load_[at(busy)] * load_[at(busy)];
    result.squares += loads[1] * loads[1] - load_[at(rank)] * load_[at(rank)];
    return result;
  }

  /// Takes up what a replica more or less (`change`) of an expert does to the loads of ranks that have some, and to the moves of each.
  void look_at(std::int32_t expert, int change) {
    changed_share_ = work_.share(expert, work_.replicas(expert) + change);
    changed_ = load_;
    changed_squares_ = balance_.squares;
    for (const Holder& holder : holders_[at(expert)]) {
      double& load = changed_[at(holder.rank)];
      load += holder.copies * (changed_share_ - work_.share(expert));
      changed_squares_ += load * load - load_[at(holder.rank)] * load_[at(holder.rank)];
    }
    sort_changed();
    if (!counts_moves_) return;
    std::fill(gained_by_rank_.begin(), gained_by_rank_.end(), 1);
    for (const Holder& had : had_[at(expert)]) gained_by_rank_[at(had.rank)] = surplus(had.rank, expert) >= 0 ? 1 : 0;
  }

  /// Few ranks' loads have changed: those are put among the others.
  void sort_changed() {
    const auto above = [&](int a, int b) { return changed_[at(a)] > changed_[at(b)]; };
    by_changed_ = by_load_;
    const auto middle = std::stable_partition(by_changed_.begin(), by_changed_.end(),
                                              [&](int rank) { return changed_[at(rank)] == load_[at(rank)]; });
    std::sort(middle, by_changed_.end(), above);
    std::inplace_merge(by_changed_.begin(), middle, by_changed_.end(), above);
  }

  /// A rank's replica of `other`, which has one less (`change` -1), becomes one of the expert looked at; or, with change 1, the reverse. No better
  /// than the best so far where a load is seen that is above it.
  [[nodiscard]] PlacementBalance after_replacement(std::int32_t other, int change, int rank) const {
    const std::vector<Holder>& holders = holders_[at(other)];
    const double share = work_.share(other, work_.replicas(other) + change);
    const double rise = share - work_.share(other);
    PlacementBalance result{0, changed_squares_};
    const auto add = [&](int each, int copies) {
      const double old = changed_[at(each)];
      const double load = old + copies * rise + (each == rank ? change * (share - changed_share_) : 0);
      result.busiest = std::max(result.busiest, load);
      result.squares += load * load - old * old;
      return !too_much(load);
    };
    if (!add(rank, copies(holders, rank))) return result;
    for (const Holder& holder : holders) {
      if (holder.rank != rank && !add(holder.rank, holder.copies)) return result;
    }
    for (const int each : by_changed_) {
      if (each == rank || copies(holders, each) > 0) continue;
      result.busiest = std::max(result.busiest, changed_[at(each)]);
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
  // After look_at, with a replica more or less of its expert: the share of each, and loads as if no rank had gained or lost one.
  double changed_share_ = 0;
  std::vector<double> changed_;
  std::vector<int> by_changed_;
  double changed_squares_ = 0;
  // Of best.
  int most_moves_ = 0;
  PlacementBalance best_;
  PlacementStep chosen_;
};

}  // namespace detail

MOEB_NAMESPACE_END
