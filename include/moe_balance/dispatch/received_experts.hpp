// The receiving side of experts over ranks: rows come by source rank, and within a source by local expert, each source's rows of an expert padded as its
// permutation has padded them. received_experts names the expert of every row, as ids for a permutation by which each expert gets the rows of all sources.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/expert_offsets.hpp>
#include <moe_balance/dispatch/permutation_problem.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

MOEB_NAMESPACE_BEGIN

/// The arguments of received_experts.
struct ReceivedExpertsArgs {
  MatrixView<const std::int64_t> counts;  ///< [ranks, local experts], each 0 to 2^40: PermutationArgs::counts of each source
  MatrixView<std::int32_t> experts;       ///< [R, 1] out: the local expert, 0 to local experts - 1; -1 in padding rows
  std::int64_t align = 1;                 ///< as the sources' PermutationArgs::align
  std::int64_t rows_per_expert = 0;       ///< as the sources' PermutationArgs::rows_per_expert
  VectorView<std::int64_t> receive_counts{};   ///< [ranks] out, optional: rows, padding included, from each source
  VectorView<std::int64_t> receive_offsets{};  ///< [ranks + 1] out, optional: their first rows
  /// Optional; on a GPU counts (invalid_rows) counts outside their range, taken as 0, and rows that R leaves no room for.
  Status* status = nullptr;
};

/// A run is what one source sends for one expert.
struct ReceivedExpertsProblem {
  SlotView<const std::int64_t> counts;
  std::int64_t ranks;
  std::int64_t local_experts;
  const std::int64_t* run_offsets;  ///< [ranks * local experts + 1]
  MatrixView<std::int32_t> experts;
  std::int64_t* receive_counts;   ///< may be null
  std::int64_t* receive_offsets;  ///< may be null
  std::int64_t* invalid;          ///< may be null
};

/// The run of a row, the number of runs for a row behind all of them.
[[nodiscard]] MOEB_INLINE std::int64_t run_of_row(const std::int64_t* run_offsets, std::int64_t runs, std::int64_t row) {
  std::int64_t run = 0;
  std::int64_t later = runs + 1;
  MOEB_NO_UNROLL
  while (later - run > 1) {
    const std::int64_t middle = run + (later - run) / 2;
    (run_offsets[middle] <= row ? run : later) = middle;
  }
  return run;
}

/// Each tile has a range of neighbouring rows.
struct NameReceivedRows {
  static constexpr bool uses_shared = false;
  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const ReceivedExpertsProblem& problem) const {
    const int tiles = block.threads() / TileT::width;
    const std::int64_t own = block.index() * tiles + block.thread() / TileT::width;
    const ItemRange rows = range_of_part(problem.experts.rows, own, block.blocks() * tiles);
    MOEB_NO_UNROLL
    for (std::int64_t row = rows.first; row < rows.last;) row = name_rows_of_run(tile, problem, {row, rows.last});
    split_over_sources(block, problem);
  }

 private:
  /// Names those of the rows that belong to the first one's run, and says which is the next.
  template <class TileT>
  MOEB_INLINE static std::int64_t name_rows_of_run(const TileT& tile, const ReceivedExpertsProblem& problem,
                                                   const ItemRange& rows) {
    const std::int64_t runs = problem.ranks * problem.local_experts;
    const std::int64_t run = run_of_row(problem.run_offsets, runs, rows.first);
    std::int64_t padding = rows.first;
    std::int64_t end = rows.last;
    std::int32_t expert = -1;
    if (run < runs) {
      const std::int64_t count = problem.counts[run];
      padding = problem.run_offsets[run] + (ExpertOffsetsProblem::is_count(count) ? count : 0);
      end = problem.run_offsets[run + 1] < end ? problem.run_offsets[run + 1] : end;
      expert = static_cast<std::int32_t>(run) % static_cast<std::int32_t>(problem.local_experts);
    }
    MOEB_NO_UNROLL
    for (std::int64_t row = rows.first + tile.lane(); row < end; row += TileT::width) {
      problem.experts.data[row * problem.experts.stride] = row < padding ? expert : -1;
    }
    return end;
  }

  template <class BlockT>
  MOEB_INLINE static void split_over_sources(const BlockT& block, const ReceivedExpertsProblem& problem) {
    for_each_item_of_thread(block, problem.ranks + 1, [&](std::int64_t rank) MOEB_LAMBDA {
      const std::int64_t first = problem.run_offsets[rank * problem.local_experts];
      if (problem.receive_offsets != nullptr) problem.receive_offsets[rank] = first;
      if (rank < problem.ranks) {
        if (problem.receive_counts == nullptr) return;
        problem.receive_counts[rank] = problem.run_offsets[(rank + 1) * problem.local_experts] - first;
      } else if (first > problem.experts.rows && problem.invalid != nullptr) {
        block.add_global(problem.invalid, first - problem.experts.rows);
      }
    });
  }
};

namespace detail {

inline void check_runs(const DispatchValidator& check, std::int64_t ranks, std::int64_t local_experts,
                       const char* ranks_name, const char* experts_name) {
  check.range(experts_name, local_experts, 1, max_dispatch_experts, "local experts");
  check.range(ranks_name, ranks, 1, max_dispatch_experts / local_experts, "ranks, of so many experts each");
}

}  // namespace detail

