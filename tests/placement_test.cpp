// Placement of experts: valid, deterministic, bounded in moves, and near the best there is where that can be searched for.
#include "random.hpp"

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <vector>

namespace testing {

namespace mb = moe_balance;

using Counts = std::vector<std::int64_t>;
using Ids = std::vector<std::int32_t>;

/// Expected load of the busiest rank, from the definition.
double busiest(const Counts& counts, const Ids& logical, int ranks) {
  std::vector<int> replicas(counts.size(), 0);
  for (const std::int32_t e : logical) ++replicas[static_cast<std::size_t>(e)];
  const std::size_t per_rank = logical.size() / static_cast<std::size_t>(ranks);
  double most = 0;
  for (std::size_t first = 0; first < logical.size(); first += per_rank) {
    double load = 0;
    for (std::size_t p = first; p < first + per_rank; ++p) {
      const auto e = static_cast<std::size_t>(logical[p]);
      load += static_cast<double>(counts[e]) / replicas[e];
    }
    most = std::max(most, load);
  }
  return most;
}

/// Calls visit(logical) for every placement of all experts.
template <class Visit>
void for_each_placement(std::int32_t experts, int places, const Visit& visit) {
  Ids logical(static_cast<std::size_t>(places), 0);
  for (;;) {
    if (static_cast<std::int32_t>(std::set<std::int32_t>(logical.begin(), logical.end()).size()) == experts) visit(logical);
    std::size_t at = 0;
    while (at < logical.size() && ++logical[at] == experts) logical[at++] = 0;
    if (at == logical.size()) return;
  }
}

/// The least that any placement reaches: every one is tried.
double optimum(const Counts& counts, int places, int ranks) {
  double best = std::numeric_limits<double>::infinity();
  for_each_placement(static_cast<std::int32_t>(counts.size()), places,
                     [&](const Ids& logical) { best = std::min(best, busiest(counts, logical, ranks)); });
  return best;
}

Counts skewed_counts(Random& random, int experts, double skew) {
  Counts counts;
  for (int e = 0; e < experts; ++e) counts.push_back(static_cast<std::int64_t>(1000 * std::exp(skew * random.normal())));
  return counts;
}

/// Ids, replica counts and the map agree, and every expert has a place.
void check_valid(const mb::Placement& placement, int experts, int places) {
  REQUIRE(placement.logical_of_physical.size() == static_cast<std::size_t>(places));
  Ids replicas(static_cast<std::size_t>(experts), 0);
  for (const std::int32_t e : placement.logical_of_physical) {
    REQUIRE((e >= 0 && e < experts));
    ++replicas[static_cast<std::size_t>(e)];
  }
  CHECK(*std::min_element(replicas.begin(), replicas.end()) >= 1);
  CHECK(placement.replica_count == replicas);
  CHECK(placement.most_replicas == *std::max_element(replicas.begin(), replicas.end()));
  std::set<std::int32_t> seen;
  for (int e = 0; e < experts; ++e) {
    for (int i = 0; i < placement.most_replicas; ++i) {
      const std::int32_t p = placement.logical_to_physical[static_cast<std::size_t>(e * placement.most_replicas + i)];
      CHECK((p >= 0) == (i < replicas[static_cast<std::size_t>(e)]));
      if (p < 0) continue;
      CHECK(placement.logical_of_physical[static_cast<std::size_t>(p)] == e);
      seen.insert(p);
    }
  }
  CHECK(seen.size() == static_cast<std::size_t>(places));
}

/// Places whose rank has more replicas of an expert than before.
int moved(const Ids& before, const Ids& after, int ranks) {
  const auto per_rank = static_cast<std::ptrdiff_t>(before.size()) / ranks;
  int moves = 0;
  for (std::ptrdiff_t first = 0; first < static_cast<std::ptrdiff_t>(before.size()); first += per_rank) {
    for (const std::int32_t e : std::set<std::int32_t>(after.begin() + first, after.begin() + first + per_rank)) {
      const auto had = std::count(before.begin() + first, before.begin() + first + per_rank, e);
      const auto has = std::count(after.begin() + first, after.begin() + first + per_rank, e);
      moves += static_cast<int>(std::max<std::ptrdiff_t>(0, has - had));
    }
  }
  return moves;
}

/// Whether all replicas of each group's experts are on one node.
bool keeps_groups(const Ids& logical, int group_size, std::size_t places_per_node) {
  std::map<std::int32_t, std::set<std::size_t>> nodes_of_group;
  for (std::size_t p = 0; p < logical.size(); ++p) nodes_of_group[logical[p] / group_size].insert(p / places_per_node);
  return std::all_of(nodes_of_group.begin(), nodes_of_group.end(), [](const auto& each) { return each.second.size() == 1; });
}

/// Placements against the best of all.
struct AgainstOptimum {
  double worst = 1;
  double sum = 0;
  int cases = 0;

