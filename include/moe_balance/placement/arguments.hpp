// What a placement of experts is made from, and what it is.
#pragma once

#include <moe_balance/views.hpp>

#include <cstdint>
#include <limits>
#include <vector>

MOEB_NAMESPACE_BEGIN

/// What to place.
struct PlacementArgs {
  VectorView<const std::int64_t> counts;  ///< [E] in host memory: measured tokens per expert, 0 to 2^50; all 0: as if equal
  int physical_experts = 0;               ///< P: places for replicas on all ranks, E or more, a multiple of ranks
  int ranks = 1;                          ///< that hold experts
  int nodes = 1;                          ///< divides ranks; rank r is on node r / (ranks / nodes)
  int groups = 1;                         ///< of neighbouring experts, divides E; hierarchical where nodes > 1 divides it
  VectorView<const std::int32_t>
      previous{};  ///< [P], optional: logical_of_physical of the placement that runs now; -1: a place that holds nothing, as of a rank that has joined. May lack experts, whose rank was lost
  int most_moves = std::numeric_limits<int>::
      max();  ///< with previous: places that may get an expert their rank does not hold now; at least as many as hold nothing, or as experts are lacking
};

/// Which expert lies where. Physical expert p is on rank p / (P / ranks).
struct Placement {
  std::vector<std::int32_t> logical_of_physical;  ///< [P]
  std::vector<std::int32_t> replica_count;        ///< [E]
  std::vector<std::int32_t> logical_to_physical;  ///< [E, most_replicas]: ascending, then -1
  int most_replicas = 1;                          ///< of any expert
  int moves = 0;       ///< places with an expert that their rank did not hold before, or not in as many places; 0 without previous
  double busiest = 0;  ///< expected count of the busiest rank, replicas sharing evenly
};

MOEB_NAMESPACE_END
