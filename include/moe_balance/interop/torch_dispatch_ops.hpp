// The operators of dispatch that PyTorch gets: what torch_ops.hpp says.
#pragma once

#include <moe_balance/dispatch/once_per_rank.hpp>
#include <moe_balance/dispatch/permutation.hpp>
#include <moe_balance/dispatch/permute.hpp>
#include <moe_balance/interop/torch_tensors.hpp>

#include <cstddef>
#include <cstdint>
#include <tuple>

MOEB_NAMESPACE_BEGIN

namespace torch_ops MOEB_HIDDEN {

/// The operators of dispatch.
///   permutation  offsets [E + 1], row_of_slot [T, K], slot_of_row [R], counts [E]: rows grouped by expert, each expert's padded to a multiple of align.
///                R is what suffices for any ids, so that nobody waits for the GPU.
///   permute      hidden states [T, H] as rows [R, H], times the slots' scale [T, K] where there is one; 0 in padding rows.
///   combine      the experts' outputs [R, H] as tokens [T, H], times the slots' weights [T, K] where there are some.
///   once_per_rank    the ranks [T, K] that a token goes to, each in its first slot there, -1 elsewhere: ids for a permutation over rank_count ranks.
///   routing_of_rows  what that permutation's rows bring to their ranks: ids there [R, K], -1 for others, and weights [R, K]. Weights have a gradient.
inline constexpr const char* dispatch_schemas[] = {
    "permutation(Tensor experts, int expert_count, int align=1) -> (Tensor offsets, Tensor row_of_slot, "
    "Tensor slot_of_row, Tensor counts)",
    "permute(Tensor hidden, Tensor row_of_slot, Tensor slot_of_row, Tensor? scale=None) -> Tensor",
    "permute_backward(Tensor grad_permuted, Tensor row_of_slot, Tensor? hidden=None, Tensor? scale=None) -> "
    "(Tensor grad_hidden, Tensor grad_scale)",
    "combine(Tensor permuted, Tensor row_of_slot, Tensor slot_of_row, Tensor? weights=None) -> Tensor",
    "combine_backward(Tensor grad_combined, Tensor row_of_slot, Tensor slot_of_row, Tensor? permuted=None, "
    "Tensor? weights=None) -> (Tensor grad_permuted, Tensor grad_weights)",
    "once_per_rank(Tensor experts, int experts_per_rank, int rank_count) -> Tensor",
    "routing_of_rows(Tensor weights, Tensor experts, Tensor row_of_slot, Tensor slot_of_row, int experts_per_rank) -> "
    "(Tensor row_experts, Tensor row_weights)",
    "routing_of_rows_backward(Tensor grad_row_weights, Tensor experts, Tensor row_of_slot, int experts_per_rank) -> Tensor"};

/// What `permutation` returns, for ids of so many tokens.
template <TensorApi Api>
struct PermutationTensors {
  using Tensor = typename Api::Tensor;
  using ScalarType = typename Api::ScalarType;
  Tensor offsets;
  Tensor row_of_slot;
  Tensor slot_of_row;

  PermutationTensors(const char* call, const Tensor& like, std::int64_t tokens, std::int64_t k, std::int64_t experts,
                     std::int64_t align)
      : PermutationTensors(like, tokens, k, experts, rows_of(call, tokens, k, experts, align)) {}
  /// Arguments that write there, but for ids and counts.
  [[nodiscard]] PermutationArgs args(const Views<Api>& views, std::int64_t align) const {
    PermutationArgs args;
    args.align = align;
    args.offsets = views.template vector<std::int64_t>("offsets", offsets);
    args.row_of_slot = views.template matrix<std::int64_t>("row_of_slot", row_of_slot);
    args.slot_of_row = views.template vector<std::int64_t>("slot_of_row", slot_of_row);
    return args;
  }

