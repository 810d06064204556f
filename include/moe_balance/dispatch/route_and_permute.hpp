// route_and_permute and forward_and_permute: from logits straight to ids, weights and the permutation, with all that training needs in the second.
// On a GPU two launches: the routing kernel runs over contiguous ranges of tokens and leaves each range's counts, which is all that the
// permutation's second kernel needs.
#pragma once

#include <moe_balance/arguments.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/dispatch/counting_place.hpp>
#include <moe_balance/dispatch/permutation.hpp>
#include <moe_balance/shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

namespace detail {

/// Blocks of the second launch, and rows of the histogram that each of them has: blocks of the first.
struct FusedParts {
  std::int64_t blocks;
  std::int64_t rows_per_block;

  /// `ranking`: how many may rank. `large`: whether blocks that route have the threads of several.
  FusedParts(std::int64_t tokens, std::int64_t ranking, bool large) : blocks(ranking) {
    const std::int64_t routing = routing_blocks(tokens, large);
    rows_per_block = (routing + blocks - 1) / blocks;
    // Not more rows than blocks were to route, because not all of those would run at the same time; then fewer blocks rank.
    if (routing > blocks) blocks = (routing + rows_per_block - 1) / rows_per_block;
  }
  [[nodiscard]] std::int64_t rows() const { return blocks * rows_per_block; }

  /// That no device and no smaller number of tokens has more of. Rounding rows_per_block up adds less than it and less than the blocks that rank,
  /// of which one is at most the root of the blocks that route.
  [[nodiscard]] static std::int64_t most_rows(std::int64_t tokens, std::int64_t k) {
    const std::int64_t routing = routing_blocks(tokens, false);
    std::int64_t root = 1;
    while ((root + 1) * (root + 1) <= routing) ++root;
    return std::max(permutation_parts(tokens * k), routing + root);
  }

 private:
  [[nodiscard]] static std::int64_t routing_blocks(std::int64_t tokens, bool large) {
    const std::int64_t most =
        dispatch_tuning.most_routing_blocks * (large ? 1 : dispatch_tuning.small_routing_blocks_of_large);
    return std::clamp<std::int64_t>(tokens / dispatch_tuning.tokens_per_routing_block, 1, most);
  }
};

/// Words that each block of a forward pass of one sequence adds up in on its own; none where sums are read before the permutation.
template <class RouterT>
[[nodiscard]] constexpr std::int64_t words_of_sums(std::int64_t experts) {
  using Balancer = std::remove_cvref_t<decltype(RouterT::balancer)>;
  return RouterT::Traits::reads_global_batch ? 0 : SavedLayout<Balancer>{experts, 1}.words();
}

template <class RouterT>
void check_selection(const DispatchValidator& check, const RouterT& router, int experts) {
  check.range("top_k.k", RouterT::k, 1, experts, "K may not exceed the experts");
  router.top_k.check(check.call, experts);
}

}  // namespace detail

/// Bytes of Workspace that route_and_permute and forward_and_permute need; what serves a number of tokens serves fewer. Errors: InvalidArgument for a
/// shape that these refuse.
template <class RouterT>
[[nodiscard]] std::size_t route_and_permute_workspace_bytes(const RouterT& router, const Shape& shape) {
  const DispatchValidator check{{"route_and_permute_workspace_bytes"}};
  check.range("tokens", shape.tokens, 0, dispatch_tuning.most_slots_per_part);
  check.slots(shape.tokens, RouterT::k, shape.experts);
  check.range("experts", shape.experts, 1, max_experts);
  detail::check_selection(check, router, shape.experts);
  const std::size_t routing = (router.workspace_bytes(shape) + 15) / 16 * 16;
  const std::int64_t rows = detail::FusedParts::most_rows(shape.tokens, RouterT::k);
  const std::int64_t words = detail::words_of_sums<RouterT>(shape.experts);
  const std::size_t counts =
      16 + Histogram::bytes(rows, shape.experts) + static_cast<std::size_t>(rows * words) * sizeof(std::int64_t);
  return routing + std::max(counts, permutation_workspace_bytes(shape.tokens, RouterT::k, shape.experts));
}

