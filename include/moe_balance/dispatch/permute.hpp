// permute and combine: hidden states from tokens to the experts' rows and back, with their backward passes. Sums have a fixed order, so that results
// carry the same bits for any number of threads and on every engine.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/combine_kernels.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/row_kernels.hpp>
#include <moe_balance/dispatch/validate.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>

MOEB_NAMESPACE_BEGIN

namespace detail {

/// On the CPU entries outside [-1, count) are refused before anything is written; on a GPU the kernels take them as -1 and count them.
template <class Place, class View, class Tag = EngineTagOf<Place>>
void check_index(const char* call, const char* argument, const View& indices, std::int64_t count) {
  if constexpr (DispatchEngine<Place>::reads_arguments) {
    for (std::int64_t i = 0; i < indices.size; ++i) {
      if (indices.data[i] < -1 || indices.data[i] >= count) {
        Validator{call}.range({argument, i}, indices.data[i], -1, count - 1, "-1: none");
      }
    }
  }
}
template <class Place, class Tag = EngineTagOf<Place>>
void check_index(const char* call, const char* argument, const MatrixView<const std::int64_t>& indices, std::int64_t count) {
  if constexpr (DispatchEngine<Place>::reads_arguments) {
    for (std::int64_t t = 0; t < indices.rows; ++t) {
      const VectorView<const std::int64_t> row(indices.data + t * indices.stride, indices.columns);
      for (std::int64_t k = 0; k < row.size; ++k) {
        if (row.data[k] < -1 || row.data[k] >= count) {
          Validator{call}.range({argument, t * row.size + k}, row.data[k], -1, count - 1, "-1: none");
        }
      }
    }
  }
}

/// Per-slot factors: [T, K] of float32 or of the hidden states' type; K is 1 to max_experts.
template <class View>
void check_factors(const DispatchValidator& check, const char* name, const View& view, std::int64_t tokens, std::int64_t k,
                   DataType hidden) {
  check.matrix(name, view, tokens, k);
  check.type_beside(name, view.type, hidden);
}

inline void check_identity(const DispatchValidator& check, const IdentityExperts& identity, std::int64_t tokens,
                           std::int64_t k, std::int64_t columns, DataType type) {
  const bool is_given = identity.experts.data != nullptr || identity.tokens.data != nullptr ||
                        identity.weights.data != nullptr || identity.range.first != 0 || identity.range.count != 0;
  if (!is_given) return;
  check.range("identity.range.count", identity.range.count, 1, max_dispatch_experts);
  check.range("identity.range.first", identity.range.first, 0, max_dispatch_experts - identity.range.count);
  check.matrix("identity.experts", identity.experts, tokens, k);
  check.matrix("identity.tokens", identity.tokens, tokens, columns);
  check.same_type("identity.tokens", identity.tokens.type, "the rows", type);
  if (identity.weights.data != nullptr) check_factors(check, "identity.weights", identity.weights, tokens, k, type);
}

inline std::int64_t* invalid_rows_of(Status* status) {
  return status == nullptr ? nullptr : &status->invalid_rows;
}

/// A tile per row: each token is read once for each of its rows.
template <class Place, class Tag = EngineTagOf<Place>>
void gather(const char* call, const PermuteArgs& args, const Place& place) {
  const GatherProblem problem{args.hidden,
                              args.permuted,
                              args.slot_of_row.data,
                              args.hidden.rows * args.top_k,
                              args.top_k,
                              args.scale,
                              args.padding == Padding::zero,
                              rows_hold_packs(args.hidden) && rows_hold_packs(args.permuted),
                              invalid_rows_of(args.status)};
  in_real_type_of<Place>(args.permuted.type, [&](auto real) {
    DispatchEngine<Place>::launch(call, DispatchEngine<Place>::for_rows(args.permuted.rows, args.permuted.columns, place),
                                  GatherRows<decltype(real)>{}, problem, place);
  });
}

template <class Place, class Tag = EngineTagOf<Place>>
void spread(const char* call, const SpreadProblem& problem, const Place& place) {
  const std::int64_t slots = problem.row_of_slot.rows * problem.row_of_slot.columns;
  in_real_type_of<Place>(problem.rows.type, [&](auto real) {
    DispatchEngine<Place>::launch(
        call, DispatchEngine<Place>::for_rows(std::max(slots, problem.rows.rows), problem.rows.columns, place),
        SpreadTokens<decltype(real)>{}, problem, place);
  });
}

/// A tile per slot: each token is read from memory once.
template <class Place, class Tag = EngineTagOf<Place>>
void spread(const char* call, const PermuteArgs& args, const Place& place) {
  const bool packs = rows_hold_packs(args.hidden) && rows_hold_packs(args.permuted);
  const SpreadProblem problem{args.hidden,
                              args.permuted,
                              args.row_of_slot,
                              args.slot_of_row.data,
                              args.scale,
                              {},
                              {},
                              {},
                              args.padding == Padding::zero,
                              packs,
                              packs,
                              packs,
                              invalid_rows_of(args.status)};
  spread(call, problem, place);
}

template <class Place, class Tag = EngineTagOf<Place>>
void sum_rows(const char* call, const ConstAnyMatrix& rows, const AnyMatrix& tokens,
              const MatrixView<const std::int64_t>& row_of_slot, const ConstAnyMatrix& weights,
              const IdentityExperts& identity, Status* status, const Place& place) {
  const bool packs = rows_hold_packs(rows) && rows_hold_packs(tokens);
  const CombineProblem problem{rows,
                               tokens,
                               row_of_slot,
                               weights,
                               identity,
                               packs && (identity.range.count == 0 || rows_hold_packs(identity.tokens)),
                               invalid_rows_of(status)};
  in_real_type_of<Place>(tokens.type, [&](auto real) {
    DispatchEngine<Place>::launch(call,
                                  DispatchEngine<Place>::for_rows(tokens.rows, tokens.columns * row_of_slot.columns, place),
                                  CombineRows<decltype(real)>{}, problem, place);
  });
}

template <class Place, class Tag = EngineTagOf<Place>>
void dot_slots(const char* call, const ConstAnyMatrix& tokens, const ConstAnyMatrix& rows,
               const MatrixView<const std::int64_t>& row_of_slot, const AnyMatrix& dots, const Place& place) {
  const DotProblem problem{tokens, rows, row_of_slot, dots, rows_hold_packs(rows) && rows_hold_packs(tokens)};
  in_real_type_of<Place>(tokens.type, [&](auto real) {
    DispatchEngine<Place>::launch(call,
                                  DispatchEngine<Place>::for_rows(tokens.rows * row_of_slot.columns, tokens.columns, place),
                                  DotSlots<decltype(real)>{}, problem, place);
  });
}

}  // namespace detail

