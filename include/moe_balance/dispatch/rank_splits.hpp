// What each rank is sent of rows that lie by expert: experts that follow each other are on one rank, the same number on each.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <cstdint>
#include <limits>
#include <string>

MOEB_NAMESPACE_BEGIN

/// The arguments of rank_splits.
struct RankSplitsArgs {
  VectorView<const std::int64_t> offsets;  ///< [E + 1], from permutation: experts of one rank are neighbours
  VectorView<std::int64_t> send_counts;    ///< [ranks] out: rows, padding included, for each rank; ranks divide E
  VectorView<std::int64_t> send_offsets;   ///< [ranks + 1] out: their first rows
  /// [E], optional: slots per expert, which offsets must have room for; where rows_per_expert has left slots without a row, min(counts, rows_per_expert)
  const std::int64_t* counts = nullptr;
  Status* status = nullptr;  ///< optional; on a GPU counts experts whose offsets descend or disagree with counts
};

struct RankSplitsProblem {
  const std::int64_t* offsets;
  const std::int64_t* counts;
  std::int64_t experts;
  std::int64_t ranks;
  std::int64_t* send_counts;
  std::int64_t* send_offsets;
  std::int64_t* invalid;
};

/// Whether an expert's rows can be what its count says.
[[nodiscard]] MOEB_INLINE bool offsets_agree(const std::int64_t* offsets, const std::int64_t* counts, std::int64_t expert) {
  if (offsets[expert] < 0 || offsets[expert + 1] < offsets[expert]) return false;
  return counts == nullptr || (counts[expert] >= 0 && counts[expert] <= offsets[expert + 1] - offsets[expert]);
}

struct SplitOverRanks {
  static constexpr bool uses_shared = false;
  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const RankSplitsProblem& problem) const {
    const std::int64_t per_rank = problem.experts / problem.ranks;
    for_each_item_of_thread(block, problem.ranks + 1, [&](std::int64_t rank) MOEB_LAMBDA {
      const std::int64_t first = problem.offsets[rank * per_rank];
      problem.send_offsets[rank] = first;
      if (rank == problem.ranks) return;
      const std::int64_t last = problem.offsets[(rank + 1) * per_rank];
      problem.send_counts[rank] = first >= 0 && last > first ? last - first : 0;
      if (problem.invalid == nullptr) return;
      for (std::int64_t e = rank * per_rank; e < (rank + 1) * per_rank; ++e) {
        if (!offsets_agree(problem.offsets, problem.counts, e)) block.add_global(problem.invalid, 1);
      }
    });
  }
};

namespace detail {

/// On the CPU offsets must ascend from 0 or more, with room for counts.
inline void check_splits(const DispatchValidator& check, const RankSplitsArgs& args) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  check.range({"offsets", std::int64_t{0}}, args.offsets.data[0], 0, most);
  for (std::int64_t e = 0; e + 1 < args.offsets.size; ++e) {
    if (offsets_agree(args.offsets.data, args.counts, e)) continue;
    const std::int64_t slots = args.counts == nullptr ? 0 : args.counts[e];
    check.range({"counts", e}, slots, 0, most);
    // Two numbers that are not negative: their sum may need the 64th bit.
    const std::uint64_t least = static_cast<std::uint64_t>(args.offsets.data[e]) + static_cast<std::uint64_t>(slots);
    fail_argument("rank_splits", ArgumentName("offsets", e + 1), args.offsets.data[e + 1],
                  {"at least " + std::to_string(least) + ": ascending, with room for counts"});
  }
}

}  // namespace detail

/// The rows that each rank is sent, when rank r has the experts r * E / ranks to (r + 1) * E / ranks - 1. One launch on a GPU. Errors:
/// InvalidArgument before anything is written, on the CPU also for offsets that descend or have no room for `counts`.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void rank_splits(const RankSplitsArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("rank_splits", place);
  const DispatchValidator check{{"rank_splits"}};
  check.vector("offsets", args.offsets, 2, max_dispatch_experts + 1, "one more than the experts");
  const std::int64_t experts = args.offsets.size - 1;
  const std::int64_t ranks = args.send_counts.size;
  check.vector("send_counts", args.send_counts, 1, experts, "ranks");
  MOEB_EXPECTS(experts % ranks == 0, "rank_splits", "send_counts.size", std::to_string(ranks),
               "a divisor of the " + std::to_string(experts) + " experts");
  check.vector("send_offsets", args.send_offsets, ranks + 1, ranks + 1, "one more than the ranks");
  check.optional_pointer("counts", args.counts, alignof(std::int64_t));
  check.optional_pointer("status", args.status, alignof(Status));
  check.apart({region("send_counts", args.send_counts), region("send_offsets", args.send_offsets),
               region("offsets", args.offsets), MemoryRegion("counts", args.counts, experts * 8, false),
               region(args.status)});
  if constexpr (Engine::reads_arguments) detail::check_splits(check, args);
  const RankSplitsProblem problem{args.offsets.data,
                                  args.counts,
                                  experts,
                                  ranks,
                                  args.send_counts.data,
                                  args.send_offsets.data,
                                  args.status == nullptr ? nullptr : &args.status->invalid_rows};
  Engine::launch("rank_splits", Engine::for_items(ranks + 1, place), SplitOverRanks{}, problem, place);
}

MOEB_NAMESPACE_END
