// A placement of experts while it is made: how it starts (EPLB's packings), what it weighs and what it moves.
#pragma once

#include <moe_balance/placement/arguments.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

MOEB_NAMESPACE_BEGIN

namespace detail {

// Templates, so that files that do not place experts need not compile what this uses of the standard library.

/// Largest load of a rank; then the sum of squares, to tell placements with equal largest loads apart.
struct PlacementBalance {
  double busiest = 0;
  double squares = 0;
  [[nodiscard]] bool operator<(const PlacementBalance& other) const {
    const double slack = 1e-12 * busiest;
    if (busiest < other.busiest - slack) return true;
    return busiest <= other.busiest + slack && squares < other.squares * (1 - 1e-12);
  }
};

/// Places `first` and `second` change experts; or, without a second, place `first` gets another replica of `expert`.
struct PlacementStep {
  int first = -1;
  int second = -1;
  std::int32_t expert = -1;
  int moves = 0;  ///< of the placement after it
};

template <class = void>
class PlacementWork {
 public:
  explicit PlacementWork(const PlacementArgs& args)
      : args_(args),
        experts_(static_cast<int>(args.counts.size)),
        per_rank_(args.physical_experts / args.ranks),
        nodes_(args.nodes > 1 && args.groups % args.nodes == 0 ? args.nodes : 1),
        replicas_(static_cast<std::size_t>(experts_), 0) {}

  void start_from(const std::vector<std::int32_t>& logical) {
    place_ = logical;
    std::fill(replicas_.begin(), replicas_.end(), 0);
    for (const std::int32_t expert : place_) ++replicas_[at(expert)];
  }

  /// From what ranks hold now, with as few moves as it takes to give experts that are nowhere a place, and places that hold nothing an expert: the most
  /// loaded experts first, each to the least loaded rank with room on its group's node, and elsewhere only where that node has none.
  void start_from_previous(const std::vector<std::int32_t>& previous) {
    place_ = previous;
    std::fill(replicas_.begin(), replicas_.end(), 0);
    for (const std::int32_t expert : place_) {
      if (expert >= 0) ++replicas_[at(expert)];
    }
    std::vector<int> missing;
    for (int e = 0; e < experts_; ++e) {
      if (replicas_[at(e)] == 0) missing.push_back(e);
    }
    std::stable_sort(missing.begin(), missing.end(),
                     [&](int a, int b) { return args_.counts.data[a] > args_.counts.data[b]; });
    const std::vector<int> node_of_group = nodes_of_groups(missing);
    auto empty = std::count(place_.begin(), place_.end(), -1);
    std::vector<int> left;
    for (const int expert : missing) {
      const int place = lightest_empty(node_of_group[at(group_of(expert))]);
      if (place < 0) {
        left.push_back(expert);
      } else {
        put(place, expert);
        --empty;
      }
    }
    for (std::size_t i = 0; i < left.size(); ++i) {
      const bool fills = static_cast<std::size_t>(empty) >= left.size() - i;
      put(fills ? lightest_empty(-1) : least_missed(left[i], node_of_group[at(group_of(left[i]))]), left[i]);
      if (fills) --empty;
    }
    for (int place = lightest_empty(-1); place >= 0; place = lightest_empty(-1))
      put(place, most_wanted(rank_of(place), node_of_group));
  }

  /// EPLB's three packings.
  void start_from_counts() { pack(args_.physical_experts); }

  /// The same, but experts get more replicas than their node has ranks only when all have as many: beside another, a replica takes less off its rank
  /// than its place could.
  void start_evenly() { pack(ranks_per_node()); }

  void apply(const PlacementStep& step) {
    if (step.second >= 0) {
      std::swap(place_[at(step.first)], place_[at(step.second)]);
    } else {
      --replicas_[at(place_[at(step.first)])];
      ++replicas_[at(step.expert)];
      place_[at(step.first)] = step.expert;
    }
  }

