// permutation: from expert ids to the order of rows that groups slots by expert, as grouped matrix products want it.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/permutation_kernels.hpp>
#include <moe_balance/dispatch/sort_kernels.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

MOEB_NAMESPACE_BEGIN

/// Parts that the slots are sorted in where nothing asks for fewer.
[[nodiscard]] inline std::int64_t permutation_parts(std::int64_t slots) {
  if (slots < dispatch_tuning.slots_of_parts) return 1;
  return std::min(slots / dispatch_tuning.slots_per_part, dispatch_tuning.most_parts);
}

/// Rows that suffice for any ids: every slot, and for every expert that can have one up to align - 1 rows of padding. Zero-computation experts need
/// not be among them. Errors: InvalidArgument, as permutation.
[[nodiscard]] inline std::int64_t permutation_rows(std::int64_t tokens, std::int64_t k, std::int64_t experts,
                                                   std::int64_t align = 1) {
  const DispatchValidator check{{"permutation_rows"}};
  check.slots(tokens, k, experts);
  check.align(align);
  const std::int64_t slots = tokens * k;
  return (slots + std::min(experts, slots) * (align - 1)) / align * align;
}

namespace detail {

/// The workspace of a permutation by sorting, in this order: a word for invalid ids, pairs, where experts begin, and the engine's scratch.
struct SortScratch {
  std::int64_t* invalid;
  SlotPairs pairs;
  std::int64_t* first_sorted;
  Workspace engine;

  SortScratch(void* data, std::int64_t slots, std::int64_t experts) {
    std::size_t used = 0;
    const auto take = [&](std::size_t bytes) {
      std::byte* start = static_cast<std::byte*>(data) + used;
      used += rounded(bytes);
      return start;
    };
    const auto n = static_cast<std::size_t>(slots);
    invalid = reinterpret_cast<std::int64_t*>(take(sizeof(std::int64_t)));
    for (std::int64_t*& half : pairs.slots) half = reinterpret_cast<std::int64_t*>(take(n * sizeof(std::int64_t)));
    for (std::uint32_t*& half : pairs.keys) half = reinterpret_cast<std::uint32_t*>(take(n * sizeof(std::uint32_t)));
    first_sorted = reinterpret_cast<std::int64_t*>(take(words_of(experts)));
    engine = {static_cast<std::byte*>(data) + used, engine_bytes(slots, experts)};
  }

  [[nodiscard]] static std::size_t bytes(std::int64_t slots, std::int64_t experts) {
    const auto n = static_cast<std::size_t>(slots);
    return rounded(sizeof(std::int64_t)) + 2 * rounded(n * sizeof(std::int64_t)) + 2 * rounded(n * sizeof(std::uint32_t)) +
           rounded(words_of(experts)) + engine_bytes(slots, experts);
  }
  /// What an engine's sort and scan may use.
  [[nodiscard]] static std::size_t engine_bytes(std::int64_t slots, std::int64_t experts) {
    return dispatch_tuning.sort_scratch_bytes +
           dispatch_tuning.sort_scratch_bytes_per_item * static_cast<std::size_t>(slots + experts);
  }

 private:
  [[nodiscard]] static constexpr std::size_t rounded(std::size_t bytes) { return (bytes + 15) / 16 * 16; }
  [[nodiscard]] static constexpr std::size_t words_of(std::int64_t experts) {
    return static_cast<std::size_t>(experts + 1) * sizeof(std::int64_t);
  }
};

}  // namespace detail

/// Bytes of Workspace that permutation needs, on any engine. Errors: InvalidArgument, as permutation.
[[nodiscard]] inline std::size_t permutation_workspace_bytes(std::int64_t tokens, std::int64_t k, std::int64_t experts) {
  DispatchValidator{{"permutation_workspace_bytes"}}.slots(tokens, k, experts);
  if (experts > max_counted_experts) return detail::SortScratch::bytes(tokens * k, experts);
  return 16 + Histogram::bytes(permutation_parts(tokens * k), experts);
}