  void place(const Counts& counts, int experts, int places, int ranks) {
    const mb::Placement placement =
        mb::place_experts({.counts = {counts.data(), experts}, .physical_experts = places, .ranks = ranks});
    check_valid(placement, experts, places);
    CHECK(placement.busiest == doctest::Approx(busiest(counts, placement.logical_of_physical, ranks)));
    const double ratio = placement.busiest / optimum(counts, places, ranks);
    CHECK(ratio >= 1 - 1e-9);
    worst = std::max(worst, ratio);
    sum += ratio;
    ++cases;
  }
  void check(double most, double most_mean) const {
    MESSAGE("busiest rank against the optimum over " << cases << " cases: mean " << sum / cases << ", worst " << worst);
    CHECK(worst <= most);
    CHECK(sum / cases <= most_mean);
  }
};

TEST_CASE("placement: near the best of all placements where all can be tried") {
  Random random(91);
  AgainstOptimum against;
  const int shapes[][3] = {{3, 4, 2}, {4, 4, 2}, {4, 6, 3}, {3, 6, 2}, {5, 6, 2}, {6, 6, 3}, {2, 6, 3}, {4, 6, 6}};
  for (const auto& [experts, places, ranks] : shapes) {
    for (int round = 0; round < 12; ++round) {
      const Counts counts = skewed_counts(random, experts, round % 2 == 0 ? 0.5 : 1.5);
      against.place(counts, experts, places, ranks);
    }
  }
  against.check(4.0 / 3.0, 1.02);
}

TEST_CASE("placement: near the best of all placements where experts would have more replicas than there are ranks") {
  Random random(102);
  AgainstOptimum against;
  const int shapes[][3] = {{2, 4, 2}, {3, 4, 2}, {2, 6, 2}, {3, 6, 2}, {3, 8, 2},
                           {2, 6, 3}, {3, 6, 3}, {4, 6, 3}, {2, 9, 3}};
  for (const auto& [experts, places, ranks] : shapes) {
    for (int round = 0; round < 12; ++round) {
      Counts counts = skewed_counts(random, experts, round % 3 == 0 ? 0.3 : 2.0);
      counts[static_cast<std::size_t>(random.integer(0, experts - 1))] *= round % 2 == 0 ? 30 : 1000000000;
      against.place(counts, experts, places, ranks);
    }
  }
  against.check(1.1, 1.01);
}

TEST_CASE("placement: no rank has a hot expert twice while another could share it as well once") {
  for (int experts = 2; experts <= 9; ++experts) {
    for (const std::int64_t cold : {std::int64_t{0}, std::int64_t{1} << 20, std::int64_t{1} << 45}) {
      Counts counts(static_cast<std::size_t>(experts), cold);
      counts[1] = std::int64_t{1} << 50;
      CAPTURE(experts);
      CAPTURE(cold);
      const mb::Placement placement =
          mb::place_experts({.counts = {counts.data(), experts}, .physical_experts = 16, .ranks = 8});
      check_valid(placement, experts, 16);
      // By hand: the hot expert once on every rank, each cold one beside it; nine experts leave it seven places at most.
      const int hot = std::min(8, 16 - (experts - 1));
      const double by_hand = static_cast<double>(counts[1]) / hot + static_cast<double>(cold);
      CHECK(placement.busiest <= by_hand * (1 + 1e-12));
      for (std::size_t rank = 0; rank < 8; ++rank) {
        CHECK((placement.logical_of_physical[2 * rank] != 1 || placement.logical_of_physical[2 * rank + 1] != 1));
      }
    }
  }
}

/// Shares of a rank's replicas.
std::vector<double> shares_of_rank(const Counts& counts, const mb::Placement& placement, int ranks, int rank) {
  const std::size_t per_rank = placement.logical_of_physical.size() / static_cast<std::size_t>(ranks);
  std::vector<double> shares;
  for (std::size_t i = 0; i < per_rank; ++i) {
    const auto e = static_cast<std::size_t>(placement.logical_of_physical[static_cast<std::size_t>(rank) * per_rank + i]);
    shares.push_back(static_cast<double>(counts[e]) / placement.replica_count[e]);
  }
  return shares;
}

// No exchange helps at the end: for every replica a of the busiest rank and every b of another rank on its node, a <= b or a - b >= the difference
// of the ranks' loads. Some a is above the b of its place in size, so the difference is at most the largest a less the smallest b; and over all ranks of
// the node the busiest is at most their mean and the largest a. No placement is below the mean of a node whose groups are given, and two groups or one
// on each of two nodes are packed as well as they can be.
TEST_CASE("placement: with nodes at most one replica's share above the best of all that keep groups together") {
  Random random(100);
  double worst = 1;
  double sum = 0;
  int cases = 0;
  const int shapes[][5] = {{4, 4, 4, 2, 2}, {4, 6, 2, 2, 2}, {4, 8, 4, 2, 2},
                           {4, 8, 2, 2, 4}, {4, 8, 4, 2, 4}, {6, 6, 2, 2, 2}};
  for (const auto& [experts, places, ranks, nodes, groups] : shapes) {
    const auto places_per_node = static_cast<std::size_t>(places / nodes);
    for (int round = 0; round < 12; ++round) {
      const Counts counts = skewed_counts(random, experts, round % 2 == 0 ? 0.5 : 1.5);
      const mb::Placement placement = mb::place_experts({.counts = {counts.data(), experts},
                                                         .physical_experts = places,
                                                         .ranks = ranks,
                                                         .nodes = nodes,
                                                         .groups = groups});
      CAPTURE(round);
      CHECK(keeps_groups(placement.logical_of_physical, experts / groups, places_per_node));
      double best = std::numeric_limits<double>::infinity();
      for_each_placement(experts, places,
                         [&, experts = experts, ranks = ranks, nodes = nodes, groups = groups](const Ids& logical) {
                           if (!keeps_groups(logical, experts / groups, places_per_node)) return;
                           // As many groups, and so experts, on each node.
                           const std::set<std::int32_t> first(
                               logical.begin(), logical.begin() + static_cast<std::ptrdiff_t>(places_per_node));
                           if (static_cast<int>(first.size()) * nodes == experts)
                             best = std::min(best, busiest(counts, logical, ranks));
                         });
      double most = 0;
      std::vector<double> busy;
      for (int rank = 0; rank < ranks; ++rank) {
        const std::vector<double> shares = shares_of_rank(counts, placement, ranks, rank);
        const double load = std::accumulate(shares.begin(), shares.end(), 0.0);
        if (load > most) busy = shares;
        most = std::max(most, load);
      }
      CHECK(placement.busiest >= best * (1 - 1e-9));
      CHECK(placement.busiest <= (best + *std::max_element(busy.begin(), busy.end())) * (1 + 1e-9));
      worst = std::max(worst, placement.busiest / best);
      sum += placement.busiest / best;
      ++cases;
    }
  }
  MESSAGE("busiest rank against the optimum over " << cases << " cases: mean " << sum / cases << ", worst " << worst);
}

/// The least after one step within the bound: two places change experts, or a replica gives way to one of an expert of the busiest rank.
double best_step(const Counts& counts, const Ids& old, int ranks, int most_moves) {
  const std::size_t per_rank = old.size() / static_cast<std::size_t>(ranks);
  double least = busiest(counts, old, ranks);
  const auto consider = [&](const Ids& logical) {
    if (std::set<std::int32_t>(logical.begin(), logical.end()).size() < counts.size()) return;
    if (moved(old, logical, ranks) <= most_moves) least = std::min(least, busiest(counts, logical, ranks));
  };
  std::size_t busy = 0;
  for (std::size_t rank = 0; rank < old.size() / per_rank; ++rank) {
    const auto load = [&](std::size_t of) {
      double sum = 0;
      for (std::size_t p = of * per_rank; p < (of + 1) * per_rank; ++p)
        sum += static_cast<double>(counts[static_cast<std::size_t>(old[p])]) /
               static_cast<double>(std::count(old.begin(), old.end(), old[p]));
      return sum;
    };
    if (load(rank) > load(busy)) busy = rank;
  }
  for (std::size_t p = 0; p < old.size(); ++p) {
    for (std::size_t q = 0; q < old.size(); ++q) {
      Ids logical = old;
      std::swap(logical[p], logical[q]);
      consider(logical);
      logical = old;
      if (p / per_rank == busy) logical[q] = old[p];
      consider(logical);
    }
  }
  return least;
}

TEST_CASE("placement: with a bound on moves no better than the best of all within it, and no worse than the best step") {
  Random random(101);
  double worst = 1;
  double sum = 0;
  int cases = 0;
  const int shapes[][3] = {{3, 4, 2}, {4, 6, 2}, {4, 6, 3}, {5, 6, 3}, {3, 8, 4}, {4, 6, 6}};
  for (const auto& [experts, places, ranks] : shapes) {
    for (int round = 0; round < 12; ++round) {
      const Counts before = skewed_counts(random, experts, 1.0);
      const Counts counts = skewed_counts(random, experts, 1.0);
      mb::PlacementArgs args{.counts = {before.data(), experts}, .physical_experts = places, .ranks = ranks};
      const Ids old = mb::place_experts(args).logical_of_physical;
      args.counts = {counts.data(), experts};
      const double fresh = mb::place_experts(args).busiest;
      args.previous = {old.data(), places};
      std::vector<double> best(static_cast<std::size_t>(places) + 1, std::numeric_limits<double>::infinity());
      for_each_placement(experts, places, [&, ranks = ranks](const Ids& logical) {
        double& least = best[static_cast<std::size_t>(moved(old, logical, ranks))];
        least = std::min(least, busiest(counts, logical, ranks));
      });
      for (int most = 0; most <= places; ++most) {
        if (most > 0)
          best[static_cast<std::size_t>(most)] =
              std::min(best[static_cast<std::size_t>(most)], best[static_cast<std::size_t>(most) - 1]);
        args.most_moves = most;
        const double reached = mb::place_experts(args).busiest;
        const double ratio = reached / best[static_cast<std::size_t>(most)];
        CAPTURE(round);
        CAPTURE(most);
        CHECK(ratio >= 1 - 1e-9);
        if (most == 0) CHECK(ratio <= 1 + 1e-9);
        CHECK(reached <= best_step(counts, old, ranks, most) * (1 + 1e-9));
        if (most == places) CHECK(reached <= fresh * (1 + 1e-9));
        worst = std::max(worst, ratio);
        sum += ratio;
        ++cases;
      }
    }
  }
  MESSAGE("busiest rank against the optimum over " << cases << " cases: mean " << sum / cases << ", worst " << worst);
}

/// EPLB's greedy rules in plain words: each further replica goes to the expert whose replicas carry most; then the heaviest replica first, each to the
/// least loaded rank that has room.
struct GreedyOracle {
  Ids replicas;
  double busiest_load = 0;

