// limit_to_capacity: each expert keeps at most so many of the slots that chose it, the others are dropped.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/capacity_kernels.hpp>
#include <moe_balance/dispatch/permutation.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

MOEB_NAMESPACE_BEGIN

/// Which slots an expert with too many keeps.
enum class DropBy : std::uint8_t {
  score,     ///< those with the largest weights stay; among equals the earlier token's
  position,  ///< those of the earliest tokens stay
  random     ///< any, all as likely: by `priority`, so that a call with the same one drops the same
};

namespace detail {

inline void check_capacity_factor(const char* call, const char* argument, double factor) {
  MOEB_EXPECTS(factor > 0 && factor <= 1e6, call, argument, std::to_string(factor), "more than 0, at most 1e6");
}
inline void check_drop(const char* call, const char* argument, DropBy drop) {
  MOEB_EXPECTS(drop <= DropBy::random, call, argument, static_cast<int>(drop), "score, position, random");
}
inline void check_priority(const DispatchValidator& check, const char* argument, const RandomPriority& priority,
                           std::int64_t tokens) {
  constexpr std::int64_t most = std::int64_t{1} << 48;
  check.optional_pointer({argument, "offset_on_device"}, priority.offset_on_device, alignof(std::uint64_t));
  check.range({argument, "first_token"}, priority.first_token, 0, most - tokens, "2^48 tokens have numbers of their own");
}
[[nodiscard]] inline MemoryRegion offset_of(const char* name, DropBy drop, const RandomPriority& priority) {
  return {name, drop == DropBy::random ? priority.offset_on_device : nullptr, 8, false};
}

}  // namespace detail

/// ceil(T K / E * capacity_factor), in double as Megatron-Core computes it; at least 1. Errors: InvalidArgument.
[[nodiscard]] inline std::int64_t expert_capacity(std::int64_t tokens, std::int64_t k, std::int64_t experts,
                                                  double capacity_factor) {
  const Validator check{"expert_capacity"};
  check.range("k", k, 1, max_experts);
  check.range("tokens", tokens, 0, std::numeric_limits<std::int64_t>::max() / k, "slots");
  check.range("experts", experts, 1, max_dispatch_experts);
  detail::check_capacity_factor("expert_capacity", "capacity_factor", capacity_factor);
  const double slots = static_cast<double>(tokens * k) / static_cast<double>(experts);
  const double capacity = __builtin_ceil(slots * capacity_factor);
  MOEB_EXPECTS(capacity < 0x1p62, "expert_capacity", "tokens", tokens, "so many that the capacity is below 2^62");
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(capacity));
}

/// The arguments of limit_to_capacity. T = tokens, E = experts, K = slots per token.
struct CapacityArgs {
  MatrixView<const std::int32_t> chosen;  ///< [T, K]: ids before dropping; -1: an empty slot
  MatrixView<std::int32_t> experts;       ///< [T, K] out: ids after dropping, -1 for dropped slots
  AnyMatrix weights;                      ///< [T, K] in and out: what slots are ranked by; 0 where experts is -1 after
  int expert_count = 0;                   ///< E
  std::int64_t capacity = 0;              ///< most slots per expert
  DropBy drop = DropBy::score;            ///< which slots stay
  bool renormalise = false;     ///< weights of tokens that lost a slot become scaling_factor * weight / sum of the kept
  float scaling_factor = 1.0f;  ///< with renormalise; finite
  std::int64_t* kept_counts = nullptr;  ///< [E] out, optional: slots per expert after dropping
  Status* status = nullptr;             ///< optional: counts dropped slots and, on a GPU, ids outside [-1, E), taken as -1
  RandomPriority priority{};            ///< for DropBy::random
};

namespace detail {

/// What limit_to_capacity keeps in its workspace: the permutation of the chosen ids.
struct CapacityScratch {
  std::int64_t* offsets;
  std::int64_t* row_of_slot;
  std::int64_t* slot_of_row;
  Workspace rest;

  [[nodiscard]] static std::size_t bytes(std::int64_t tokens, std::int64_t k, std::int64_t experts) {
    const auto words = static_cast<std::size_t>(experts + 1 + 2 * tokens * k + 1) / 2 * 2;
    return words * sizeof(std::int64_t) + permutation_workspace_bytes(tokens, k, experts);
  }
  CapacityScratch(const Workspace& workspace, std::int64_t tokens, std::int64_t k, std::int64_t experts)
      : offsets(static_cast<std::int64_t*>(workspace.data)),
        row_of_slot(offsets + experts + 1),
        slot_of_row(row_of_slot + tokens * k) {
    const std::int64_t words = (experts + 1 + 2 * tokens * k + 1) / 2 * 2;
    rest = {offsets + words, permutation_workspace_bytes(tokens, k, experts)};
  }
};

}  // namespace detail