  [[nodiscard]] int experts() const { return experts_; }
  [[nodiscard]] int places() const { return args_.physical_experts; }
  [[nodiscard]] int ranks() const { return args_.ranks; }
  [[nodiscard]] int ranks_per_node() const { return args_.ranks / nodes_; }
  [[nodiscard]] int rank_of(int place) const { return place / per_rank_; }
  [[nodiscard]] int node_of_rank(int rank) const { return rank / ranks_per_node(); }
  [[nodiscard]] std::int32_t expert_at(int place) const { return place_[at(place)]; }
  [[nodiscard]] const std::vector<std::int32_t>& logical_of_physical() const { return place_; }
  [[nodiscard]] int replicas(std::int32_t expert) const { return replicas_[at(expert)]; }
  [[nodiscard]] int most_replicas() const { return *std::max_element(replicas_.begin(), replicas_.end()); }
  /// What each of so many replicas of an expert carries.
  [[nodiscard]] double share(std::int32_t expert, int replicas) const {
    return static_cast<double>(args_.counts.data[expert]) / replicas;
  }
  [[nodiscard]] double share(std::int32_t expert) const { return share(expert, replicas(expert)); }

  [[nodiscard]] double load_of_rank(int rank) const {
    double load = 0;
    for (int p = rank * per_rank_; p < (rank + 1) * per_rank_; ++p) {
      if (place_[at(p)] >= 0) load += share(place_[at(p)]);
    }
    return load;
  }
  [[nodiscard]] PlacementBalance balance() const {
    PlacementBalance result;
    for (int rank = 0; rank < args_.ranks; ++rank) {
      const double load = load_of_rank(rank);
      result.busiest = std::max(result.busiest, load);
      result.squares += load * load;
    }
    return result;
  }

  [[nodiscard]] int moves(const std::vector<std::int32_t>& previous) const {
    if (previous.empty()) return 0;
    int count = 0;
    for (int rank = 0; rank < args_.ranks; ++rank) {
      // A rank keeps as many replicas of an expert as it has now and had before.
      std::vector<std::int32_t> had(previous.begin() + rank * per_rank_, previous.begin() + (rank + 1) * per_rank_);
      for (int i = 0; i < per_rank_; ++i) {
        const auto found = std::find(had.begin(), had.end(), place_[at(rank * per_rank_ + i)]);
        if (found == had.end())
          ++count;
        else
          had.erase(found);
      }
    }
    return count;
  }

  /// Whether a group's experts are on several nodes.
  [[nodiscard]] bool splits_groups() const {
    if (nodes_ == 1) return false;
    std::vector<int> node_of_group(at(args_.groups), -1);
    for (int p = 0; p < args_.physical_experts; ++p) {
      const int node = node_of_rank(rank_of(p));
      int& known = node_of_group[at(place_[at(p)] / (experts_ / args_.groups))];
      if (known >= 0 && known != node) return true;
      known = node;
    }
    return false;
  }

  /// Puts experts that a rank keeps where they were, so that only moved ones change place.
  void settle(const std::vector<std::int32_t>& previous) {
    if (previous.empty()) return;
    for (int rank = 0; rank < args_.ranks; ++rank) {
      std::vector<std::int32_t> own(place_.begin() + rank * per_rank_, place_.begin() + (rank + 1) * per_rank_);
      std::vector<int> open;
      for (int p = rank * per_rank_; p < (rank + 1) * per_rank_; ++p) {
        const auto found = std::find(own.begin(), own.end(), previous[at(p)]);
        if (found == own.end()) {
          open.push_back(p);
        } else {
          place_[at(p)] = *found;
          own.erase(found);
        }
      }
      for (std::size_t i = 0; i < open.size(); ++i) place_[at(open[i])] = own[i];
    }
  }

  [[nodiscard]] Placement finished(const std::vector<std::int32_t>& previous) const {
    Placement result;
    result.logical_of_physical = place_;
    result.replica_count.assign(replicas_.begin(), replicas_.end());
    result.most_replicas = most_replicas();
    result.logical_to_physical.assign(at(experts_) * at(result.most_replicas), -1);
    std::vector<int> next(at(experts_), 0);
    for (std::size_t p = 0; p < place_.size(); ++p) {
      const std::size_t expert = at(place_[p]);
      result.logical_to_physical[expert * at(result.most_replicas) + at(next[expert]++)] = static_cast<std::int32_t>(p);
    }
    result.moves = moves(previous);
    result.busiest = balance().busiest;
    return result;
  }

 private:
  template <class Integer>
  [[nodiscard]] static std::size_t at(Integer index) {
    return static_cast<std::size_t>(index);
  }

