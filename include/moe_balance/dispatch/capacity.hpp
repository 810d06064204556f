// Capacity: an expert takes at most C = ceil(T K capacity_factor / E) slots; the others are dropped. `WithCapacity<TopK<8>>` makes a Router do it after
// its routing kernel; `limit_to_capacity` is the call by itself. Causal by position only: otherwise whether a token keeps an expert depends on later tokens.
// Source: GShard, arXiv 2006.16668; Switch Transformer, arXiv 2101.03961; Megatron-Core's token drop policies "probs" and "position".
#pragma once

#include <moe_balance/arguments.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/capacity_backward_kernels.hpp>
#include <moe_balance/dispatch/capacity_kernels.hpp>
#include <moe_balance/dispatch/limit_to_capacity.hpp>
#include <moe_balance/dispatch/validate.hpp>
#include <moe_balance/requirements.hpp>
#include <moe_balance/shape.hpp>
#include <moe_balance/topk/top_k.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// A selection whose experts have a capacity. Losses, bias and counts see what was chosen, before dropping: they balance demand. Forward
/// writes the ids before dropping to `chosen`, which backward takes beside the ids after: it knows itself which it needs.
template <class Selection>
struct WithCapacity {
  static_assert(requirements::of_top_k<Selection>() && TopKPolicy<Selection>);
  static_assert(!looks_across_tokens<Selection>, "WithCapacity<WithCapacity<S>> would have one capacity: its outer one");
  static constexpr int k = Selection::k;
  static constexpr bool replays = is_replaying<Selection>;
  static constexpr bool looks_across_tokens = true;

  double capacity_factor = 1.0;  ///< C = ceil(T K / E * capacity_factor), T the rows of logits, padding tokens included
  DropBy drop = DropBy::score;   ///< by weight (as Megatron-Core), by position, or at random (as DeepSpeed's top1gating)
  bool renormalise = false;      ///< the kept weights, as stored, of a token that lost a slot sum to scaling_factor again
  bool pad = false;              ///< every expert gets C rows where rows are given: see rows_per_expert()
  Selection selection{};         ///< what chooses, before dropping
  RandomPriority priority{};     ///< for DropBy::random; another offset in each step, and a seed in each layer