namespace detail {

inline void check_permutation(const PermutationArgs& args, Workspace workspace) {
  const DispatchValidator check{{"permutation"}};
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const std::int64_t tokens = args.experts.rows;
  const std::int64_t k = args.experts.columns;
  check.shape("experts", args.experts, 1, max_experts);
  check.range("experts.rows", tokens, 0, dispatch_tuning.most_slots_per_part * dispatch_tuning.most_parts / k, "slots");
  check.matrix("experts", args.experts, tokens, k);
  check.vector("offsets", args.offsets, 2, max_dispatch_experts + 1, "one more than the experts");
  check.matrix("row_of_slot", args.row_of_slot, tokens, k);
  check.rows(args.align, args.rows_per_expert);
  const std::int64_t experts = args.offsets.size - 1;
  check.range("zero_experts.count", args.zero_experts.count, 0, experts - 1, "one expert at least computes");
  check.range("zero_experts.first", args.zero_experts.first, 0, experts - args.zero_experts.count);
  const std::int64_t with_rows = experts - args.zero_experts.count;
  const std::int64_t rows =
      args.rows_per_expert > 0 ? with_rows * args.rows_per_expert : permutation_rows(tokens, k, with_rows, args.align);
  check.vector("slot_of_row", args.slot_of_row, rows, most,
               "permutation_rows, or rows_per_expert times the experts that have rows");
  check.optional_pointer("counts", args.counts, alignof(std::int64_t));
  check.optional_pointer("status", args.status, alignof(Status));
  if (args.expert_of_block.data != nullptr) {
    const std::int64_t whole = args.rows_per_expert > 0 ? args.rows_per_expert : args.align;
    MOEB_EXPECTS(args.block_size >= 1 && whole % args.block_size == 0, "permutation", "block_size",
                 std::to_string(args.block_size),
                 "a divisor of " + std::to_string(whole) + ": no block may hold two experts");
    check.vector("expert_of_block", args.expert_of_block, rows / args.block_size, most, "rows / block_size");
  }
  check.memory("workspace", workspace.data, workspace.bytes, permutation_workspace_bytes(tokens, k, experts), 16);
  check.apart({region("experts", args.experts), region("offsets", args.offsets), region("row_of_slot", args.row_of_slot),
               region("slot_of_row", args.slot_of_row), region("expert_of_block", args.expert_of_block),
               MemoryRegion("counts", args.counts, experts * 8, true), region(args.status), region(workspace)});
}

/// What messages call the ids of a permutation, which is also a step of other calls, and their experts; see ExpertCount.
struct IdsName {
  const char* call = "permutation";
  const char* argument = "experts";
  const char* expert_count = "offsets.size";
  int more = 1;

  [[nodiscard]] ExpertCount count(std::int64_t experts) const {
    return {call, static_cast<int>(experts), expert_count, more};
  }
};

/// Names the first id that is no expert's.
[[noreturn]] inline void refuse_ids(const IdsName& name, const MatrixView<const std::int32_t>& ids, std::int64_t experts) {
  for (std::int64_t t = 0; t < ids.rows; ++t) {
    for (std::int64_t k = 0; k < ids.columns; ++k) {
      const std::int32_t id = ids.data[t * ids.stride + k];
      Validator{name.call}.range({name.argument, t * ids.columns + k}, id, -1, experts - 1, "-1: an empty slot");
    }
  }
  fail_argument(name.call, name.argument, "changing", {"ids that do not change during the call"});
}

/// The kernels' problem, but for its histogram.
[[nodiscard]] inline PermutationProblem permutation_problem(const PermutationArgs& args) {
  PermutationProblem problem{};
  problem.experts = args.experts;
  problem.row_of_slot = args.row_of_slot;
  problem.tokens = args.experts.rows;
  problem.k = args.experts.columns;
  problem.by_k = Divisor(problem.k);
  problem.expert_count = static_cast<int>(args.offsets.size - 1);
  problem.zero_experts = args.zero_experts;
  problem.offsets = args.offsets.data;
  problem.slot_of_row = args.slot_of_row.data;
  problem.rows = args.slot_of_row.size;
  problem.align = args.align;
  problem.rows_per_expert = args.rows_per_expert;
  problem.counts = args.counts;
  problem.expert_of_block = args.expert_of_block.data;
  problem.row_blocks = args.expert_of_block.size;
  problem.block_size = std::max<std::int64_t>(args.block_size, 1);
  problem.invalid = args.status == nullptr ? nullptr : &args.status->invalid_experts;
  return problem;
}

/// The second launch of a permutation, with so many blocks that rank slots. On a GPU there are more where padding is much of the work.
template <class Place, class Tag = EngineTagOf<Place>>
void place_slots(PermutationProblem problem, std::int64_t ranking_blocks, const Place& place, const IdsName& name = {}) {
  using Engine = DispatchEngine<Place>;
  int tiles = Engine::tiles(name.count(problem.expert_count), place);
  const std::int64_t slots_of_block = (problem.tokens * problem.k + ranking_blocks - 1) / ranking_blocks;
  const bool has_few = slots_of_block <= dispatch_tuning.slots_of_few_tiles && problem.histogram.counts != nullptr;
  if (has_few && tiles > dispatch_tuning.tiles) tiles = dispatch_tuning.tiles;
  problem.ranking_blocks = ranking_blocks;
  problem.rows_of_block = problem.histogram.rows / ranking_blocks;
  const std::int64_t marking = Engine::reads_arguments ? 0
                                                       : std::min(1 + problem.rows / dispatch_tuning.rows_per_marking_block,
                                                                  dispatch_tuning.most_parts);
  const std::int64_t blocks = std::max(ranking_blocks, marking);
  Engine::launch(name.call, {blocks, tiles, PlaceSlots::shared_bytes(problem.expert_count, tiles)}, PlaceSlots{}, problem,
                 place);
}

/// The permutation by sorting, whatever the number of experts; `workspace` has SortScratch::bytes. Arguments are checked.
template <class Place, class Tag = EngineTagOf<Place>>
void permutation_by_sorting(const PermutationArgs& args, const Workspace& workspace, const Place& place,
                            const IdsName& name = {}) {
  using Engine = DispatchEngine<Place>;
  const std::int64_t slots = args.experts.rows * args.experts.columns;
  const std::int64_t experts = args.offsets.size - 1;
  Engine::check_sort(slots, name.count(experts), place);
  SortScratch scratch(workspace.data, slots, experts);
  SortProblem problem{permutation_problem(args), scratch.pairs.keys[0], scratch.pairs.slots[0], scratch.first_sorted, slots};
  if constexpr (Engine::reads_arguments) {
    *scratch.invalid = 0;
    problem.permutation.invalid = scratch.invalid;
  }
  Engine::launch(name.call, Engine::for_items(slots, place), MakePairs{}, problem, place);
  if constexpr (Engine::reads_arguments) {
    if (*scratch.invalid != 0) refuse_ids(name, args.experts, experts);
  }
  Engine::sort(scratch.pairs, slots, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(experts))), scratch.engine,
               place);
  problem.keys = scratch.pairs.keys[scratch.pairs.current];
  problem.slots = scratch.pairs.slots[scratch.pairs.current];
  Engine::launch(name.call, Engine::for_items(experts + 1, place), FindRows{}, problem, place);
  Engine::sum(args.offsets.data, experts + 1, scratch.engine, place);
  Engine::launch(name.call, Engine::for_items(std::max(args.slot_of_row.size, experts), place), PlacePairs{}, problem,
                 place);
}