namespace detail {

/// What the permutation writes, and the workspace, lies apart from all that routing reads and writes. Each half checks its own memory.
template <class RouterT, class Args>
void check_apart_from_routing(const DispatchValidator& check, const RouterT& router, const Args& args,
                              const PermutationArgs& order, const Workspace& workspace) {
  using Selection = std::remove_cvref_t<decltype(RouterT::top_k)>;
  const std::int64_t tokens = args.logits.rows;
  const std::int64_t experts = args.logits.columns;
  const auto apart = [&](std::initializer_list<MemoryRegion> routing) {
    for (const MemoryRegion& written :
         {region("offsets", order.offsets), region("row_of_slot", order.row_of_slot),
          region("slot_of_row", order.slot_of_row), region("expert_of_block", order.expert_of_block),
          MemoryRegion("counts", order.counts, experts * 8, true), region(order.status), region(workspace)}) {
      for (const MemoryRegion& used : routing) check.apart({written, used});
    }
  };
  if constexpr (requires { router.top_k.memory_of_priority(); }) apart({router.top_k.memory_of_priority()});
  // Shapes first, because where memory ends follows from them.
  check.matrix("logits", args.logits, tokens, experts);
  check.matrix("weights", args.weights, tokens, RouterT::k);
  apart({region("logits", args.logits), region("weights", args.weights),
         MemoryRegion("bias", args.bias.data, experts * 4, false), MemoryRegion("active", args.active, tokens, false),
         MemoryRegion("tokens_on_device", args.tokens_on_device, 8, false),
         MemoryRegion("args.counts", args.counts, experts * 8, true),
         MemoryRegion("kept_counts", args.kept_counts, experts * 8, true),
         region(args.status == order.status ? nullptr : args.status)});  // one status for both is what callers have
  if constexpr (is_replaying<Selection>) {
    check.matrix("replay.experts", args.replay.experts, tokens, RouterT::k);
    apart({region("replay.experts", args.replay.experts), MemoryRegion("replay.tokens", args.replay.tokens, tokens, false)});
  }
  if constexpr (requires { args.load; }) {
    apart({MemoryRegion(bytes_of(args.load), true),
           MemoryRegion("saved", args.saved.data, static_cast<std::int64_t>(args.saved.bytes), true),
           MemoryRegion("balanced", args.balanced, tokens, false)});
    if constexpr (RouterT::Traits::reads_sequences) {
      check.sequences(args.sequences, tokens, false);
      apart({MemoryRegion("sequences.offsets", args.sequences.offsets, (args.sequences.count + 1) * 8, false)});
    }
    if constexpr (looks_across_tokens<Selection>) {
      check.matrix("chosen", args.chosen, tokens, RouterT::k);
      apart({region("chosen", args.chosen)});
    }
  }
}

/// The rows per expert that a selection, which is checked, asks for where the caller asks for none.
template <class RouterT>
void take_rows_of_selection(const RouterT& router, const Shape& shape, PermutationArgs& order) {
  if constexpr (requires { router.top_k.rows_per_expert(shape, order.align); }) {
    if (order.rows_per_expert != 0) return;
    DispatchValidator{{"permutation"}}.rows(order.align, 0);
    order.rows_per_expert = router.top_k.rows_per_expert(shape, order.align);
  }
}

/// Checks what the two halves of a fused call share, completes `order`, and gives the workspace of the second.
template <class RouterT, class Args>
[[nodiscard]] Workspace check_fused(const char* call, const RouterT& router, const Args& args, PermutationArgs& order,
                                    const Workspace& workspace) {
  const Shape shape{args.logits.rows, static_cast<int>(args.logits.columns)};
  const DispatchValidator check{{call}};
  check.range("logits.rows", shape.tokens, 0, dispatch_tuning.most_slots_per_part);
  check.range("logits.columns", args.logits.columns, 1, max_experts, "experts");
  check_selection(check, router, shape.experts);
  check.range("offsets.size", order.offsets.size, shape.experts + 1, shape.experts + 1,
              "one more than the experts of logits");
  if constexpr (!looks_across_tokens<std::remove_cvref_t<decltype(router.top_k)>>) {
    MOEB_EXPECTS(args.counts == nullptr, call, "counts", "given", "null: counts go to order.counts");
  }
  check.memory("workspace", workspace.data, workspace.bytes, route_and_permute_workspace_bytes(router, shape), 16);
  const std::size_t routing_bytes = (router.workspace_bytes(shape) + 15) / 16 * 16;
  const Workspace rest{static_cast<std::byte*>(workspace.data) + routing_bytes, workspace.bytes - routing_bytes};
  take_rows_of_selection(router, shape, order);
  check_permutation(order, workspace);
  check_apart_from_routing(check, router, args, order, workspace);
  return rest;
}

/// route(place) and then the permutation of the ids it wrote; where the engine fuses them, route(counting place) and the permutation's
/// second launch.
template <class RouterT, class Place, class Route, class Tag = EngineTagOf<Place>>
void route_then_permute(std::int64_t tokens, const PermutationArgs& order, const Workspace& rest, const Place& place,
                        const Route& route) {
  using Selection = std::remove_cvref_t<decltype(RouterT::top_k)>;
  if constexpr (DispatchEngine<Place>::fuses_routing && !looks_across_tokens<Selection>) {
    PermutationProblem problem = permutation_problem(order);
    using Dispatch = DispatchEngine<Place>;
    const std::int64_t slots = tokens * RouterT::k;
    const FusedParts parts(tokens, Dispatch::parts(slots, permutation_parts(slots), place),
                           Dispatch::has_large_routing_blocks(problem.expert_count, place));
    problem.histogram = Histogram::of(rest.data, parts.rows(), tokens, RouterT::k, problem.expert_count);
    problem.sums.row_count = parts.rows();
    problem.sums.rows = reinterpret_cast<std::int64_t*>(static_cast<std::byte*>(rest.data) +
                                                        Histogram::bytes(parts.rows(), problem.expert_count));
    route(CountingPlace<Place>{place, problem.histogram, &problem.sums});
    place_slots(problem, parts.blocks, place);
  } else {
    route(place);
    permutation(order, rest, place);
  }
}

}  // namespace detail