 private:
  PermutationTensors(const Tensor& like, std::int64_t tokens, std::int64_t k, std::int64_t experts, std::int64_t rows)
      : offsets(Api::empty(like, {experts + 1}, ScalarType::Long)),
        row_of_slot(Api::empty(like, {tokens, k}, ScalarType::Long)),
        slot_of_row(Api::empty(like, {rows}, ScalarType::Long)) {}
  [[nodiscard]] static std::int64_t rows_of(const char* call, std::int64_t tokens, std::int64_t k, std::int64_t experts,
                                            std::int64_t align) {
    Validator{call}.range("align", align, 1, std::int64_t{1} << 30);
    return permutation_rows(tokens, k, experts, align);
  }
};

/// The operators of dispatch.
template <TensorApi Api>
struct DispatchOps {
  using Tensor = typename Api::Tensor;
  using Optional = typename Api::Optional;
  using ScalarType = typename Api::ScalarType;

  static std::tuple<Tensor, Tensor, Tensor, Tensor> permutation(const Tensor& experts, std::int64_t expert_count,
                                                                std::int64_t align) {
    const Views<Api> views("permutation", experts);
    Validator{"permutation"}.range("expert_count", expert_count, 1, max_dispatch_experts);
    const MatrixView<const std::int32_t> ids = views.template matrix<const std::int32_t>("experts", experts);
    const PermutationTensors<Api> order("permutation", experts, ids.rows, ids.columns, expert_count, align);
    const Tensor counts = Api::empty(experts, {expert_count}, ScalarType::Long);
    const Tensor scratch =
        Api::empty(experts, {static_cast<std::int64_t>(permutation_workspace_bytes(ids.rows, ids.columns, expert_count))},
                   ScalarType::Byte);
    const VectorView<std::uint8_t> bytes = views.template vector<std::uint8_t>("workspace", scratch);
    PermutationArgs args = order.args(views, align);
    args.experts = ids;
    args.counts = views.template vector<std::int64_t>("counts", counts).data;
    Api::run(experts, [&](const auto& place) {
      moe_balance::permutation(args, {bytes.data, static_cast<std::size_t>(bytes.size)}, place);
    });
    return {order.offsets, order.row_of_slot, order.slot_of_row, counts};
  }

  static Tensor permute(const Tensor& hidden, const Tensor& row_of_slot, const Tensor& slot_of_row, const Optional& scale) {
    const Views<Api> views("permute", hidden);
    PermuteArgs args;
    args.hidden = views.matrix("hidden", hidden);
    args.row_of_slot = views.template matrix<const std::int64_t>("row_of_slot", row_of_slot);
    const Validator check{"permute"};
    check.range({"row_of_slot", "rows"}, args.row_of_slot.rows, args.hidden.rows, args.hidden.rows, "the tokens of hidden");
    check.range({"row_of_slot", "columns"}, args.row_of_slot.columns, 1, max_experts);
    args.top_k = static_cast<int>(args.row_of_slot.columns);
    args.slot_of_row = views.template vector<const std::int64_t>("slot_of_row", slot_of_row);
    args.scale = views.matrix("scale", scale);
    const Tensor permuted = Api::empty(hidden, {args.slot_of_row.size, args.hidden.columns}, Api::scalar_type(hidden));
    args.permuted = views.matrix("permuted", permuted);
    Api::run(hidden, [&](const auto& place) { moe_balance::permute(args, Workspace{}, place); });
    return permuted;
  }