/// The permutation by counting, for up to max_counted_experts. Arguments are checked.
template <class Place, class Tag = EngineTagOf<Place>>
void permutation_by_counting(const PermutationArgs& args, const Workspace& workspace, const Place& place,
                             const IdsName& name = {}) {
  using Engine = DispatchEngine<Place>;
  const std::int64_t slots = args.experts.rows * args.experts.columns;
  PermutationProblem problem = permutation_problem(args);
  problem.histogram =
      Histogram::of(static_cast<std::byte*>(workspace.data) + 16, Engine::parts(slots, permutation_parts(slots), place),
                    problem.tokens, problem.k, problem.expert_count);
  auto* found_invalid = static_cast<std::int64_t*>(workspace.data);
  if constexpr (Engine::reads_arguments) {
    *found_invalid = 0;
    problem.invalid = found_invalid;
  }
  const int experts = problem.expert_count;
  const int tiles = Engine::tiles(name.count(experts), place);    // an error, if any, comes before the first launch
  if (problem.histogram.rows == 1 && !Engine::reads_arguments) {  // few slots: a launch less
    problem.histogram.counts = nullptr;
    return place_slots(problem, 1, place, name);
  }
  Engine::launch(name.call, {problem.histogram.rows, tiles, CountSlots::shared_bytes(experts)}, CountSlots{}, problem,
                 place);
  if constexpr (Engine::reads_arguments) {
    if (*found_invalid != 0) refuse_ids(name, args.experts, experts);
  }
  place_slots(problem, problem.histogram.rows, place, name);
}

/// A permutation whose arguments are checked, but for the ids.
template <class Place, class Tag = EngineTagOf<Place>>
void order_slots(const PermutationArgs& args, const Workspace& workspace, const Place& place, const IdsName& name = {}) {
  if (args.offsets.size - 1 > max_counted_experts)
    permutation_by_sorting(args, workspace, place, name);
  else
    permutation_by_counting(args, workspace, place, name);
}

}  // namespace detail

/// Groups the slots of `experts` by expert, stably: expert e's slots get the rows offsets[e], offsets[e] + 1, ... in token order (k order within
/// a token), then padding rows up to offsets[e + 1]. Rows from offsets[E] on are padding too. Zero-computation experts, `zero_experts`, have no rows. K may not exceed max_experts; E is 1 to
/// max_dispatch_experts.
/// Up to max_counted_experts two launches on a GPU, one for fewer than 2048 slots; a block's shared memory must hold the counts, of 3620 experts at most
/// where it has 99 KiB (compute capability 8.6, 8.9, 12) and of 2340 where it has 64 (7.5). Beyond max_counted_experts slots are sorted, with the same
/// result: three launches of our own and those of CUB's radix sort (one for few slots, else three and one per eight bits of the ids) and scan (two),
/// which only a program has one of whose files includes dispatch/many_experts.cuh. Nothing waits for the host or allocates; all memory must stay alive
/// until the launches are done.
/// Errors: InvalidArgument before any output is written, on the CPU also for an id outside [-1, E).
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void permutation(const PermutationArgs& args, Workspace workspace, const Place& place) {
  DispatchEngine<Place>::check("permutation", place);
  detail::check_permutation(args, workspace);
  detail::order_slots(args, workspace, place);
}

MOEB_NAMESPACE_END