/// permuted[r] = hidden[slot_of_row[r] / K] (* scale of the slot). Padding rows as `padding` says. A copy without scale keeps every bit.
/// With row_of_slot each token is read from memory once; a slot and a row then belong together if the two indices name each other.
/// One launch on a GPU, nothing waits for the host. Errors: InvalidArgument before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void permute(const PermuteArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("permute", place);
  const DispatchValidator check{{"permute"}};
  const std::int64_t rows = args.permuted.rows;
  check.hidden("hidden", args.hidden, Engine::serves_float64);
  check.range("top_k", args.top_k, 1, max_experts);
  check.range("hidden.rows", args.hidden.rows, 0, std::numeric_limits<std::int64_t>::max() / args.top_k, "slots");
  check.hidden("permuted", args.permuted, Engine::serves_float64);
  check.matrix("permuted", args.permuted, rows, args.hidden.columns);
  check.same_type("permuted", args.permuted.type, "hidden", args.hidden.type);
  check.vector("slot_of_row", args.slot_of_row, rows, rows, "the rows of permuted");
  check.padding(args.padding);
  check.optional_pointer("status", args.status, alignof(Status));
  if (args.scale.data != nullptr) {
    detail::check_factors(check, "scale", args.scale, args.hidden.rows, args.top_k, args.hidden.type);
  }
  if (args.row_of_slot.data != nullptr) check.matrix("row_of_slot", args.row_of_slot, args.hidden.rows, args.top_k);
  check.apart({region("permuted", args.permuted), region("hidden", args.hidden), region("slot_of_row", args.slot_of_row),
               region("scale", args.scale), region("row_of_slot", args.row_of_slot), region(args.status)});
  detail::check_index<Place>("permute", "slot_of_row", args.slot_of_row, args.hidden.rows * args.top_k);
  if (args.row_of_slot.data == nullptr) return detail::gather("permute", args, place);
  detail::check_index<Place>("permute", "row_of_slot", args.row_of_slot, rows);
  detail::spread("permute", args, place);
}