  /// grad_scale is empty without scale.
  static std::tuple<Tensor, Tensor> permute_backward(const Tensor& grad_permuted, const Tensor& row_of_slot,
                                                     const Optional& hidden, const Optional& scale) {
    const Views<Api> views("permute_backward", grad_permuted);
    const Tensor dense = Api::contiguous(grad_permuted);
    PermuteBackwardArgs args;
    args.grad_permuted = views.matrix("grad_permuted", dense);
    args.row_of_slot = views.template matrix<const std::int64_t>("row_of_slot", row_of_slot);
    args.scale = views.matrix("scale", scale);
    args.hidden = views.matrix("hidden", hidden);
    const Tensor grad_hidden =
        Api::empty(dense, {args.row_of_slot.rows, args.grad_permuted.columns}, Api::scalar_type(dense));
    const Tensor grad_scale = like_factors(dense, scale);
    args.grad_hidden = views.matrix("grad_hidden", grad_hidden);
    if (scale.has_value()) args.grad_scale = views.matrix("grad_scale", grad_scale);
    Api::run(dense, [&](const auto& place) { moe_balance::permute_backward(args, Workspace{}, place); });
    return {grad_hidden, grad_scale};
  }

  static Tensor combine(const Tensor& permuted, const Tensor& row_of_slot, const Tensor& slot_of_row,
                        const Optional& weights) {
    const Views<Api> views("combine", permuted);
    CombineArgs args;
    args.permuted = views.matrix("permuted", permuted);
    args.row_of_slot = views.template matrix<const std::int64_t>("row_of_slot", row_of_slot);
    (void)views.template elements<const std::int64_t>("slot_of_row", Optional(slot_of_row), args.permuted.rows);
    args.weights = views.matrix("weights", weights);
    const Tensor combined = Api::empty(permuted, {args.row_of_slot.rows, args.permuted.columns}, Api::scalar_type(permuted));
    args.combined = views.matrix("combined", combined);
    Api::run(permuted, [&](const auto& place) { moe_balance::combine(args, Workspace{}, place); });
    return combined;
  }

  /// grad_weights is empty without weights.
  static std::tuple<Tensor, Tensor> combine_backward(const Tensor& grad_combined, const Tensor& row_of_slot,
                                                     const Tensor& slot_of_row, const Optional& permuted,
                                                     const Optional& weights) {
    const Views<Api> views("combine_backward", grad_combined);
    const Tensor dense = Api::contiguous(grad_combined);
    CombineBackwardArgs args;
    args.grad_combined = views.matrix("grad_combined", dense);
    args.row_of_slot = views.template matrix<const std::int64_t>("row_of_slot", row_of_slot);
    args.slot_of_row = views.template vector<const std::int64_t>("slot_of_row", slot_of_row);
    args.weights = views.matrix("weights", weights);
    args.permuted = views.matrix("permuted", permuted);
    const Tensor grad_permuted =
        Api::empty(dense, {args.slot_of_row.size, args.grad_combined.columns}, Api::scalar_type(dense));
    const Tensor grad_weights = like_factors(dense, weights);
    args.grad_permuted = views.matrix("grad_permuted", grad_permuted);
    if (weights.has_value()) args.grad_weights = views.matrix("grad_weights", grad_weights);
    Api::run(dense, [&](const auto& place) { moe_balance::combine_backward(args, Workspace{}, place); });
    return {grad_permuted, grad_weights};
  }

  static Tensor once_per_rank(const Tensor& experts, std::int64_t experts_per_rank, std::int64_t rank_count) {
    const Views<Api> views("once_per_rank", experts);
    OncePerRankArgs args;
    args.experts = views.template matrix<const std::int32_t>("experts", experts);
    const Tensor ranks = Api::empty(experts, {args.experts.rows, args.experts.columns}, ScalarType::Int);
    args.ranks = views.template matrix<std::int32_t>("ranks", ranks);
    args.experts_per_rank = small("once_per_rank", "experts_per_rank", experts_per_rank);
    args.rank_count = small("once_per_rank", "rank_count", rank_count);
    Api::run(experts, [&](const auto& place) { moe_balance::once_per_rank(args, Workspace{}, place); });
    return ranks;
  }