/// Bytes of Workspace that received_experts needs, on any engine. Errors: InvalidArgument, as received_experts.
[[nodiscard]] inline std::size_t received_experts_workspace_bytes(std::int64_t ranks, std::int64_t local_experts) {
  detail::check_runs({{"received_experts_workspace_bytes"}}, ranks, local_experts, "ranks", "local_experts");
  return static_cast<std::size_t>(ranks * local_experts + 1) * sizeof(std::int64_t);
}

namespace detail {

inline void check_received(const DispatchValidator& check, const ReceivedExpertsArgs& args, const Workspace& workspace) {
  const std::int64_t ranks = args.counts.rows;
  const std::int64_t local_experts = args.counts.columns;
  check_runs(check, ranks, local_experts, "counts.rows", "counts.columns");
  check.matrix("counts", args.counts, ranks, local_experts);
  check.shape("experts", args.experts, 1, 1);
  check.matrix("experts", args.experts, args.experts.rows, 1);
  check.rows(args.align, args.rows_per_expert);
  if (args.receive_counts.data != nullptr) check.vector("receive_counts", args.receive_counts, ranks, ranks, "ranks");
  if (args.receive_offsets.data != nullptr) {
    check.vector("receive_offsets", args.receive_offsets, ranks + 1, ranks + 1, "one more than the ranks");
  }
  check.optional_pointer("status", args.status, alignof(Status));
  check.memory("workspace", workspace.data, workspace.bytes, received_experts_workspace_bytes(ranks, local_experts), 16);
  check.apart({region("experts", args.experts), region("counts", args.counts), region("receive_counts", args.receive_counts),
               region("receive_offsets", args.receive_offsets), region(args.status), region(workspace)});
}

/// Rows that all sources send, where counts can be read.
[[nodiscard]] inline std::int64_t received_rows(const DispatchValidator& check, const ReceivedExpertsArgs& args) {
  std::int64_t rows = 0;
  for (std::int64_t run = 0; run < args.counts.rows * args.counts.columns; ++run) {
    const std::int64_t count = SlotView<const std::int64_t>(args.counts)[run];
    check.range({"counts", run}, count, 0, ExpertOffsetsProblem::most_slots);
    rows += rows_of_expert(count, args.align, args.rows_per_expert);
  }
  return rows;
}

}  // namespace detail

/// The local expert of every row that a rank receives: source s sends, for each local expert e in turn, counts[s, e] rows and the padding that `align` or
/// `rows_per_expert` demands; sources follow each other, this rank, which sends to itself, among them. A padding row, and a row behind all that is sent, gets
/// -1. `experts` is what permutation takes as its ids, K = 1: its order groups the rows by expert, permute then moves them, and combine without weights moves
/// the experts' outputs back to the order of arrival. R is the caller's choice: for sources of up to T tokens ranks * permutation_rows(T, K, local experts,
/// align) always suffices, ranks * local experts * rows_per_expert with that. ranks * local experts is 1 to max_dispatch_experts. Two launches on a GPU,
/// nothing waits for the host or allocates; all memory must stay alive until they are done. Where bad counts, or too small an R, are only counted in status,
/// rows below R are named as those counts have them, and receive_counts and receive_offsets may reach beyond R: look at status before rows are moved.
/// Errors: InvalidArgument before anything is written, on the CPU also for a count outside 0 to 2^40 and for rows that R has no room for, on a GPU for the
/// latter with rows_per_expert only.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void received_experts(const ReceivedExpertsArgs& args, Workspace workspace, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("received_experts", place);
  const DispatchValidator check{{"received_experts"}};
  detail::check_received(check, args, workspace);
  const std::int64_t runs = args.counts.rows * args.counts.columns;
  std::int64_t rows = runs * args.rows_per_expert;
  if constexpr (Engine::reads_arguments) rows = detail::received_rows(check, args);
  check.range("experts.rows", args.experts.rows, rows, std::numeric_limits<std::int64_t>::max(),
              "what all sources send, padding included");

  auto* run_offsets = static_cast<std::int64_t*>(workspace.data);
  std::int64_t* invalid = args.status == nullptr ? nullptr : &args.status->invalid_rows;
  const int tiles = std::min(Engine::tiles({"received_experts", 1}, place), dispatch_tuning.tiles);
  const ExpertOffsetsProblem offsets{args.counts, runs, run_offsets, args.align, args.rows_per_expert, invalid};
  Engine::launch("received_experts", {1, tiles, FindOffsets::shared_bytes(tiles)}, FindOffsets{}, offsets, place);
  const ReceivedExpertsProblem problem{args.counts,  args.counts.rows,         args.counts.columns,       run_offsets,
                                       args.experts, args.receive_counts.data, args.receive_offsets.data, invalid};
  Engine::launch("received_experts", Engine::for_items(std::max(args.experts.rows, args.counts.rows + 1), place),
                 NameReceivedRows{}, problem, place);
}

MOEB_NAMESPACE_END
