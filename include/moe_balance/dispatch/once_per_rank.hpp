// A token goes once to each rank that has some of its experts, however many: which ranks those are, and what a row that goes there says of its token's
// experts and weights. permutation over ranks groups the rows, as over experts; a rank's own permutation of the ids that rows bring spreads them over its
// experts, combine with their weights adds these up, and combine without weights at the source what ranks return. Ids are [T, K], -1 for an empty slot.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/expert_parallel.hpp>
#include <moe_balance/dispatch/once_per_rank_kernels.hpp>
#include <moe_balance/dispatch/permute.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <cstdint>
#include <limits>

MOEB_NAMESPACE_BEGIN

/// The arguments of once_per_rank. Expert e is on rank e / experts_per_rank.
struct OncePerRankArgs {
  MatrixView<const std::int32_t> experts;  ///< [T, K]: physical ids where experts have replicas
  MatrixView<std::int32_t> ranks;          ///< [T, K] out: the slot's rank, -1 where an earlier slot of the token has it
  int experts_per_rank = 0;                ///< 1 or more
  int rank_count = 0;                      ///< 1 or more
  Status* status = nullptr;                ///< optional; on a GPU counts ids of no rank, taken as -1
};

/// The arguments of routing_of_rows. R rows, as permutation has made them of once_per_rank's ranks.
struct RoutingOfRowsArgs {
  MatrixView<const std::int32_t> experts;      ///< [T, K], as given to once_per_rank
  ConstAnyMatrix weights;                      ///< [T, K]
  VectorView<const std::int64_t> slot_of_row;  ///< [R], from permutation
  MatrixView<std::int32_t>
      row_experts;        ///< [R, K] out: ids counted from the rank's first expert, -1 where the slot's is on another rank
  AnyMatrix row_weights;  ///< [R, K] out, of weights' type: the slot's weight, 0 where the id is -1
  int experts_per_rank = 0;  ///< as given to once_per_rank
  Status* status = nullptr;  ///< optional; on a GPU counts rows of slots that there are not: -1, like padding
};

/// The arguments of routing_of_rows_backward.
struct RoutingOfRowsBackwardArgs {
  MatrixView<const std::int32_t> experts;      ///< [T, K], as given to routing_of_rows
  MatrixView<const std::int64_t> row_of_slot;  ///< [T, K], from permutation
  ConstAnyMatrix grad_row_weights;             ///< [R, K]
  AnyMatrix grad_weights;                      ///< [T, K] out, of grad_row_weights' type; 0 for slots that went nowhere
  int experts_per_rank = 0;                    ///< as given to routing_of_rows
  Status* status = nullptr;  ///< optional; on a GPU counts entries of row_of_slot that are no row, taken as -1
};

/// The ranks that a token goes to, each in the first of its slots there: `permutation` of them, with rank_count for experts, has one row for each. One launch on
/// a GPU. Errors: InvalidArgument before anything is written, on the CPU also for an id of no rank.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void once_per_rank(const OncePerRankArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("once_per_rank", place);
  const DispatchValidator check{{"once_per_rank"}};
  detail::check_ids(check, args.experts, "ranks", args.ranks, args.status);
  check.range("experts_per_rank", args.experts_per_rank, 1, max_dispatch_experts);
  check.range("rank_count", args.rank_count, 1, max_dispatch_experts);
  const OncePerRankProblem problem{args.experts, args.ranks, args.experts_per_rank, args.rank_count,
                                   detail::invalid_experts_of(args.status)};
  const std::int64_t experts = std::int64_t{args.experts_per_rank} * args.rank_count;
  detail::for_each_readable_id<Place>(args.experts, [&](const ArgumentName& name, std::int32_t id, std::int64_t /*token*/) {
    if (id != -1 && problem.rank_of(id) < 0) check.range(name, id, -1, experts - 1, "-1: an empty slot");
  });
  Engine::launch("once_per_rank", Engine::for_items(args.experts.rows * args.experts.columns, place), FindRanks{}, problem,
                 place);
}

