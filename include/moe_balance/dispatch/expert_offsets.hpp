// expert_offsets: from counts to offsets, for counts that come from elsewhere than a permutation: a router's, or other ranks'.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/permutation_problem.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

struct ExpertOffsetsProblem {
  static constexpr std::int64_t most_slots = std::int64_t{1} << 40;
  SlotView<const std::int64_t> counts;
  std::int64_t experts;
  std::int64_t* offsets;
  std::int64_t align;
  std::int64_t rows_per_expert;
  std::int64_t* invalid;  ///< may be null

  [[nodiscard]] MOEB_INLINE static constexpr bool is_count(std::int64_t count) { return count >= 0 && count <= most_slots; }
};

/// One block.
struct FindOffsets {
  static constexpr bool uses_shared = true;
  [[nodiscard]] static constexpr std::size_t shared_bytes(int tiles) {
    return static_cast<std::size_t>(tiles) * sizeof(std::int64_t);
  }

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const ExpertOffsetsProblem& problem) const {
    const auto rows_of = [&](std::int64_t e) MOEB_LAMBDA {
      const std::int64_t count = problem.counts[e];
      return rows_of_expert(problem.is_count(count) ? count : 0, problem.align, problem.rows_per_expert);
    };
    auto* sums = reinterpret_cast<std::int64_t*>(block.shared());
    for_each_offset(block, tile, problem.experts, sums, rows_of, [&](std::int64_t e, std::int64_t row) MOEB_LAMBDA {
      problem.offsets[e] = row;
      if (problem.invalid == nullptr || e == problem.experts || problem.is_count(problem.counts[e])) return;
      block.add_global(problem.invalid, 1);
    });
  }
};

/// offsets[e] = the rows of the experts before e, each expert's slots padded as permutation pads them. One launch on a GPU, nothing waits
/// for the host. Errors: InvalidArgument before anything is written, on the CPU also for a count outside 0 to 2^40.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void expert_offsets(const ExpertOffsetsArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("expert_offsets", place);
  const DispatchValidator check{{"expert_offsets"}};
  const std::int64_t experts = args.counts.size;
  check.vector("counts", args.counts, 1, max_dispatch_experts, "experts");
  check.vector("offsets", args.offsets, experts + 1, experts + 1, "one more than the counts");
  check.rows(args.align, args.rows_per_expert);
  check.optional_pointer("status", args.status, alignof(Status));
  check.apart({region("offsets", args.offsets), region("counts", args.counts), region(args.status)});
  if constexpr (Engine::reads_arguments) {
    for (std::int64_t e = 0; e < experts; ++e) {
      check.range({"counts", e}, args.counts.data[e], 0, ExpertOffsetsProblem::most_slots);
    }
  }
  const ExpertOffsetsProblem problem{MatrixView(args.counts.data, 1, experts),
                                     experts,
                                     args.offsets.data,
                                     args.align,
                                     args.rows_per_expert,
                                     args.status == nullptr ? nullptr : &args.status->invalid_rows};
  const int tiles = std::min(Engine::tiles({"expert_offsets", 1}, place), dispatch_tuning.tiles);
  Engine::launch("expert_offsets", {1, tiles, FindOffsets::shared_bytes(tiles)}, FindOffsets{}, problem, place);
}

MOEB_NAMESPACE_END
