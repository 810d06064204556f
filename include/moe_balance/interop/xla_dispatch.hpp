// The handlers of the dispatch calls, which know no router: permutation, permute and combine with their backward passes. xla_ffi.hpp lists operands and results.
#pragma once

#include <moe_balance/dispatch/permutation.hpp>
#include <moe_balance/dispatch/permute.hpp>
#include <moe_balance/interop/xla_call.hpp>

MOEB_NAMESPACE_BEGIN

namespace xla {

template <class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error permutation(Place place, Threads threads, Align align, RowsPerExpert rows_per_expert,
                                     Operand experts, Result offsets, Result row_of_slot, Result slot_of_row, Result counts,
                                     Result status, Result workspace) {
  return guarded([&] {
    const Reader read{"permutation"};
    const Place there = with_threads(read.call, place, *threads);
    PermutationArgs args;
    args.experts = read.matrix_of<std::int32_t>("experts", experts);
    args.offsets = read.vector_of<std::int64_t>("offsets", *offsets);
    args.row_of_slot = read.matrix_of<std::int64_t>("row_of_slot", *row_of_slot);
    args.slot_of_row = read.vector_of<std::int64_t>("slot_of_row", *slot_of_row);
    args.align = *align;
    args.rows_per_expert = *rows_per_expert;
    args.counts = read.optional_array<std::int64_t>("counts", *counts, args.offsets.size - 1, "one less than offsets");
    args.status = cleared_status(read, *status, there);
    moe_balance::permutation(args, read.workspace(*workspace), there);
  });
}

template <class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error permute(Place place, Threads threads, TopKCount top_k, Operand hidden, Operand row_of_slot,
                                 Operand slot_of_row, Operand scale, Result permuted, Result status) {
  return guarded([&] {
    const Reader read{"permute"};
    const Place there = with_threads(read.call, place, *threads);
    Validator{read.call}.range("top_k", *top_k, 1, max_experts);
    PermuteArgs args;
    args.hidden = read.matrix("hidden", hidden);
    args.row_of_slot = read.optional_matrix_of<std::int64_t>("row_of_slot", row_of_slot);
    args.slot_of_row = read.vector_of<std::int64_t>("slot_of_row", slot_of_row);
    args.scale = read.optional_matrix("scale", scale);
    args.permuted = read.matrix("permuted", *permuted);
    args.top_k = static_cast<int>(*top_k);
    args.status = cleared_status(read, *status, there);
    moe_balance::permute(args, {}, there);
  });
}

template <class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error permute_backward(Place place, Threads threads, Operand grad_permuted, Operand row_of_slot,
                                          Operand scale, Operand hidden, Result grad_hidden, Result grad_scale,
                                          Result status) {
  return guarded([&] {
    const Reader read{"permute_backward"};
    const Place there = with_threads(read.call, place, *threads);
    PermuteBackwardArgs args;
    args.grad_permuted = read.matrix("grad_permuted", grad_permuted);
    args.row_of_slot = read.matrix_of<std::int64_t>("row_of_slot", row_of_slot);
    args.scale = read.optional_matrix("scale", scale);
    args.hidden = read.optional_matrix("hidden", hidden);
    args.grad_hidden = read.matrix("grad_hidden", *grad_hidden);
    args.grad_scale = read.optional_matrix("grad_scale", *grad_scale);
    args.status = cleared_status(read, *status, there);
    moe_balance::permute_backward(args, {}, there);
  });
}

template <class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error combine(Place place, Threads threads, Operand permuted, Operand row_of_slot, Operand weights,
                                 Result combined, Result status) {
  return guarded([&] {
    const Reader read{"combine"};
    const Place there = with_threads(read.call, place, *threads);
    CombineArgs args;
    args.permuted = read.matrix("permuted", permuted);
    args.row_of_slot = read.matrix_of<std::int64_t>("row_of_slot", row_of_slot);
    args.weights = read.optional_matrix("weights", weights);
    args.combined = read.matrix("combined", *combined);
    args.status = cleared_status(read, *status, there);
    moe_balance::combine(args, {}, there);
  });
}

template <class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error combine_backward(Place place, Threads threads, Operand grad_combined, Operand row_of_slot,
                                          Operand slot_of_row, Operand weights, Operand permuted, Result grad_permuted,
                                          Result grad_weights, Result status) {
  return guarded([&] {
    const Reader read{"combine_backward"};
    const Place there = with_threads(read.call, place, *threads);
    CombineBackwardArgs args;
    args.grad_combined = read.matrix("grad_combined", grad_combined);
    args.row_of_slot = read.matrix_of<std::int64_t>("row_of_slot", row_of_slot);
    args.slot_of_row = read.vector_of<std::int64_t>("slot_of_row", slot_of_row);
    args.weights = read.optional_matrix("weights", weights);
    args.permuted = read.optional_matrix("permuted", permuted);
    args.grad_permuted = read.matrix("grad_permuted", *grad_permuted);
    args.grad_weights = read.optional_matrix("grad_weights", *grad_weights);
    args.status = cleared_status(read, *status, there);
    moe_balance::combine_backward(args, {}, there);
  });
}

}  // namespace xla

MOEB_NAMESPACE_END