  GreedyOracle(const Counts& counts, int places, int ranks) : replicas(counts.size(), 1) {
    const auto load = [&](std::size_t e) { return static_cast<double>(counts[e]) / replicas[e]; };
    for (int extra = static_cast<int>(counts.size()); extra < places; ++extra) {
      std::size_t heaviest = 0;
      for (std::size_t e = 1; e < counts.size(); ++e) heaviest = load(e) > load(heaviest) ? e : heaviest;
      ++replicas[heaviest];
    }
    std::vector<double> loads;
    for (std::size_t e = 0; e < counts.size(); ++e)
      loads.insert(loads.end(), static_cast<std::size_t>(replicas[e]), load(e));
    std::sort(loads.rbegin(), loads.rend());
    std::vector<double> rank_load(static_cast<std::size_t>(ranks), 0.0);
    std::vector<int> room(static_cast<std::size_t>(ranks), places / ranks);
    for (const double each : loads) {
      std::size_t lightest = rank_load.size();
      for (std::size_t r = 0; r < rank_load.size(); ++r) {
        if (room[r] > 0 && (lightest == rank_load.size() || rank_load[r] < rank_load[lightest])) lightest = r;
      }
      rank_load[lightest] += each;
      --room[lightest];
    }
    busiest_load = *std::max_element(rank_load.begin(), rank_load.end());
  }
};

TEST_CASE("placement: starts as the greedy rules say, and ends no worse") {
  Random random(97);
  for (int round = 0; round < 30; ++round) {
    const int ranks = random.integer(1, 8);
    const int experts = random.integer(ranks, 40);
    const int places = (experts + ranks - 1) / ranks * ranks + ranks * random.integer(0, 3);
    const Counts counts = skewed_counts(random, experts, round % 2 == 0 ? 0.4 : 1.6);
    const mb::PlacementArgs args{.counts = {counts.data(), experts}, .physical_experts = places, .ranks = ranks};
    const GreedyOracle greedy(counts, places, ranks);
    mb::detail::PlacementWork work(args);
    work.start_from_counts();
    const mb::Placement start = work.finished({});
    CAPTURE(round);
    check_valid(start, experts, places);
    CHECK(start.replica_count == greedy.replicas);
    CHECK(busiest(counts, start.logical_of_physical, ranks) == doctest::Approx(greedy.busiest_load));
    CHECK(mb::place_experts(args).busiest <= greedy.busiest_load * (1 + 1e-9));
  }
}

TEST_CASE("placement: far better than experts in order, at the sizes of models") {
  Random random(92);
  const Counts counts = skewed_counts(random, 256, 1.0);
  Ids in_order;
  for (std::int32_t p = 0; p < 256; ++p) in_order.push_back(p);
  const mb::Placement placement = mb::place_experts({.counts = {counts.data(), 256}, .physical_experts = 288, .ranks = 32});
  check_valid(placement, 256, 288);
  const double mean = static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})) / 32;
  CHECK(placement.busiest < 1.02 * mean);
  CHECK(busiest(counts, in_order, 32) > 1.3 * mean);
}