/// grad_hidden[t] = sum over k, in this order, of (scale[t, k] *) grad_permuted[row of (t, k)], and what `identity` adds; grad_scale[t, k] = <hidden[t], that row>.
/// One launch on a GPU, two with grad_scale. Errors: InvalidArgument before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void permute_backward(const PermuteBackwardArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("permute_backward", place);
  const DispatchValidator check{{"permute_backward"}};
  const std::int64_t tokens = args.grad_hidden.rows;
  const std::int64_t k = args.row_of_slot.columns;
  const DataType type = args.grad_permuted.type;
  check.hidden("grad_permuted", args.grad_permuted, Engine::serves_float64);
  check.hidden("grad_hidden", args.grad_hidden, Engine::serves_float64);
  check.matrix("grad_hidden", args.grad_hidden, tokens, args.grad_permuted.columns);
  check.same_type("grad_hidden", args.grad_hidden.type, "grad_permuted", type);
  check.range({"row_of_slot", "columns"}, k, 1, max_experts);
  check.matrix("row_of_slot", args.row_of_slot, tokens, k);
  check.optional_pointer("status", args.status, alignof(Status));
  if (args.scale.data != nullptr) detail::check_factors(check, "scale", args.scale, tokens, k, type);
  if (args.grad_scale.data != nullptr) {
    detail::check_factors(check, "grad_scale", args.grad_scale, tokens, k, type);
    check.matrix("hidden", args.hidden, tokens, args.grad_permuted.columns);
    check.same_type("hidden", args.hidden.type, "grad_permuted", type);
  }
  const IdentityExperts& identity = args.identity;
  detail::check_identity(check, identity, tokens, k, args.grad_permuted.columns, type);
  check.apart({region("grad_hidden", args.grad_hidden), region("grad_scale", args.grad_scale), region("hidden", args.hidden),
               region("grad_permuted", args.grad_permuted), region("row_of_slot", args.row_of_slot),
               region("scale", args.scale), region("identity.experts", identity.experts),
               region("identity.tokens", identity.tokens), region("identity.weights", identity.weights),
               region(args.status)});
  detail::check_index<Place>("permute_backward", "row_of_slot", args.row_of_slot, args.grad_permuted.rows);
  detail::sum_rows("permute_backward", args.grad_permuted, args.grad_hidden, args.row_of_slot, args.scale, identity,
                   args.status, place);
  if (args.grad_scale.data != nullptr) {
    detail::dot_slots("permute_backward", args.hidden, args.grad_permuted, args.row_of_slot, args.grad_scale, place);
  }
}

/// combined[t] = sum over k, in this order, of (weights[t, k] *) permuted[row of (t, k)], in float32 from 0 on, and what `identity` adds; 0 for a token
/// that has neither.
/// One launch on a GPU, nothing waits for the host. Errors: InvalidArgument before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void combine(const CombineArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("combine", place);
  const DispatchValidator check{{"combine"}};
  const std::int64_t tokens = args.combined.rows;
  const std::int64_t k = args.row_of_slot.columns;
  check.hidden("permuted", args.permuted, Engine::serves_float64);
  check.hidden("combined", args.combined, Engine::serves_float64);
  check.matrix("combined", args.combined, tokens, args.permuted.columns);
  check.same_type("combined", args.combined.type, "permuted", args.permuted.type);
  check.range({"row_of_slot", "columns"}, k, 1, max_experts);
  check.matrix("row_of_slot", args.row_of_slot, tokens, k);
  check.optional_pointer("status", args.status, alignof(Status));
  if (args.weights.data != nullptr) detail::check_factors(check, "weights", args.weights, tokens, k, args.permuted.type);
  const IdentityExperts& identity = args.identity;
  detail::check_identity(check, identity, tokens, k, args.permuted.columns, args.permuted.type);
  check.apart({region("combined", args.combined), region("permuted", args.permuted), region("row_of_slot", args.row_of_slot),
               region("weights", args.weights), region("identity.experts", identity.experts),
               region("identity.tokens", identity.tokens), region("identity.weights", identity.weights),
               region(args.status)});
  detail::check_index<Place>("combine", "row_of_slot", args.row_of_slot, args.permuted.rows);
  detail::sum_rows("combine", args.permuted, args.combined, args.row_of_slot, args.weights, identity, args.status, place);
}

