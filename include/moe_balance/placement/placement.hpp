// Placement of experts on ranks, from measured counts: the most loaded experts get replicas, and all are packed so that ranks share the load. On the
// CPU, rarely called, deterministic: ties go to smaller ids; experts without tokens get replicas in turn. Hierarchical where groups of experts divide
// over nodes: a group stays on a node, so that group-limited routing keeps traffic inside it.
// Source: EPLB (github.com/deepseek-ai/EPLB): groups to nodes, replicas inside nodes, replicas to ranks. The rest is our own: a second start where an
// expert would have more replicas than ranks, exchanges and replacements while they lower the load of the busiest rank, and, from an old placement, no
// more changes than are allowed.
#pragma once

#include <moe_balance/engine/validate.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/placement/arguments.hpp>
#include <moe_balance/placement/steps.hpp>
#include <moe_balance/placement/work.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

MOEB_NAMESPACE_BEGIN

namespace detail {

// Templates, as in placement/work.hpp.

/// Exchanges and replacements that lower the busiest rank's load most, while there are any and moves stay within the bound.
template <class = void>
void improve_placement(PlacementWork<>& work, const std::vector<std::int32_t>& previous, int most_moves) {
  PlacementSteps<> steps(work, previous);
  for (PlacementStep step = steps.best(most_moves); step.first >= 0; step = steps.best(most_moves)) work.apply(step);
}

/// The next bound on moves that gets a run of its own; at most 256 do.
template <class = void>
[[nodiscard]] int next_bound(int bound) {
  int step = 1;
  while (bound / step >= placement_bounds_all_tried) step *= 2;
  return bound + step;
}

/// The best that is found within any bound up to `most_moves`, which may be better than the last one's. A run has the steps of the run without a bound up
/// to the first beyond its own; from there its steps are its own. Each bound goes on from the best of the bound before, so that more moves never end
/// worse. Runs of all bounds would take minutes for a thousand moves, and going on alone ends worse than they do in a case of a hundred.
template <class = void>
[[nodiscard]] PlacementWork<> improved_placement(PlacementWork<> work, const std::vector<std::int32_t>& previous,
                                                 int most_moves) {
  PlacementWork<> best = work;
  PlacementSteps<> steps(work, previous);
  constexpr int any = std::numeric_limits<int>::max();
  int bound = work.moves(previous);  // those without which experts or places would be left
  int next_run = bound;
  for (PlacementStep step = steps.best(any); step.first >= 0; step = steps.best(any)) {
    for (; bound < step.moves && bound <= most_moves; ++bound) {
      if (work.balance() < best.balance()) best = work;
      improve_placement(best, previous, bound);
      if (bound != next_run) continue;
      next_run = next_bound(bound);
      PlacementWork<> within = work;
      improve_placement(within, previous, bound);
      if (within.balance() < best.balance()) best = std::move(within);
    }
    if (step.moves > most_moves) break;
    work.apply(step);
  }
  return work.balance() < best.balance() ? work : best;
}

/// From EPLB's packings; where they give an expert more replicas than its node has ranks, also from packings that do not; the better of the two.
template <class = void>
[[nodiscard]] PlacementWork<> placement_from_counts(const PlacementArgs& args) {
  constexpr int any = std::numeric_limits<int>::max();
  PlacementWork<> fresh(args);
  fresh.start_from_counts();
  const bool crowded = fresh.most_replicas() > fresh.ranks_per_node();
  improve_placement(fresh, {}, any);
  if (!crowded) return fresh;
  PlacementWork<> even(args);
  even.start_evenly();
  improve_placement(even, {}, any);
  return even.balance() < fresh.balance() ? even : fresh;
}

/// Without a previous placement. Counts that are all 0 are taken as all equal.
template <class = void>
[[nodiscard]] PlacementWork<> fresh_placement(const PlacementArgs& args) {
  const std::int64_t* counts = args.counts.data;
  if (std::any_of(counts, counts + args.counts.size, [](std::int64_t count) { return count > 0; })) {
    return placement_from_counts(args);
  }
  const std::vector<std::int64_t> equal(static_cast<std::size_t>(args.counts.size), 1);
  PlacementArgs as_equal = args;
  as_equal.counts.data = equal.data();
  PlacementWork<> fresh(args);
  fresh.start_from(placement_from_counts(as_equal).logical_of_physical());
  return fresh;
}

/// What follows `previous`: the fresh placement or what steps make of the old one.
template <class = void>
[[nodiscard]] PlacementWork<> replaced_placement(const PlacementArgs& args, const PlacementWork<>& fresh,
                                                 const std::vector<std::int32_t>& previous) {
  const bool may_be_fresh = fresh.moves(previous) <= args.most_moves;
  PlacementWork<> old(args);
  old.start_from_previous(previous);
  if (may_be_fresh && old.splits_groups()) return fresh;
  PlacementWork<> changed = improved_placement(old, previous, args.most_moves);
  return may_be_fresh && fresh.balance() < changed.balance() ? fresh : changed;
}

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
  check.pointer("previous.data", args.previous.data, alignof(std::int32_t));
  std::vector<bool> placed(static_cast<std::size_t>(experts), false);
  int empty = 0;
  for (std::int64_t p = 0; p < args.previous.size; ++p) {
    check.range({"previous", p}, args.previous.data[p], -1, experts - 1, "-1: a place that holds nothing");
    if (args.previous.data[p] < 0)
      ++empty;
    else
      placed[static_cast<std::size_t>(args.previous.data[p])] = true;
  }
  const auto missing = static_cast<int>(std::count(placed.begin(), placed.end(), false));
  check.range("most_moves", args.most_moves, std::max(empty, missing), most,
              "for the places that hold nothing and the experts without a place");
}

}  // namespace detail

/// Places experts so that the busiest rank's expected load is low. Every expert gets at least one place. With `previous` at most `most_moves`
/// places get an expert that their rank does not hold now, and experts that stay keep their places; more moves never balance worse. An
/// old placement that splits groups over nodes gives way to a fresh one if that is within the bound, even where it balances worse; otherwise
/// experts stay on the nodes that they are on, and groups stay split. Counts that are all 0 give the placement of equal counts, or keep `previous`.
/// After the loss of a rank `previous` is what the other ranks hold; after one has joined its places are -1.
/// With `previous` it tries bounds up to `most_moves`, which takes many times as long as without: hundredths of a second for 256 experts on 32 ranks,
/// seconds for 2048 places on 256 ranks (max_placed_experts has figures); a small `most_moves` takes less. Host memory only; allocates. Errors: InvalidArgument.
template <class = void>
[[nodiscard]] Placement place_experts(const PlacementArgs& args) {
  detail::check_placement(args);
  std::vector<std::int32_t> previous;
  if (args.previous.data != nullptr) previous.assign(args.previous.data, args.previous.data + args.previous.size);
  const detail::PlacementWork<> fresh = detail::fresh_placement(args);
  if (previous.empty()) return fresh.finished(previous);
  detail::PlacementWork<> chosen = detail::replaced_placement(args, fresh, previous);
  chosen.settle(previous);
  return chosen.finished(previous);
}

MOEB_NAMESPACE_END