TEST_CASE("placement: an old placement that splits groups is given up where the moves are allowed") {
  Random random(99);
  int split = 0;
  for (int round = 0; round < 50; ++round) {
    const Counts before = skewed_counts(random, 16, 1.0);
    const Counts counts = skewed_counts(random, 16, 1.0);
    mb::PlacementArgs args{.counts = {before.data(), 16}, .physical_experts = 24, .ranks = 4};
    const Ids flat = mb::place_experts(args).logical_of_physical;
    args.counts = {counts.data(), 16};
    args.nodes = 2;
    args.groups = 4;
    const mb::Placement fresh = mb::place_experts(args);
    const int needed = moved(flat, fresh.logical_of_physical, 4);
    args.previous = {flat.data(), 24};
    const mb::Placement next = mb::place_experts(args);
    CAPTURE(round);
    check_valid(next, 16, 24);
    CHECK(keeps_groups(next.logical_of_physical, 4, 12));
    if (keeps_groups(flat, 4, 12)) continue;
    ++split;
    CHECK(next.busiest == doctest::Approx(fresh.busiest));
    CHECK(next.moves == needed);
    args.most_moves = needed;
    CHECK(mb::place_experts(args).logical_of_physical == next.logical_of_physical);
    // With a move less only the steps are left: they take experts to no other node, and lower the load.
    args.most_moves = needed - 1;
    const mb::Placement kept = mb::place_experts(args);
    CHECK(kept.moves < needed);
    CHECK(kept.busiest <= busiest(counts, flat, 4) * (1 + 1e-12));
    for (std::size_t node = 0; node < 2; ++node) {
      const std::set<std::int32_t> had(flat.begin() + 12 * static_cast<std::ptrdiff_t>(node),
                                       flat.begin() + 12 * static_cast<std::ptrdiff_t>(node + 1));
      for (std::size_t p = 12 * node; p < 12 * (node + 1); ++p) CHECK(had.count(kept.logical_of_physical[p]) == 1);
    }
  }
  CHECK(split >= 40);
}

TEST_CASE("placement: groups of experts stay on one node where they divide over nodes") {
  Random random(93);
  for (int round = 0; round < 5; ++round) {
    const Counts counts = skewed_counts(random, 64, 0.8);
    const mb::Placement placement =
        mb::place_experts({.counts = {counts.data(), 64}, .physical_experts = 80, .ranks = 8, .nodes = 4, .groups = 8});
    check_valid(placement, 64, 80);
    std::vector<std::set<std::size_t>> nodes_of_group(8);
    for (std::size_t p = 0; p < 80; ++p) {
      nodes_of_group[static_cast<std::size_t>(placement.logical_of_physical[p] / 8)].insert(p / 20);
    }
    std::vector<int> groups_of_node(4, 0);
    for (const auto& nodes : nodes_of_group) {
      REQUIRE(nodes.size() == 1);
      ++groups_of_node[*nodes.begin()];
    }
    CHECK(groups_of_node == std::vector<int>{2, 2, 2, 2});
  }
}

TEST_CASE("placement: groups that do not divide over nodes are placed as if there were one") {
  Random random(94);
  const Counts counts = skewed_counts(random, 12, 1.0);
  const mb::PlacementArgs flat{.counts = {counts.data(), 12}, .physical_experts = 16, .ranks = 4};
  mb::PlacementArgs nodes = flat;
  nodes.nodes = 2;
  nodes.groups = 3;
  CHECK(mb::place_experts(nodes).logical_of_physical == mb::place_experts(flat).logical_of_physical);
}

TEST_CASE("placement: the most loaded experts get the replicas") {
  const Counts counts{10, 900, 10, 500, 10, 10};
  const mb::Placement placement = mb::place_experts({.counts = {counts.data(), 6}, .physical_experts = 8, .ranks = 2});
  CHECK(placement.replica_count == Ids{1, 2, 1, 2, 1, 1});
  const Counts equal(6, 7);
  CHECK(mb::place_experts({.counts = {equal.data(), 6}, .physical_experts = 8, .ranks = 2}).replica_count ==
        Ids{2, 2, 1, 1, 1, 1});
  const Counts nothing(6, 0);
  check_valid(mb::place_experts({.counts = {nothing.data(), 6}, .physical_experts = 8, .ranks = 2}), 6, 8);
}