/// grad_permuted[r] = grad_combined[token of r] (* weight of its slot); grad_weights[t, k] = <grad_combined[t], permuted[row of (t, k)]>,
/// or <grad_combined[t], identity.tokens[t]>. A slot and a row belong together if row_of_slot and slot_of_row name each other, as permutation leaves them. One launch on a GPU. Errors: InvalidArgument before anything is written.
template <DispatchPlace Place, class Tag = EngineTagOf<Place>>
void combine_backward(const CombineBackwardArgs& args, Workspace /*workspace*/, const Place& place) {
  using Engine = DispatchEngine<Place>;
  Engine::check("combine_backward", place);
  const DispatchValidator check{{"combine_backward"}};
  const std::int64_t tokens = args.grad_combined.rows;
  const std::int64_t rows = args.grad_permuted.rows;
  const std::int64_t k = args.row_of_slot.columns;
  const DataType type = args.grad_combined.type;
  check.hidden("grad_combined", args.grad_combined, Engine::serves_float64);
  check.hidden("grad_permuted", args.grad_permuted, Engine::serves_float64);
  check.matrix("grad_permuted", args.grad_permuted, rows, args.grad_combined.columns);
  check.same_type("grad_permuted", args.grad_permuted.type, "grad_combined", type);
  check.range({"row_of_slot", "columns"}, k, 1, max_experts);
  check.matrix("row_of_slot", args.row_of_slot, tokens, k);
  check.vector("slot_of_row", args.slot_of_row, rows, rows, "the rows of grad_permuted");
  check.padding(args.padding);
  check.optional_pointer("status", args.status, alignof(Status));
  if (args.weights.data != nullptr) detail::check_factors(check, "weights", args.weights, tokens, k, type);
  if (args.grad_weights.data != nullptr) {
    detail::check_factors(check, "grad_weights", args.grad_weights, tokens, k, type);
    check.matrix("permuted", args.permuted, rows, args.grad_combined.columns);
    check.same_type("permuted", args.permuted.type, "grad_combined", type);
  }
  IdentityExperts identity{};
  if (args.grad_weights.data != nullptr) identity = args.identity;
  identity.weights = {};  // not read
  detail::check_identity(check, identity, tokens, k, args.grad_combined.columns, type);
  check.apart({region("grad_permuted", args.grad_permuted), region("grad_weights", args.grad_weights),
               region("grad_combined", args.grad_combined), region("permuted", args.permuted),
               region("row_of_slot", args.row_of_slot), region("slot_of_row", args.slot_of_row),
               region("weights", args.weights), region("identity.experts", identity.experts),
               region("identity.tokens", identity.tokens), region(args.status)});
  detail::check_index<Place>("combine_backward", "slot_of_row", args.slot_of_row, tokens * k);
  detail::check_index<Place>("combine_backward", "row_of_slot", args.row_of_slot, rows);
  const SpreadProblem problem{args.grad_combined,
                              args.grad_permuted,
                              args.row_of_slot,
                              args.slot_of_row.data,
                              args.weights,
                              args.permuted,
                              args.grad_weights,
                              identity,
                              args.padding == Padding::zero,
                              rows_hold_packs(args.grad_combined) && rows_hold_packs(args.grad_permuted),
                              rows_hold_packs(args.grad_combined) && rows_hold_packs(args.permuted),
                              rows_hold_packs(args.grad_combined) && rows_hold_packs(identity.tokens),
                              detail::invalid_rows_of(args.status)};
  detail::spread("combine_backward", problem, place);
}

MOEB_NAMESPACE_END