  void put(int place, int expert) {
    if (place_[at(place)] >= 0) --replicas_[at(place_[at(place)])];
    ++replicas_[at(expert)];
    place_[at(place)] = expert;
  }

  [[nodiscard]] int group_of(int expert) const { return expert / (experts_ / args_.groups); }

  /// The node that has experts of each group; groups that are nowhere, the most loaded first, go whole to the least loaded node with room for them
  /// beside what others there lack. -1 where groups may be anywhere.
  [[nodiscard]] std::vector<int> nodes_of_groups(const std::vector<int>& missing) const {
    std::vector<int> node_of_group(at(args_.groups), -1);
    if (nodes_ == 1) return node_of_group;
    std::vector<int> room(at(nodes_), 0);
    std::vector<double> load(at(nodes_), 0.0);
    for (int p = 0; p < args_.physical_experts; ++p) {
      const int node = node_of_rank(rank_of(p));
      const std::int32_t expert = place_[at(p)];
      if (expert < 0) {
        ++room[at(node)];
        continue;
      }
      int& known = node_of_group[at(group_of(expert))];
      if (known < 0) known = node;
      load[at(node)] += share(expert);
    }
    std::vector<double> lacking_load(at(args_.groups), 0.0);
    std::vector<int> lost;
    for (const int expert : missing) {
      const int group = group_of(expert);
      const int node = node_of_group[at(group)];
      const auto count = static_cast<double>(args_.counts.data[expert]);
      if (node < 0 && std::find(lost.begin(), lost.end(), group) == lost.end()) lost.push_back(group);
      (node < 0 ? lacking_load[at(group)] : load[at(node)]) += count;
      if (node >= 0) --room[at(node)];
    }
    std::stable_sort(lost.begin(), lost.end(), [&](int a, int b) { return lacking_load[at(a)] > lacking_load[at(b)]; });
    const int size = experts_ / args_.groups;
    for (const int group : lost) {
      int best = 0;
      for (int node = 1; node < nodes_; ++node) {
        const bool fits = room[at(node)] >= size;
        const bool best_fits = room[at(best)] >= size;
        const bool is_better = fits ? load[at(node)] < load[at(best)] : room[at(node)] > room[at(best)];
        if (fits == best_fits ? is_better : fits) best = node;
      }
      node_of_group[at(group)] = best;
      room[at(best)] -= size;
      load[at(best)] += lacking_load[at(group)];
    }
    return node_of_group;
  }

  /// A place that holds nothing, of the least loaded rank that has one, on a node or (-1) on any; -1 where there is none.
  [[nodiscard]] int lightest_empty(int node) const {
    int best = -1;
    double least = 0;
    for (int rank = 0; rank < args_.ranks; ++rank) {
      if (node >= 0 && node_of_rank(rank) != node) continue;
      const auto end = place_.begin() + (rank + 1) * per_rank_;
      const auto empty = std::find(place_.begin() + rank * per_rank_, end, -1);
      if (empty == end) continue;
      const double load = load_of_rank(rank);
      if (best >= 0 && load >= least) continue;
      best = static_cast<int>(empty - place_.begin());
      least = load;
    }
    return best;
  }

  /// The place whose replica, one of several, gives way to an expert at the least cost: on its node, if one is there.
  [[nodiscard]] int least_missed(int expert, int node) {
    int best = -1;
    bool best_is_near = false;
    PlacementBalance least;
    for (int p = 0; p < args_.physical_experts; ++p) {
      const std::int32_t other = place_[at(p)];
      const bool is_near = node >= 0 && node_of_rank(rank_of(p)) == node;
      if (other < 0 || replicas_[at(other)] == 1 || (best_is_near && !is_near)) continue;  // empty places are others' to fill
      put(p, expert);
      const PlacementBalance reached = balance();
      put(p, other);
      if (best >= 0 && best_is_near == is_near && !(reached < least)) continue;
      best = p;
      best_is_near = is_near;
      least = reached;
    }
    return best;
  }