TEST_CASE("placement: experts without tokens share the replicas evenly") {
  const Counts nothing(256, 0);
  const Counts equal(256, 1);
  mb::PlacementArgs args{.counts = {nothing.data(), 256}, .physical_experts = 288, .ranks = 32};
  const mb::Placement placement = mb::place_experts(args);
  check_valid(placement, 256, 288);
  CHECK(placement.most_replicas == 2);
  CHECK(placement.busiest == 0);
  args.counts.data = equal.data();
  CHECK(placement.logical_of_physical == mb::place_experts(args).logical_of_physical);
  // No tokens are no reason to move.
  Random random(104);
  const Counts counts = skewed_counts(random, 256, 1.0);
  args.counts.data = counts.data();
  const Ids old = mb::place_experts(args).logical_of_physical;
  args.counts.data = nothing.data();
  args.previous = {old.data(), 288};
  CHECK(mb::place_experts(args).logical_of_physical == old);
  // Of a node without tokens, too.
  const Counts half{5, 6, 7, 8, 0, 0, 0, 0};
  const mb::Placement nodes =
      mb::place_experts({.counts = {half.data(), 8}, .physical_experts = 16, .ranks = 4, .nodes = 2, .groups = 2});
  CHECK(nodes.replica_count == Ids(8, 2));
}

TEST_CASE("placement: no more experts move than are allowed, and what stays on its rank keeps its place") {
  Random random(95);
  for (int round = 0; round < 6; ++round) {
    const Counts before = skewed_counts(random, 32, 1.0);
    Counts after = before;
    for (std::int64_t& count : after)
      count = static_cast<std::int64_t>(static_cast<double>(count) * std::exp(0.7 * random.normal()));
    const mb::Placement old = mb::place_experts({.counts = {before.data(), 32}, .physical_experts = 40, .ranks = 8});
    const Ids& ids = old.logical_of_physical;
    for (const int most : {0, 1, 2, 4, 8, 40}) {
      const mb::Placement next = mb::place_experts({.counts = {after.data(), 32},
                                                    .physical_experts = 40,
                                                    .ranks = 8,
                                                    .previous = {ids.data(), 40},
                                                    .most_moves = most});
      check_valid(next, 32, 40);
      CHECK(next.moves == moved(ids, next.logical_of_physical, 8));
      CHECK(next.moves <= most);
      // What stays on its rank keeps its place.
      int changed = 0;
      for (std::size_t p = 0; p < 40; ++p) changed += next.logical_of_physical[p] != ids[p] ? 1 : 0;
      CHECK(changed == next.moves);
      CHECK(next.busiest <= busiest(after, ids, 8) * (1 + 1e-12));
      if (most == 0) CHECK(next.logical_of_physical == ids);
    }
  }
}

TEST_CASE("placement: more moves never balance worse") {
  Random random(98);
  int better = 0;
  for (int round = 0; round < 300; ++round) {
    const int nodes = random.integer(1, 2);
    const int ranks = nodes * random.integer(1, 4);
    const int experts = nodes * random.integer(2, 16);
    const int places = (experts + ranks - 1) / ranks * ranks + ranks * random.integer(0, 2);
    const Counts before = skewed_counts(random, experts, 1.0);
    Counts after = before;
    for (std::int64_t& count : after)
      count = static_cast<std::int64_t>(static_cast<double>(count) * std::exp(0.7 * random.normal()));
    mb::PlacementArgs args{
        .counts = {before.data(), experts}, .physical_experts = places, .ranks = ranks, .nodes = nodes, .groups = nodes};
    const Ids ids = mb::place_experts(args).logical_of_physical;
    args.counts = {after.data(), experts};
    args.previous = {ids.data(), places};
    double last = busiest(after, ids, ranks);
    for (int most = 0; most <= places; ++most) {
      args.most_moves = most;
      const mb::Placement next = mb::place_experts(args);
      CAPTURE(round);
      CAPTURE(most);
      CHECK(next.moves <= most);
      CHECK(next.busiest <= last * (1 + 1e-9));
      better += next.busiest < last * (1 - 1e-9) ? 1 : 0;
      last = std::min(last, next.busiest);
    }
  }
  CHECK(better >= 300);
}

TEST_CASE("placement: one move is enough where a replica of a cold expert gives way to a hot one's") {
  const Counts counts{100, 100, 100, 1000};
  const Ids before{0, 1, 2, 3, 0, 1};
  const mb::Placement next = mb::place_experts(
      {.counts = {counts.data(), 4}, .physical_experts = 6, .ranks = 2, .previous = {before.data(), 6}, .most_moves = 1});
  CHECK(next.moves == 1);
  CHECK(next.busiest == doctest::Approx(650));
  CHECK(busiest(counts, before, 2) == doctest::Approx(1100));
}

TEST_CASE("placement: one move is enough where a rank's second replica of a hot expert gives way to another expert") {
  const Counts counts{0, 0, 31};
  const Ids before{2, 2, 0, 2, 1, 2};
  const mb::Placement next = mb::place_experts(
      {.counts = {counts.data(), 3}, .physical_experts = 6, .ranks = 3, .previous = {before.data(), 6}, .most_moves = 1});
  CHECK(next.moves == 1);
  CHECK(next.busiest == doctest::Approx(31.0 / 3));
  CHECK(busiest(counts, before, 3) == doctest::Approx(15.5));
}

TEST_CASE("placement: bounds with a run of their own are all small ones, at most a thirty-second apart, and few") {
  int tried = 0;
  for (int bound = 0; bound < mb::max_placed_experts; bound = mb::detail::next_bound(bound)) {
    const int next = mb::detail::next_bound(bound);
    CHECK(next > bound);
    CHECK(next - bound <= std::max(1, bound / 32));
    ++tried;
  }
  CHECK(tried <= 256);
}

TEST_CASE(
    "placement: with bounds on moves that are not all run, more moves never balance worse, and none worse than a run") {
  Random random(105);
  const Counts before = skewed_counts(random, 96, 2.0);
  const Counts counts = skewed_counts(random, 96, 2.0);
  mb::PlacementArgs args{.counts = {before.data(), 96}, .physical_experts = 128, .ranks = 32};
  const Ids old = mb::place_experts(args).logical_of_physical;
  args.counts = {counts.data(), 96};
  args.previous = {old.data(), 128};
  double last = busiest(counts, old, 32);
  double least = last;
  int next_run = 0;
  for (int most = 0; most <= 128; ++most) {
    args.most_moves = most;
    const mb::Placement next = mb::place_experts(args);
    CAPTURE(most);
    CHECK(next.moves <= most);
    CHECK(next.busiest <= last * (1 + 1e-11));
    last = next.busiest;
    if (most == next_run) {
      mb::detail::PlacementWork work(args);
      work.start_from(old);
      mb::detail::improve_placement(work, old, most);
      least = std::min(least, work.balance().busiest);
      next_run = mb::detail::next_bound(most);
    }
    CHECK(next.busiest <= least * (1 + 1e-11));
  }
}