/// What each row brings to its rank, as that rank's permutation and combine take it: its token's experts there and their weights. One launch on a GPU. Errors:
/// InvalidArgument before anything is written, on the CPU also for an id below -1 or an entry of slot_of_row that is none.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void routing_of_rows(const RoutingOfRowsArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("routing_of_rows", place);
  const DispatchValidator check{{"routing_of_rows"}};
  const std::int64_t tokens = args.experts.rows;
  const std::int64_t k = args.experts.columns;
  const std::int64_t rows = args.slot_of_row.size;
  check.shape("experts", args.experts, 1, max_experts);
  check.matrix("experts", args.experts, tokens, k);
  check.hidden("weights", args.weights, Engine::serves_float64);
  check.matrix("weights", args.weights, tokens, k);
  check.vector("slot_of_row", args.slot_of_row, 0, std::numeric_limits<std::int64_t>::max() / k, "rows");
  check.matrix("row_experts", args.row_experts, rows, k);
  check.matrix("row_weights", args.row_weights, rows, k);
  check.same_type("row_weights", args.row_weights.type, "weights", args.weights.type);
  check.range("experts_per_rank", args.experts_per_rank, 1, max_dispatch_experts);
  check.optional_pointer("status", args.status, alignof(Status));
  check.apart({region("row_experts", args.row_experts), region("row_weights", args.row_weights),
               region("experts", args.experts), region("weights", args.weights), region("slot_of_row", args.slot_of_row),
               region(args.status)});
  detail::refuse_ids_below_empty<Place>(check, args.experts);
  detail::check_index<Place>("routing_of_rows", "slot_of_row", args.slot_of_row, tokens * k);
  const RoutingOfRowsProblem problem{args.experts,
                                     args.weights,
                                     args.slot_of_row,
                                     args.row_experts,
                                     args.row_weights,
                                     args.experts_per_rank,
                                     detail::invalid_rows_of(args.status)};
  detail::in_real_type_of<Place>(args.weights.type, [&](auto real) {
    Engine::launch("routing_of_rows", Engine::for_items(rows * k, place), CopyRouting<decltype(real)>{}, problem, place);
  });
}

/// Brings the gradients of rows' weights back to the slots that they are of. One launch on a GPU. Errors: InvalidArgument before anything is written, on the CPU
/// also for an id below -1 or an entry of row_of_slot that is none.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void routing_of_rows_backward(const RoutingOfRowsBackwardArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("routing_of_rows_backward", place);
  const DispatchValidator check{{"routing_of_rows_backward"}};
  const std::int64_t tokens = args.experts.rows;
  const std::int64_t k = args.experts.columns;
  check.shape("experts", args.experts, 1, max_experts);
  check.matrix("experts", args.experts, tokens, k);
  check.matrix("row_of_slot", args.row_of_slot, tokens, k);
  check.hidden("grad_row_weights", args.grad_row_weights, Engine::serves_float64);
  check.matrix("grad_row_weights", args.grad_row_weights, args.grad_row_weights.rows, k);
  check.matrix("grad_weights", args.grad_weights, tokens, k);
  check.same_type("grad_weights", args.grad_weights.type, "grad_row_weights", args.grad_row_weights.type);
  check.range("experts_per_rank", args.experts_per_rank, 1, max_dispatch_experts);
  check.optional_pointer("status", args.status, alignof(Status));
  check.apart({region("grad_weights", args.grad_weights), region("grad_row_weights", args.grad_row_weights),
               region("experts", args.experts), region("row_of_slot", args.row_of_slot), region(args.status)});
  detail::refuse_ids_below_empty<Place>(check, args.experts);
  detail::check_index<Place>("routing_of_rows_backward", "row_of_slot", args.row_of_slot, args.grad_row_weights.rows);
  const RoutingOfRowsBackwardProblem problem{args.experts,      args.row_of_slot,      args.grad_row_weights,
                                             args.grad_weights, args.experts_per_rank, detail::invalid_rows_of(args.status)};
  detail::in_real_type_of<Place>(args.grad_row_weights.type, [&](auto real) {
    Engine::launch("routing_of_rows_backward", Engine::for_items(tokens * k, place), CollectFromRows<decltype(real)>{},
                   problem, place);
  });
}

MOEB_NAMESPACE_END
