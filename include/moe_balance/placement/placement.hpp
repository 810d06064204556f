// Placement of experts on ranks, from measured counts: the most loaded experts get replicas, and all are packed so that ranks share the load. On the
// CPU, rarely called, deterministic: ties go to smaller ids. Hierarchical where groups of experts divide over nodes: a group stays on a node,
// so that group-limited routing keeps traffic inside it.
// Source: EPLB (github.com/deepseek-ai/EPLB): groups to nodes, replicas inside nodes, replicas to ranks. The steps after it are our own: exchanges while
// they lower the load of the busiest rank, and, from an old placement, no more changes than are allowed.
#pragma once

#include <moe_balance/engine/validate.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/views.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

MOEB_NAMESPACE_BEGIN

/// What to place.
struct PlacementArgs {
  VectorView<const std::int64_t> counts;  ///< [E] in host memory: measured tokens per expert, 0 to 2^50
  int physical_experts = 0;               ///< P: places for replicas on all ranks, E or more, a multiple of ranks
  int ranks = 1;                          ///< that hold experts
  int nodes = 1;                          ///< divides ranks; rank r is on node r / (ranks / nodes)
  int groups = 1;                         ///< of neighbouring experts, divides E; hierarchical where nodes > 1 divides it
  VectorView<const std::int32_t> previous{};  ///< [P], optional: logical_of_physical of the placement that runs now
  int most_moves =
      std::numeric_limits<int>::max();  ///< with previous: places that may get an expert their rank does not hold now
};

/// Which expert lies where. Physical expert p is on rank p / (P / ranks).
struct Placement {
  std::vector<std::int32_t> logical_of_physical;  ///< [P]
  std::vector<std::int32_t> replica_count;        ///< [E]
  std::vector<std::int32_t> logical_to_physical;  ///< [E, most_replicas]: ascending, then -1
  int most_replicas = 1;                          ///< of any expert
  int moves = 0;       ///< places with an expert that their rank did not hold before; 0 without previous
  double busiest = 0;  ///< expected count of the busiest rank, replicas sharing evenly
};

namespace detail {

// Templates, so that files that do not place experts need not compile what this uses of the standard library.

/// A placement while it is made, with the load of each rank.
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