TEST_CASE("placement: an old placement of the same counts stays as it is") {
  Random random(96);
  const Counts counts = skewed_counts(random, 16, 1.0);
  const mb::Placement old = mb::place_experts({.counts = {counts.data(), 16}, .physical_experts = 20, .ranks = 4});
  const mb::Placement again = mb::place_experts(
      {.counts = {counts.data(), 16}, .physical_experts = 20, .ranks = 4, .previous = {old.logical_of_physical.data(), 20}});
  CHECK(again.logical_of_physical == old.logical_of_physical);
  CHECK(again.moves == 0);
}

/// What an old placement has to be given: an expert for each place that holds nothing, a place for each expert that has none.
int needed_moves(const Ids& old, int experts) {
  const std::set<std::int32_t> held(old.begin(), old.end());
  const auto empty = static_cast<int>(std::count(old.begin(), old.end(), -1));
  return std::max(empty, experts - static_cast<int>(held.size()) + (empty > 0 ? 1 : 0));
}

TEST_CASE("placement: experts and places that were lost are made good within the bound, near the best of all within it") {
  Random random(102);
  double worst = 1;
  double sum = 0;
  int cases = 0;
  const int shapes[][3] = {{3, 4, 2}, {4, 6, 2}, {4, 6, 3}, {5, 6, 3}, {3, 8, 4}, {4, 6, 6}};
  for (const auto& [experts, places, ranks] : shapes) {
    for (int round = 0; round < 12; ++round) {
      const Counts counts = skewed_counts(random, experts, 1.0);
      mb::PlacementArgs args{.counts = {counts.data(), experts}, .physical_experts = places, .ranks = ranks};
      Ids old = mb::place_experts(args).logical_of_physical;
      for (std::int32_t& expert : old) {  // some places hold nothing, some another expert than before
        if (random.integer(0, 2) == 0) expert = random.integer(-1, experts - 1);
      }
      const int needed = needed_moves(old, experts);
      args.previous = {old.data(), places};
      std::vector<double> best(static_cast<std::size_t>(places) + 1, std::numeric_limits<double>::infinity());
      for_each_placement(experts, places, [&, ranks = ranks](const Ids& logical) {
        double& least = best[static_cast<std::size_t>(moved(old, logical, ranks))];
        least = std::min(least, busiest(counts, logical, ranks));
      });
      double last = std::numeric_limits<double>::infinity();
      for (int most = 0; most <= places; ++most) {
        CAPTURE(round);
        CAPTURE(most);
        args.most_moves = most;
        if (most < needed) {
          CHECK(std::isinf(best[static_cast<std::size_t>(most)]));
          CHECK_THROWS_AS((void)mb::place_experts(args), mb::InvalidArgument);
          continue;
        }
        if (most > 0)
          best[static_cast<std::size_t>(most)] =
              std::min(best[static_cast<std::size_t>(most)], best[static_cast<std::size_t>(most) - 1]);
        const mb::Placement next = mb::place_experts(args);
        check_valid(next, experts, places);
        CHECK(next.moves == moved(old, next.logical_of_physical, ranks));
        CHECK(next.moves <= most);
        CHECK(next.busiest <= last * (1 + 1e-9));
        last = next.busiest;
        const double ratio = next.busiest / best[static_cast<std::size_t>(most)];
        CHECK(ratio >= 1 - 1e-9);
        worst = std::max(worst, ratio);
        sum += ratio;
        ++cases;
      }
    }
  }
  MESSAGE("busiest rank against the optimum over " << cases << " cases: mean " << sum / cases << ", worst " << worst);
  CHECK(worst <= 1.25);
  CHECK(sum / cases <= 1.01);
}

TEST_CASE("placement: a rank is lost, and another one joins: only what has to move does") {
  Random random(103);
  constexpr int experts = 32, per_rank = 10;
  const Counts counts = skewed_counts(random, experts, 1.0);
  const Ids whole = mb::place_experts({.counts = {counts.data(), experts}, .physical_experts = 5 * per_rank, .ranks = 5})
                        .logical_of_physical;
  for (int lost = 0; lost < 5; ++lost) {
    CAPTURE(lost);
    Ids left = whole;
    left.erase(left.begin() + lost * per_rank, left.begin() + (lost + 1) * per_rank);
    const int needed = needed_moves(left, experts);
    CHECK(needed < per_rank);  // replicas of some are elsewhere
    const mb::Placement fewer = mb::place_experts({.counts = {counts.data(), experts},
                                                   .physical_experts = 4 * per_rank,
                                                   .ranks = 4,
                                                   .previous = {left.data(), 4 * per_rank},
                                                   .most_moves = needed});
    check_valid(fewer, experts, 4 * per_rank);
    CHECK(fewer.moves == needed);
    int changed = 0;
    for (std::size_t p = 0; p < left.size(); ++p) changed += fewer.logical_of_physical[p] != left[p] ? 1 : 0;
    CHECK(changed == needed);
    const double of_fresh =
        mb::place_experts({.counts = {counts.data(), experts}, .physical_experts = 4 * per_rank, .ranks = 4}).busiest;
    CHECK(fewer.busiest <= 1.3 * of_fresh);

    Ids joined = fewer.logical_of_physical;
    joined.insert(joined.begin() + lost * per_rank, per_rank, -1);
    const mb::Placement again = mb::place_experts({.counts = {counts.data(), experts},
                                                   .physical_experts = 5 * per_rank,
                                                   .ranks = 5,
                                                   .previous = {joined.data(), 5 * per_rank},
                                                   .most_moves = per_rank});
    check_valid(again, experts, 5 * per_rank);
    CHECK(again.moves == per_rank);
    for (std::size_t p = 0; p < joined.size(); ++p) {
      if (joined[p] >= 0) CHECK(again.logical_of_physical[p] == joined[p]);
    }
    CHECK(again.busiest < fewer.busiest);
  }
  // Nothing is held at all.
  const Ids nothing(4 * per_rank, -1);
  const mb::Placement started = mb::place_experts({.counts = {counts.data(), experts},
                                                   .physical_experts = 4 * per_rank,
                                                   .ranks = 4,
                                                   .previous = {nothing.data(), 4 * per_rank}});
  check_valid(started, experts, 4 * per_rank);
  CHECK(started.moves == 4 * per_rank);
}