  /// The expert that gains most by a replica on a rank: of those of the node's groups that the rank lacks, if there are any.
  [[nodiscard]] int most_wanted(int rank, const std::vector<int>& node_of_group) const {
    constexpr int any = std::numeric_limits<int>::max();
    const auto own = place_.begin() + rank * per_rank_;
    std::vector<int> of_node, lacking, all;
    for (int e = 0; e < experts_; ++e) {
      all.push_back(e);
      if (nodes_ > 1 && node_of_group[at(group_of(e))] != node_of_rank(rank)) continue;
      of_node.push_back(e);
      if (std::find(own, own + per_rank_, e) == own + per_rank_) lacking.push_back(e);
    }
    return heaviest(!lacking.empty() ? lacking : !of_node.empty() ? of_node : all, any);
  }

  /// Heaviest first, each to the lightest pack that has room; packs hold equally many.
  [[nodiscard]] static std::vector<int> packed(const std::vector<double>& weights, int packs) {
    std::vector<int> order(weights.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return weights[at(a)] > weights[at(b)]; });
    std::vector<int> pack_of(weights.size());
    std::vector<double> load(at(packs), 0.0);
    std::vector<std::size_t> held(at(packs), 0);
    for (const int item : order) {
      int best = -1;
      for (int pack = 0; pack < packs; ++pack) {
        if (held[at(pack)] == weights.size() / at(packs)) continue;
        if (best < 0 || load[at(pack)] < load[at(best)]) best = pack;
      }
      pack_of[at(item)] = best;
      load[at(best)] += weights[at(item)];
      ++held[at(best)];
    }
    return pack_of;
  }

  /// Groups to nodes, replicas inside nodes, replicas to ranks.
  void pack(int most_replicas) {
    place_.assign(at(args_.physical_experts), -1);
    const int groups = nodes_ > 1 ? args_.groups : 1;
    const int group_size = experts_ / groups;
    std::vector<double> group_load(at(groups), 0.0);
    for (int e = 0; e < experts_; ++e) group_load[at(e / group_size)] += static_cast<double>(args_.counts.data[e]);
    const std::vector<int> node_of_group = packed(group_load, nodes_);
    for (int node = 0; node < nodes_; ++node) {
      std::vector<int> members;
      for (int e = 0; e < experts_; ++e) {
        if (node_of_group[at(e / group_size)] == node) members.push_back(e);
      }
      fill_node(node, members, most_replicas);
    }
  }

  /// Whether an expert's replicas carry more than another's, by exact comparison of count / replicas; of two without tokens, whether they are fewer.
  [[nodiscard]] bool heavier(int expert, int other) const {
    const std::int64_t carried = args_.counts.data[expert] * replicas_[at(other)];
    const std::int64_t carried_by_other = args_.counts.data[other] * replicas_[at(expert)];
    if (carried == 0 && carried_by_other == 0) return replicas_[at(expert)] < replicas_[at(other)];
    return carried > carried_by_other;
  }

  /// The expert whose replicas carry most, of those with fewer than `most_replicas`; -1 where all have as many.
  [[nodiscard]] int heaviest(const std::vector<int>& members, int most_replicas) const {
    int best = -1;
    for (const int expert : members) {
      if (replicas_[at(expert)] < most_replicas && (best < 0 || heavier(expert, best))) best = expert;
    }
    return best;
  }

  void fill_node(int node, const std::vector<int>& members, int most_replicas) {
    const int ranks = ranks_per_node();
    const int places = per_rank_ * ranks;
    std::vector<int> replicas = members;
    for (const int expert : members) replicas_[at(expert)] = 1;
    for (int most = most_replicas; static_cast<int>(replicas.size()) < places;) {
      const int expert = heaviest(members, most);
      if (expert < 0) {
        most += most_replicas;
        continue;
      }
      ++replicas_[at(expert)];
      replicas.push_back(expert);
    }
    std::vector<double> weights;
    for (const int expert : replicas) weights.push_back(share(expert));
    const std::vector<int> rank_of_replica = packed(weights, ranks);
    std::vector<int> used(at(ranks), 0);
    for (std::size_t i = 0; i < replicas.size(); ++i) {
      const int rank = rank_of_replica[i];
      place_[at((node * ranks + rank) * per_rank_ + used[at(rank)]++)] = replicas[i];
    }
  }

  PlacementArgs args_;
  int experts_;
  int per_rank_;
  int nodes_;
  std::vector<int> replicas_;
  std::vector<std::int32_t> place_;
};

}  // namespace detail

MOEB_NAMESPACE_END