  /// EPLB's three packings.
  void start_from_counts() {
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
      fill_node(node, members);
    }
  }

  /// Exchanges and replacements that lower the busiest rank's load most, while there are any and moves stay within the bound.
  void improve(const std::vector<std::int32_t>& previous, int most_moves) {
    for (;;) {
      const Step step = best_step(previous, most_moves);
      if (step.first < 0) return;
      apply(step);
    }
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

  /// Largest load of a rank; then the sum of squares, to tell placements with equal largest loads apart.
  struct Balance {
    double busiest = 0;
    double squares = 0;
    [[nodiscard]] bool operator<(const Balance& other) const {
      const double slack = 1e-12 * busiest;
      if (busiest < other.busiest - slack) return true;
      return busiest <= other.busiest + slack && squares < other.squares * (1 - 1e-12);
    }
  };
  [[nodiscard]] Balance balance() const {
    Balance result;
    for (int rank = 0; rank < args_.ranks; ++rank) {
      const double load = load_of_rank(rank);
      result.busiest = std::max(result.busiest, load);
      result.squares += load * load;
    }
    return result;
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
    result.most_replicas = *std::max_element(replicas_.begin(), replicas_.end());
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
  /// Places `first` and `second` change experts; or, without a second, place `first` gets another replica of `expert`.
  struct Step {
    int first = -1;
    int second = -1;
    std::int32_t expert = -1;
  };

  template <class Integer>
  [[nodiscard]] static std::size_t at(Integer index) {
    return static_cast<std::size_t>(index);
  }
  [[nodiscard]] int rank_of(int place) const { return place / per_rank_; }
  [[nodiscard]] int node_of(int place) const { return rank_of(place) / (args_.ranks / nodes_); }
  [[nodiscard]] double share(std::int32_t expert) const {
    return static_cast<double>(args_.counts.data[expert]) / replicas_[at(expert)];
  }
  [[nodiscard]] double load_of_rank(int rank) const {
    double load = 0;
    for (int p = rank * per_rank_; p < (rank + 1) * per_rank_; ++p) load += share(place_[at(p)]);
    return load;
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

  /// The expert whose replicas carry most, by exact comparison of count / replicas.
  [[nodiscard]] int heaviest(const std::vector<int>& members) const {
    int best = members.front();
    for (const int expert : members) {
      if (args_.counts.data[expert] * replicas_[at(best)] > args_.counts.data[best] * replicas_[at(expert)]) best = expert;
    }
    return best;
  }

  void fill_node(int node, const std::vector<int>& members) {
    const int ranks = args_.ranks / nodes_;
    const int places = per_rank_ * ranks;
    std::vector<int> replicas = members;
    for (const int expert : members) replicas_[at(expert)] = 1;
    while (static_cast<int>(replicas.size()) < places) {
      const int expert = heaviest(members);
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

  void apply(const Step& step) {
    if (step.second >= 0) {
      std::swap(place_[at(step.first)], place_[at(step.second)]);
    } else {
      --replicas_[at(place_[at(step.first)])];
      ++replicas_[at(step.expert)];
      place_[at(step.first)] = step.expert;
    }
  }

  [[nodiscard]] int busiest_rank() const {
    int best = 0;
    double most = load_of_rank(0);
    for (int rank = 1; rank < args_.ranks; ++rank) {
      const double load = load_of_rank(rank);
      if (load > most) {
        best = rank;
        most = load;
      }
    }
    return best;
  }

  /// Tries a step and takes it back.
  void consider(const Step& step, const std::vector<std::int32_t>& previous, int most_moves, Balance& best, Step& chosen) {
    const std::int32_t old = place_[at(step.first)];
    apply(step);
    const Balance reached = balance();
    if (reached < best && (previous.empty() || moves(previous) <= most_moves)) {
      best = reached;
      chosen = step;
    }
    apply(step.second >= 0 ? step : Step{step.first, -1, old});
  }

  /// The step that lowers the busiest rank's load most; first -1 where none does. Experts stay on their nodes.
  [[nodiscard]] Step best_step(const std::vector<std::int32_t>& previous, int most_moves) {
    Balance best = balance();
    Step chosen;
    const int busy = busiest_rank();
    const int node = node_of(busy * per_rank_);
    for (int p = busy * per_rank_; p < (busy + 1) * per_rank_; ++p) {
      const std::int32_t expert = place_[at(p)];
      for (int q = 0; q < args_.physical_experts; ++q) {
        if (node_of(q) != node) continue;
        if (rank_of(q) != busy && place_[at(q)] != expert) consider({p, q, -1}, previous, most_moves, best, chosen);
        if (place_[at(q)] != expert && replicas_[at(place_[at(q)])] > 1) {
          consider({q, -1, expert}, previous, most_moves, best, chosen);
        }
      }
    }
    return chosen;
  }

  PlacementArgs args_;
  int experts_;
  int per_rank_;
  int nodes_;
  std::vector<int> replicas_;
  std::vector<std::int32_t> place_;
};

template <class = void>
void check_placement(const PlacementArgs& args) {
  const Validator check{"place_experts"};
  constexpr int most = std::numeric_limits<std::int32_t>::max();
  check.range("counts.size", args.counts.size, 1, max_placed_experts, "experts");
  check.pointer("counts.data", args.counts.data, alignof(std::int64_t));
  const auto experts = static_cast<int>(args.counts.size);
  check.range("ranks", args.ranks, 1, max_placed_experts);
  check.range("physical_experts", args.physical_experts, experts, max_placed_experts, "at least the experts");
  MOEB_EXPECTS(args.physical_experts % args.ranks == 0, "place_experts", "physical_experts",
               std::to_string(args.physical_experts), "a multiple of the " + std::to_string(args.ranks) + " ranks");
  MOEB_EXPECTS(args.nodes >= 1 && args.ranks % args.nodes == 0, "place_experts", "nodes", std::to_string(args.nodes),
               "a divisor of the " + std::to_string(args.ranks) + " ranks");
  MOEB_EXPECTS(args.groups >= 1 && experts % args.groups == 0, "place_experts", "groups", std::to_string(args.groups),
               "a divisor of the " + std::to_string(experts) + " experts");
  check.range("most_moves", args.most_moves, 0, most);
  for (int e = 0; e < experts; ++e) check.range({"counts", e}, args.counts.data[e], 0, std::int64_t{1} << 50);
  if (args.previous.data == nullptr) return;
  check.range("previous.size", args.previous.size, args.physical_experts, args.physical_experts, "physical_experts");
  std::vector<bool> placed(static_cast<std::size_t>(experts), false);
  for (std::int64_t p = 0; p < args.previous.size; ++p) {
    check.range({"previous", p}, args.previous.data[p], 0, experts - 1);
    placed[static_cast<std::size_t>(args.previous.data[p])] = true;
  }
  const auto missing = std::find(placed.begin(), placed.end(), false);
  MOEB_EXPECTS(missing == placed.end(), "place_experts", "previous",
               "without expert " + std::to_string(missing - placed.begin()), "a placement of every expert");
}

}  // namespace detail

/// Places experts so that the busiest rank's expected load is low. Every expert gets at least one place. With `previous` at most `most_moves`
/// places get an expert that their rank does not hold now, and experts that stay keep their places; an old placement that breaks the
/// hierarchy stays as it is where moves do not suffice. Host memory only; allocates. Errors: InvalidArgument.
template <class = void>
[[nodiscard]] Placement place_experts(const PlacementArgs& args) {
  detail::check_placement(args);
  std::vector<std::int32_t> previous;
  if (args.previous.data != nullptr) previous.assign(args.previous.data, args.previous.data + args.previous.size);
  constexpr int unbounded = std::numeric_limits<int>::max();
  detail::PlacementWork<> fresh(args);
  fresh.start_from_counts();
  fresh.improve({}, unbounded);
  if (previous.empty()) return fresh.finished(previous);
  detail::PlacementWork<> changed(args);
  changed.start_from(previous);
  changed.improve(previous, args.most_moves);
  const bool takes_fresh = fresh.moves(previous) <= args.most_moves && fresh.balance() < changed.balance();
  detail::PlacementWork<>& chosen = takes_fresh ? fresh : changed;
  chosen.settle(previous);
  return chosen.finished(previous);
}

MOEB_NAMESPACE_END