TEST_CASE("placement: what a node has lost comes back to it while it has room") {
  Random random(104);
  constexpr int experts = 16, places = 24, ranks = 4, groups = 4;
  for (int round = 0; round < 20; ++round) {
    const Counts counts = skewed_counts(random, experts, 0.7);
    mb::PlacementArgs args{
        .counts = {counts.data(), experts}, .physical_experts = places, .ranks = ranks, .nodes = 2, .groups = groups};
    Ids held = mb::place_experts(args).logical_of_physical;
    const int lost = random.integer(0, ranks - 1);
    std::fill_n(held.begin() + lost * places / ranks, places / ranks, -1);
    const int elsewhere = (lost + ranks / 2) % ranks * places / ranks;  // on the other node
    held[static_cast<std::size_t>(elsewhere)] = held[static_cast<std::size_t>(elsewhere) + 2] = -1;
    const int needed = places / ranks + 2;
    const Counts after = skewed_counts(random, experts, 0.7);  // a fresh placement moves more
    args.counts = {after.data(), experts};
    args.previous = {held.data(), places};
    args.most_moves = needed;
    const mb::Placement next = mb::place_experts(args);
    check_valid(next, experts, places);
    CHECK(keeps_groups(next.logical_of_physical, experts / groups, places / 2));
    CHECK(next.moves == needed);
  }
}

TEST_CASE(
    "placement: groups that several nodes have lost go whole to nodes with room, and replicas give way near their group") {
  const Counts counts{16, 1, 2, 4, 4, 1, 16, 8, 2, 1, 16, 64};
  const Ids held{-1, -1, -1, -1, 0, 1, 8, 9, -1, -1, -1, -1};
  mb::PlacementArgs args{.counts = {counts.data(), 12},
                         .physical_experts = 12,
                         .ranks = 3,
                         .nodes = 3,
                         .groups = 6,
                         .previous = {held.data(), 12}};
  for (const int most : {8, 9, 10, 1000}) {
    CAPTURE(most);
    args.most_moves = most;
    const mb::Placement next = mb::place_experts(args);
    check_valid(next, 12, 12);
    CHECK(keeps_groups(next.logical_of_physical, 2, 4));
    if (most < 1000) CHECK(next.moves == 8);  // else a fresh one that balances a little better
  }
  // Expert 1 has room on its node; for 5 one of the two replicas of 4 gives way on its own.
  const Counts few{64, 2, 4, 64, 2, 8};
  const Ids doubled{0, -1, 2, 4, 4, 3};
  args = {.counts = {few.data(), 6},
          .physical_experts = 6,
          .ranks = 2,
          .nodes = 2,
          .groups = 2,
          .previous = {doubled.data(), 6}};
  for (const int most : {2, 3, 1000}) {
    args.most_moves = most;
    const mb::Placement next = mb::place_experts(args);
    CHECK(keeps_groups(next.logical_of_physical, 3, 3));
    CHECK(next.moves == 2);
  }
  // A cold replica of 0 on the other node would be missed less than one of 2, which is beside 3's group.
  const Counts cold{1, 2, 100, 10};
  const Ids crowded{0, 0, 1, 2, 2, 2};
  args = {.counts = {cold.data(), 4},
          .physical_experts = 6,
          .ranks = 2,
          .nodes = 2,
          .groups = 2,
          .previous = {crowded.data(), 6},
          .most_moves = 1};
  CHECK(mb::place_experts(args).logical_of_physical == Ids{0, 0, 1, 2, 2, 3});
  Random random(105);
  for (int round = 0; round < 40; ++round) {  // ranks of several nodes are lost
    const Counts before = skewed_counts(random, 32, 0.7), after = skewed_counts(random, 32, 0.7);
    args = {.counts = {before.data(), 32}, .physical_experts = 40, .ranks = 8, .nodes = 4, .groups = 8};
    Ids left = mb::place_experts(args).logical_of_physical;
    for (int rank = 0; rank < 8; ++rank) {
      if (random.integer(0, 1) == 0) std::fill_n(left.begin() + rank * 5, 5, -1);
    }
    args.counts = {after.data(), 32};
    args.previous = {left.data(), 40};
    args.most_moves = needed_moves(left, 32);
    const mb::Placement next = mb::place_experts(args);
    check_valid(next, 32, 40);
    CHECK(keeps_groups(next.logical_of_physical, 4, 10));
    CHECK(next.moves == args.most_moves);
  }
}