  static std::tuple<Tensor, Tensor> routing_of_rows(const Tensor& weights, const Tensor& experts, const Tensor& row_of_slot,
                                                    const Tensor& slot_of_row, std::int64_t experts_per_rank) {
    const Views<Api> views("routing_of_rows", weights);
    RoutingOfRowsArgs args;
    args.weights = views.matrix("weights", weights);
    args.experts = views.template matrix<const std::int32_t>("experts", experts);
    const MatrixView<const std::int64_t> rows_of_slots =
        views.template matrix<const std::int64_t>("row_of_slot", row_of_slot);
    const Validator check{"routing_of_rows"};  // of what only backward reads
    check.range({"row_of_slot", "rows"}, rows_of_slots.rows, args.experts.rows, args.experts.rows, "the tokens of experts");
    check.range({"row_of_slot", "columns"}, rows_of_slots.columns, args.experts.columns, args.experts.columns,
                "the slots of a token");
    args.slot_of_row = views.template vector<const std::int64_t>("slot_of_row", slot_of_row);
    const std::int64_t rows = args.slot_of_row.size;
    const Tensor row_experts = Api::empty(weights, {rows, args.experts.columns}, ScalarType::Int);
    const Tensor row_weights = Api::empty(weights, {rows, args.experts.columns}, Api::scalar_type(weights));
    args.row_experts = views.template matrix<std::int32_t>("row_experts", row_experts);
    args.row_weights = views.matrix("row_weights", row_weights);
    args.experts_per_rank = small("routing_of_rows", "experts_per_rank", experts_per_rank);
    Api::run(weights, [&](const auto& place) { moe_balance::routing_of_rows(args, Workspace{}, place); });
    return {row_experts, row_weights};
  }

  static Tensor routing_of_rows_backward(const Tensor& grad_row_weights, const Tensor& experts, const Tensor& row_of_slot,
                                         std::int64_t experts_per_rank) {
    const Views<Api> views("routing_of_rows_backward", grad_row_weights);
    const Tensor dense = Api::contiguous(grad_row_weights);
    RoutingOfRowsBackwardArgs args;
    args.grad_row_weights = views.matrix("grad_row_weights", dense);
    args.experts = views.template matrix<const std::int32_t>("experts", experts);
    args.row_of_slot = views.template matrix<const std::int64_t>("row_of_slot", row_of_slot);
    const Tensor grad_weights = Api::empty(dense, {args.experts.rows, args.experts.columns}, Api::scalar_type(dense));
    args.grad_weights = views.matrix("grad_weights", grad_weights);
    args.experts_per_rank = small("routing_of_rows_backward", "experts_per_rank", experts_per_rank);
    Api::run(dense, [&](const auto& place) { moe_balance::routing_of_rows_backward(args, Workspace{}, place); });
    return grad_weights;
  }

 private:
  [[nodiscard]] static int small(const char* call, const char* name, std::int64_t count) {
    Validator{call}.range(name, count, 1, max_dispatch_experts);
    return static_cast<int>(count);
  }
  /// The gradient of a slot's factors: of their shape and type, [0] where there are none.
  [[nodiscard]] static Tensor like_factors(const Tensor& like, const Optional& factors) {
    if (!factors.has_value()) return Api::empty(like, {0}, ScalarType::Float);
    const TensorView view = Api::view(*factors);
    return Api::empty(like, {view.shape[0], view.shape[1]}, Api::scalar_type(*factors));
  }
};

/// Calls visit.operator()<function>(name) for each operator of Ops, a DispatchOps.
template <class Ops, class Visitor>
void for_each_dispatch_op(const Visitor& visit) {
  visit.template operator()<&Ops::permutation>("permutation");
  visit.template operator()<&Ops::permute>("permute");
  visit.template operator()<&Ops::permute_backward>("permute_backward");
  visit.template operator()<&Ops::combine>("combine");
  visit.template operator()<&Ops::combine_backward>("combine_backward");
  visit.template operator()<&Ops::once_per_rank>("once_per_rank");
  visit.template operator()<&Ops::routing_of_rows>("routing_of_rows");
  visit.template operator()<&Ops::routing_of_rows_backward>("routing_of_rows_backward");
}

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