  [[nodiscard]] MOEB_INLINE constexpr Weighting weighting() const { return selection.weighting(); }
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT& tile, const LayoutT& layout, Keys& keys) const {
    selection.template narrow<Real>(tile, layout, keys);
  }
  /// As the selection, if it has that.
  template <class Keys>
  MOEB_INLINE void narrow_side_by_side(int experts, Keys keys) const {
    selection.narrow_side_by_side(experts, keys);
  }
  /// As the selection, if it has that.
  template <class Real>
    requires keeps_fewer<Selection>
  [[nodiscard]] MOEB_INLINE bool keeps(const RankedExpert<Real>& expert) const { return is_kept(selection, expert); }

  void check(const char* call, int experts) const {
    selection.check(call, experts);
    detail::check_capacity_factor(call, "top_k.capacity_factor", capacity_factor);
    detail::check_drop(call, "top_k.drop", drop);
    MOEB_EXPECTS(!renormalise || (weighting().renormalise && k > 1), call, "top_k.renormalise", "true",
                 "false, unless the selection renormalises and chooses more than one expert");
  }

  /// Before the routing kernel: what it and the pass after it write must lie apart. What only the kernel touches has to keep off kept_counts
  /// and the workspace.
  void check_memory(const char* call, const ForwardArgs& args, const Workspace& workspace) const {
    const DispatchValidator check{{call}};
    check.optional_pointer("kept_counts", args.kept_counts, alignof(std::int64_t));
    if (drop == DropBy::random) detail::check_priority(check, "top_k.priority", priority, args.logits.rows);
    const std::int64_t experts = args.logits.columns;
    const MemoryRegion kept_counts("kept_counts", args.kept_counts, experts * 8, true);
    const MemoryRegion scratch = region(workspace);
    const MemoryRegion offset = memory_of_priority();
    check.apart({region("chosen", args.chosen), region("experts", args.experts), region("weights", args.weights),
                 kept_counts, scratch, region(args.status), offset});
    if (offset.first != offset.last) {
      check.apart({MemoryRegion("counts", args.counts, experts * 8, true), offset});
      check.apart({MemoryRegion(bytes_of(args.load), true), offset});
      check.apart({MemoryRegion("saved", args.saved.data, static_cast<std::int64_t>(args.saved.bytes), true), offset});
    }
    check.apart(
        {kept_counts, scratch, region("logits", args.logits), MemoryRegion("counts", args.counts, experts * 8, false),
         MemoryRegion("bias", args.bias.data, experts * 4, false), MemoryRegion(bytes_of(args.load), false),
         MemoryRegion("saved", args.saved.data, static_cast<std::int64_t>(args.saved.bytes), false),
         MemoryRegion("active", args.active, args.logits.rows, false),
         MemoryRegion("balanced", args.balanced, args.logits.rows, false), region("replay.experts", args.replay.experts),
         MemoryRegion("replay.tokens", args.replay.tokens, args.logits.rows, false),
         MemoryRegion("tokens_on_device", args.tokens_on_device, 8, false), offsets_of(args.sequences)});
  }

  /// Before the backward kernel: the workspace must lie apart from all that it reads and writes.
  void check_memory(const char* call, const BackwardArgs& args, const Workspace& workspace) const {
    const auto read = [](MemoryRegion any) {
      any.written = false;
      return any;
    };
    const std::int64_t tokens = args.logits.rows;
    DispatchValidator{{call}}.apart(
        {region(workspace), region("logits", args.logits), region("experts", args.experts), region("chosen", args.chosen),
         region("grad_weights", args.grad_weights), read(region("grad_logits", args.grad_logits)),
         MemoryRegion("saved", args.saved.data, static_cast<std::int64_t>(args.saved.bytes), false),
         MemoryRegion("active", args.active, tokens, false), MemoryRegion("balanced", args.balanced, tokens, false),
         MemoryRegion("tokens_on_device", args.tokens_on_device, 8, false),
         MemoryRegion("grad_loss", args.grad_loss, 4, false), offsets_of(args.sequences)});
  }

  /// What it reads while it runs; nothing but at random.
  [[nodiscard]] MemoryRegion memory_of_priority() const {
    return detail::offset_of("top_k.priority.offset_on_device", drop, priority);
  }

  /// Most slots per expert. Errors, here and below: InvalidArgument.
  [[nodiscard]] std::int64_t capacity(const Shape& shape) const {
    return expert_capacity(shape.tokens, k, shape.experts, capacity_factor);
  }
  /// PermutationArgs::rows_per_expert: the capacity, rounded up to `align`, where `pad` is set, else 0. route_and_permute and
  /// forward_and_permute ask for it themselves; `permutation` by itself is to be given it. slot_of_row needs E times so many rows.
  [[nodiscard]] std::int64_t rows_per_expert(const Shape& shape, std::int64_t align = 1) const {
    DispatchValidator{{"rows_per_expert"}}.align(align);
    return pad ? (capacity(shape) + align - 1) / align * align : 0;
  }

  /// What Router::workspace_bytes is with it.
  [[nodiscard]] std::size_t workspace_bytes(const Shape& shape) const {
    const std::size_t checked = capacity_workspace_bytes(shape.tokens, k, shape.experts);
    return slot_bytes(shape.tokens) + checked;
  }

  /// Where the routing kernel writes its ids: `chosen`, or the workspace where the caller does not need them.
  [[nodiscard]] MatrixView<std::int32_t> ids_before(const ForwardArgs& args, const Workspace& workspace) const {
    if (args.chosen.data != nullptr) return args.chosen;
    return {static_cast<std::int32_t*>(workspace.data), args.experts.rows, k};
  }

  /// After the routing kernel.
  template <class Place, class Tag = EngineTagOf<Place>>
  void after_forward(const ForwardArgs& args, const Workspace& workspace, const Place& place) const {
    const Shape shape{args.logits.rows, static_cast<int>(args.logits.columns)};
    limit_to_capacity({.chosen = ids_before(args, workspace),
                       .experts = args.experts,
                       .weights = args.weights,
                       .expert_count = shape.experts,
                       .capacity = capacity(shape),
                       .drop = drop,
                       .renormalise = renormalise,
                       .scaling_factor = weighting().scaling_factor,
                       .kept_counts = args.kept_counts,
                       .status = args.status,
                       .priority = priority},
                      after_slots(workspace, shape), place);
  }

  /// Before the backward kernel: weights were computed among the ids before dropping, unless they were renormalised after it.
  template <class Scoring, class Place, class Tag = EngineTagOf<Place>>
  [[nodiscard]] BackwardArgs before_backward(const Scoring& scoring, BackwardArgs args, const Workspace& workspace,
                                             const Place& place) const {
    if (renormalise) {
      const MatrixView<std::int32_t> ids(static_cast<std::int32_t*>(workspace.data), args.experts.rows, k);
      const BackwardIdsProblem<Scoring> problem{scoring, weighting(), args.logits, args.chosen, args.experts, ids};
      const LaunchSize size = DispatchEngine<Place>::for_rows(args.experts.rows, k, place);
      detail::in_real_type_of<Place>(args.logits.type, [&](auto real) {
        DispatchEngine<Place>::launch("backward", size, FindBackwardIds<decltype(real), k>{}, problem, place);
      });
      args.experts = ids;
      return args;
    }
    if (args.grad_weights.data != nullptr) {
      const AnyMatrix masked(workspace.data, args.grad_weights.type, args.grad_weights.rows, k, k);
      const MaskProblem problem{args.experts, args.grad_weights, masked, args.logits.columns};
      const LaunchSize size = DispatchEngine<Place>::for_items(args.experts.rows * k, place);
      detail::in_real_type_of<Place>(masked.type, [&](auto real) {
        DispatchEngine<Place>::launch("backward", size, MaskDropped<decltype(real)>{}, problem, place);
      });
      args.grad_weights = masked;
    }
    args.experts = args.chosen;
    return args;
  }

 private:
  /// Offsets of sequences, if there are any; their number is checked only where a balancer reads them.
  [[nodiscard]] static MemoryRegion offsets_of(const Sequences& sequences) {
    const std::int64_t count = std::clamp<std::int64_t>(sequences.count, 0, std::int64_t{1} << 40);
    return {"sequences.offsets", sequences.offsets, (count + 1) * 8, false};
  }
  /// Room for an id or a gradient of every slot.
  [[nodiscard]] static std::size_t slot_bytes(std::int64_t tokens) {
    return (static_cast<std::size_t>(tokens * k) * sizeof(double) + 15) / 16 * 16;
  }
  [[nodiscard]] static Workspace after_slots(const Workspace& workspace, const Shape& shape) {
    const std::size_t used = slot_bytes(shape.tokens);
    return {static_cast<std::byte*>(workspace.data) + used, workspace.bytes - used};
  }
};
/// See concepts.hpp.
template <class Selection>
inline constexpr bool narrows_side_by_side<WithCapacity<Selection>> = narrows_side_by_side<Selection>;
/// See concepts.hpp.
template <class Selection>
inline constexpr bool is_narrowing<WithCapacity<Selection>> = is_narrowing<Selection>;
static_assert(TopKPolicy<WithCapacity<TopK<8>>>);

MOEB_NAMESPACE_END