/// router.route(args) and permutation(order) in one: `order.experts` is args.experts whatever it says, and counts go to order.counts; where
/// there is a capacity that has what was kept, and args.counts what was chosen. A selection with a capacity and `pad` gives order.rows_per_expert where that is 0. On a GPU two launches, for selections that look across
/// tokens as many as the two calls have. Errors: as those calls.
template <class RouterT, DispatchPlace Place, class Tag = EngineTagOf<Place>>
void route_and_permute(const RouterT& router, const RouteArgs& args, PermutationArgs order, Workspace workspace,
                       const Place& place) {
  order.experts = args.experts;
  const Workspace rest = detail::check_fused("route_and_permute", router, args, order, workspace);
  DispatchEngine<Place>::check("route_and_permute", place);
  detail::route_then_permute<RouterT>(args.logits.rows, order, rest, place,
                                      [&](const auto& where) { router.route(args, workspace, where); });
}

/// router.forward(args) and permutation(order) in one, with the same `saved`, `load` and status as those: `order.experts` is args.experts
/// whatever it says, and counts go to order.counts; where there is a capacity that has what was kept, and args.counts what was chosen. A selection with a capacity and `pad` gives order.rows_per_expert where that is 0. On a GPU
/// two launches; with losses of several sequences, or of the global batch, a small one before them that clears what forward adds up in, and as many more
/// as forward has for the latter; one between them where a rule reads margins, of many tokens two; for selections that look across tokens as many as the two calls have. Errors: as those calls.
template <class RouterT, DispatchPlace Place, class Tag = EngineTagOf<Place>>
void forward_and_permute(const RouterT& router, const ForwardArgs& args, PermutationArgs order, Workspace workspace,
                         const Place& place) {
  order.experts = args.experts;
  const Workspace rest = detail::check_fused("forward_and_permute", router, args, order, workspace);
  DispatchEngine<Place>::check("forward_and_permute", place);
  detail::route_then_permute<RouterT>(args.logits.rows, order, rest, place, [&](const auto& where) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(where)>, Place>) {
      router.forward(args, workspace, where);
    } else {
      router.with_sync(CountingSync{router.sync}).forward(args, workspace, where);
    }
  });
}

MOEB_NAMESPACE_END