/// Bytes of Workspace that limit_to_capacity needs. Errors: InvalidArgument.
[[nodiscard]] inline std::size_t capacity_workspace_bytes(std::int64_t tokens, std::int64_t k, std::int64_t experts) {
  DispatchValidator{{"capacity_workspace_bytes"}}.slots(tokens, k, experts);
  return detail::CapacityScratch::bytes(tokens, k, experts);
}

/// Drops each expert's slots beyond `capacity`: id -1, weight 0. Slots that stay keep id and weight, unless `renormalise` is set and their
/// token lost another. Three launches on a GPU, one more with renormalise and one with DropBy::random; nothing waits for the host. Errors: InvalidArgument before any
/// output is written, on the CPU also for an id outside [-1, E).
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void limit_to_capacity(const CapacityArgs& args, Workspace workspace, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("limit_to_capacity", place);
  const DispatchValidator check{{"limit_to_capacity"}};
  const std::int64_t tokens = args.chosen.rows;
  const std::int64_t k = args.chosen.columns;
  check.shape("chosen", args.chosen, 1, max_experts);
  check.range("chosen.rows", tokens, 0, dispatch_tuning.most_slots_per_part * dispatch_tuning.most_parts / k, "slots");
  check.matrix("chosen", args.chosen, tokens, k);
  check.matrix("experts", args.experts, tokens, k);
  check.matrix("weights", args.weights, tokens, k);
  MOEB_EXPECTS(Engine::serves_float64 || args.weights.type != DataType::float64, "limit_to_capacity", "weights.type",
               "float64", "float32, bfloat16, float16; float64 on the CPU only");
  if (args.renormalise) check.finite("scaling_factor", args.scaling_factor);
  detail::check_drop("limit_to_capacity", "drop", args.drop);
  if (args.drop == DropBy::random) detail::check_priority(check, "priority", args.priority, tokens);
  check.range("expert_count", args.expert_count, 1, max_dispatch_experts);
  check.range("capacity", args.capacity, 1, std::numeric_limits<std::int64_t>::max());
  check.optional_pointer("kept_counts", args.kept_counts, alignof(std::int64_t));
  check.optional_pointer("status", args.status, alignof(Status));
  check.memory("workspace", workspace.data, workspace.bytes, capacity_workspace_bytes(tokens, k, args.expert_count), 16);
  check.apart({region("experts", args.experts), region("weights", args.weights), region("chosen", args.chosen),
               MemoryRegion("kept_counts", args.kept_counts, args.expert_count * std::int64_t{8}, true), region(args.status),
               region(workspace), detail::offset_of("priority.offset_on_device", args.drop, args.priority)});

  const detail::CapacityScratch scratch(workspace, tokens, k, args.expert_count);
  detail::order_slots({.experts = args.chosen,
                       .offsets = {scratch.offsets, args.expert_count + 1},
                       .row_of_slot = {scratch.row_of_slot, tokens, k},
                       .slot_of_row = {scratch.slot_of_row, tokens * k},
                       .status = args.status},
                      scratch.rest, place, {"limit_to_capacity", "chosen", "expert_count", 0});
  std::uint32_t* priorities = nullptr;
  if (args.drop == DropBy::random) {
    priorities = reinterpret_cast<std::uint32_t*>(scratch.row_of_slot);  // which nobody reads
    Engine::launch("limit_to_capacity", Engine::for_items(tokens * ((k + 3) / 4), place), DrawPriorities{},
                   PriorityProblem{args.priority, tokens, k, priorities}, place);
  }
  const CapacityProblem problem{args.chosen,
                                args.experts,
                                args.weights,
                                args.expert_count,
                                args.capacity,
                                args.drop != DropBy::position,
                                priorities,
                                scratch.offsets,
                                scratch.slot_of_row,
                                args.kept_counts,
                                args.status == nullptr ? nullptr : &args.status->dropped_slots};
  const LaunchSize blocks = Engine::for_groups(args.expert_count, tokens * k, place);
  const LaunchSize items = Engine::for_items(tokens, place);
  detail::in_real_type_of<Place>(args.weights.type, [&](auto real) {
    using Real = decltype(real);
    Engine::launch("limit_to_capacity", {blocks.blocks, blocks.tiles, DropSlots<Real>::shared_bytes(blocks.tiles)},
                   DropSlots<Real>{}, problem, place);
    if (args.renormalise) {
      const RenormaliseProblem kept{args.chosen, args.experts, args.weights, args.expert_count, args.scaling_factor};
      Engine::launch("limit_to_capacity", items, RenormaliseKept<Real>{}, kept, place);
    }
  });
}

MOEB_NAMESPACE_END