TEST_CASE("placement: replicas give way on a node without room while another node has an empty place") {
  const Counts equal(6, 1);
  for (const Ids& held : {Ids{-1, 0, 1, 2, 3, 3, 3, 3}, Ids{0, 0, 0, 0, 3, 4, 5, -1}}) {
    const mb::Placement next = mb::place_experts({.counts = {equal.data(), 6},
                                                  .physical_experts = 8,
                                                  .ranks = 2,
                                                  .nodes = 2,
                                                  .groups = 2,
                                                  .previous = {held.data(), 8},
                                                  .most_moves = needed_moves(held, 6)});
    check_valid(next, 6, 8);
    CHECK(next.moves == needed_moves(held, 6));
  }
  // A node loses two of its three ranks and gets an empty one, the other loses one.
  Random random(106);
  for (int round = 0; round < 100; ++round) {
    const int per_rank = random.integer(4, 8), group = random.integer(3, 2 * per_rank - 1);
    const Counts counts = skewed_counts(random, 2 * group, 1.0);
    mb::PlacementArgs args{
        .counts = {counts.data(), 2 * group}, .physical_experts = 6 * per_rank, .ranks = 6, .nodes = 2, .groups = 2};
    const Ids whole = mb::place_experts(args).logical_of_physical;
    Ids held(whole.begin(), whole.begin() + per_rank);
    held.insert(held.end(), static_cast<std::size_t>(per_rank), -1);
    held.insert(held.end(), whole.begin() + 3 * per_rank, whole.begin() + 5 * per_rank);
    args.physical_experts = 4 * per_rank;
    args.ranks = 4;
    args.previous = {held.data(), args.physical_experts};
    args.most_moves = needed_moves(held, 2 * group);
    const mb::Placement next = mb::place_experts(args);
    check_valid(next, 2 * group, args.physical_experts);
    CHECK(next.moves == args.most_moves);
    args.most_moves = mb::PlacementArgs{}.most_moves;  // so few cannot keep all groups together
    const mb::Placement any = mb::place_experts(args);
    check_valid(any, 2 * group, args.physical_experts);
    CHECK(keeps_groups(any.logical_of_physical, group, 2 * per_rank));
  }
}

TEST_CASE("placement: tokens sent by its map meet the load that it expects") {
  const Counts counts{4000, 1000, 500, 500};
  const mb::Placement placement = mb::place_experts({.counts = {counts.data(), 4}, .physical_experts = 8, .ranks = 4});
  Ids ids;
  for (std::int32_t e = 0; e < 4; ++e)
    ids.insert(ids.end(), static_cast<std::size_t>(counts[static_cast<std::size_t>(e)]), e);
  Ids physical(ids.size());
  const auto tokens = static_cast<std::int64_t>(ids.size());
  mb::physical_experts({.experts = mb::MatrixView<const std::int32_t>(ids.data(), tokens, 1),
                        .physical_experts = {physical.data(), tokens, 1},
                        .logical_to_physical = {placement.logical_to_physical.data(), 4, placement.most_replicas},
                        .replica_count = {placement.replica_count.data(), 4},
                        .rank = 3},
                       {}, mb::Host{});
  std::vector<double> load(4, 0.0);
  for (const std::int32_t p : physical) load[static_cast<std::size_t>(p / 2)] += 1;
  CHECK(std::abs(*std::max_element(load.begin(), load.end()) - placement.busiest) <= 8);
}

TEST_CASE("placement: bad arguments are refused by name") {
  const Counts counts{1, 2, 3, 4};
  const Ids previous{0, 1, 2, 3};
  const mb::PlacementArgs good{
      .counts = {counts.data(), 4}, .physical_experts = 4, .ranks = 2, .previous = {previous.data(), 4}};
  const auto refuses = [&](const char* message, const auto& spoil) {
    mb::PlacementArgs args = good;
    spoil(args);
    CHECK_THROWS_WITH_AS((void)mb::place_experts(args), doctest::Contains(message), mb::InvalidArgument);
  };
  refuses("place_experts: counts.size is 0", [](mb::PlacementArgs& args) { args.counts.size = 0; });
  refuses("place_experts: counts.data is null", [](mb::PlacementArgs& args) { args.counts.data = nullptr; });
  refuses("place_experts: physical_experts is 3; allowed: 4 to", [](mb::PlacementArgs& args) { args.physical_experts = 3; });
  refuses("place_experts: physical_experts is 5; allowed: a multiple",
          [](mb::PlacementArgs& args) { args.physical_experts = 5; });
  refuses("place_experts: ranks is 0", [](mb::PlacementArgs& args) { args.ranks = 0; });
  refuses("place_experts: nodes is 3; allowed: a divisor of the 2 ranks", [](mb::PlacementArgs& args) { args.nodes = 3; });
  refuses("place_experts: groups is 3; allowed: a divisor of the 4 experts",
          [](mb::PlacementArgs& args) { args.groups = 3; });
  refuses("place_experts: most_moves is -1", [](mb::PlacementArgs& args) { args.most_moves = -1; });
  refuses("place_experts: previous.data is", [](mb::PlacementArgs& args) {
    args.previous.data = reinterpret_cast<const std::int32_t*>(reinterpret_cast<const char*>(args.previous.data) + 1);
  });
  refuses("place_experts: previous.size is 3", [](mb::PlacementArgs& args) { args.previous.size = 3; });
  const Ids outside{0, 1, 2, 4};
  refuses("place_experts: previous[3] is 4", [&](mb::PlacementArgs& args) { args.previous.data = outside.data(); });
  const Ids below{0, 1, 2, -2};
  refuses("place_experts: previous[3] is -2; allowed: -1 to 3",
          [&](mb::PlacementArgs& args) { args.previous.data = below.data(); });
  const Ids incomplete{0, 1, 2, 2};
  const Ids empty{-1, 3, 2, -1};
  for (const auto& [held, most, message] : {std::tuple{&incomplete, 0, "place_experts: most_moves is 0; allowed: 1 to"},
                                            {&empty, 1, "place_experts: most_moves is 1; allowed: 2 to"}}) {
    refuses(message, [&, previous = held->data(), most = most](mb::PlacementArgs& args) {
      args.previous.data = previous;
      args.most_moves = most;
    });
  }
  const Counts negative{1, -2, 3, 4};
  refuses("place_experts: counts[1] is -2", [&](mb::PlacementArgs& args) { args.counts.data = negative.data(); });
}

}  // namespace testing
