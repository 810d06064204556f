// route_and_permute: from logits straight to ids, weights and the permutation. On a GPU two launches: the routing kernel runs over contiguous ranges of
// tokens and leaves each range's counts, which is all that the permutation's second kernel needs.
#pragma once

#include <moe_balance/arguments.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/dispatch/permutation.hpp>
#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// The forward pass of a router without a balancer, whose blocks have contiguous ranges of tokens. Block b leaves its counts in row b of
/// the histogram.
template <class Config, class BlockT, class TileT, class Problem>
MOEB_HOST_DEVICE inline void route_and_count_kernel(const BlockT& block, const TileT& tile, const Problem& problem,
                                                    const Totals& totals, std::int32_t* histogram) {
  using Balancer = decltype(problem.balancer);
  using Shared = ForwardShared<Balancer, Config::max_experts>;
  using LayoutT = Layout<TileT, Config::max_experts>;
  const int experts = static_cast<int>(problem.logits.columns);
  const LayoutT layout{experts, tile.lane()};
  const Shared shared{block.shared()};
  for (int e = block.thread(); e < Config::max_experts; e += block.threads()) {
    shared.bias()[e] = problem.bias != nullptr && e < experts ? problem.bias[e] : 0.0f;
    shared.counts()[e] = 0;
  }
  if (block.thread() == 0) *shared.tokens() = {};
  block.barrier();

  RegisterSums<LayoutT> sums{nullptr, layout};
  KernelSink<BlockT, RegisterSums<LayoutT>, Balancer> sink{block, shared.counts(), shared.loss_counts(), sums};
  const ItemRange range = range_of_part(problem.logits.rows, block.index(), block.blocks());
  const int tiles = block.threads() / TileT::width;
  for (std::int64_t token = range.first + block.thread() / TileT::width; token < range.last; token += tiles) {
    forward_token<float>(problem, tile, layout, token, shared.bias(), sink);
  }
  add_tokens_shared(block, shared.tokens(), sink.tokens, 0);
  block.barrier();

  for (int e = block.thread(); e < experts; e += block.threads())
    histogram[block.index() * experts + e] = shared.counts()[e];
  const auto add = [&](std::int64_t* to, std::int64_t value) { block.add_global(to, value); };
  if (block.thread() == 0) add_token_totals<Balancer>(totals, 0, *shared.tokens(), add);
}

/// A place that routes as `place` does, and leaves the counts of `histogram_rows` ranges of tokens.
template <class Place, class Tag = EngineTagOf<Place>>
struct CountingPlace {
  Place place;
  std::int32_t* histogram;
  std::int64_t histogram_rows;
};

/// Router::route on a CountingPlace launches the kernel that routes and counts.
template <class Place, class Tag>
struct Engine<CountingPlace<Place, Tag>> {
  static constexpr bool serves_float64 = false;

  static void check(const char* call, const CountingPlace<Place, Tag>& counting) {
    DispatchEngine<Place>::check(call, counting.place);
  }
  static void clear(void* data, std::size_t bytes, const CountingPlace<Place, Tag>& counting) {
    DispatchEngine<Place>::clear(data, bytes, counting.place);
  }
  template <class Real, class Problem>
  static void forward(const Problem& problem, const Totals& totals, const CountingPlace<Place, Tag>& counting) {
    DispatchEngine<Place>::route_and_count(problem, totals, counting.histogram, counting.histogram_rows, counting.place);
  }
};

template <class Place, class Tag>
struct EngineTag<CountingPlace<Place, Tag>> {
  using type = Tag;
};

namespace detail {

/// Blocks of the second launch, and rows of the histogram that each of them adds up.
struct FusedParts {
  std::int64_t blocks;
  std::int64_t rows_per_block;

  FusedParts(std::int64_t tokens, std::int64_t k) : blocks(permutation_parts(tokens * k)) {
    const std::int64_t routing =
        std::clamp<std::int64_t>(tokens / dispatch_tuning.tokens_per_routing_block, 1, dispatch_tuning.most_routing_blocks);
    rows_per_block = (routing + blocks - 1) / blocks;
  }
  [[nodiscard]] std::int64_t rows() const { return blocks * rows_per_block; }
};

}  // namespace detail

/// Bytes of Workspace that route_and_permute needs.
template <class RouterT>
[[nodiscard]] std::size_t route_and_permute_workspace_bytes(const RouterT& router, const Shape& shape) {
  const std::size_t routing = (router.workspace_bytes(shape) + 15) / 16 * 16;
  const auto rows = static_cast<std::size_t>(detail::FusedParts(shape.tokens, RouterT::k).rows());
  const std::size_t counts = 16 + rows * static_cast<std::size_t>(shape.experts) * sizeof(std::int32_t);
  return routing + std::max(counts, permutation_workspace_bytes(shape.tokens, RouterT::k, shape.experts));
}

/// router.route(route) and permutation(order) in one: `order.experts` is route.experts whatever it says, and counts go to order.counts. On a
/// GPU two launches, for selections that look across tokens as many as the two calls have. Errors: as those calls.
template <class RouterT, DispatchPlace Place, class Tag = EngineTagOf<Place>>
void route_and_permute(const RouterT& router, const RouteArgs& route, PermutationArgs order, Workspace workspace,
                       const Place& place) {
  using Engine = DispatchEngine<Place>;
  const Shape shape{route.logits.rows, static_cast<int>(route.logits.columns)};
  const DispatchValidator check{{"route_and_permute"}};
  check.range("logits.rows", shape.tokens, 0, dispatch_tuning.most_slots_per_part);
  check.range("logits.columns", route.logits.columns, 1, max_experts, "experts");
  check.range("offsets.size", order.offsets.size, shape.experts + 1, shape.experts + 1,
              "one more than the experts of logits");
  MOEB_EXPECTS(route.counts == nullptr, "route_and_permute", "route.counts", "given", "null: counts go to order.counts");
  check.memory("workspace", workspace.data, workspace.bytes, route_and_permute_workspace_bytes(router, shape), 16);
  const std::size_t routing_bytes = (router.workspace_bytes(shape) + 15) / 16 * 16;
  const Workspace rest{static_cast<std::byte*>(workspace.data) + routing_bytes, workspace.bytes - routing_bytes};
  order.experts = route.experts;
  detail::check_permutation(order, rest);
  using Selection = std::remove_cvref_t<decltype(router.top_k)>;
  if constexpr (Engine::fuses_routing && !looks_across_tokens<Selection>) {
    const detail::FusedParts parts(shape.tokens, RouterT::k);
    PermutationProblem problem = detail::permutation_problem(order);
    problem.histogram = static_cast<std::int32_t*>(rest.data);
    problem.histogram_rows = parts.rows();
    router.route(route, workspace, CountingPlace<Place>{place, problem.histogram, problem.histogram_rows});
    detail::place_slots(problem, parts.blocks, place);
  } else {
    router.route(route, workspace, place);
    permutation(order, rest, place);
  }
}

MOEB_NAMESPACE_END
