// The operators that PyTorch gets from a router: what torch_ops.hpp says.
#pragma once

#include <moe_balance/dispatch/route_and_permute.hpp>
#include <moe_balance/interop/torch_router_calls.hpp>
#include <moe_balance/interop/torch_tensors.hpp>
#include <moe_balance/router.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

namespace torch_ops MOEB_HIDDEN {

/// The operators of a router; a prefix may stand before their names. Each signature is also their documentation in Python.
///   route    ids [T, K], best first (-1: none), weights [T, K] and tokens per expert [E], without a gradient.
///   forward  the same, the value of the balancing loss (0 without one), and what backward needs. Weights and loss have a gradient. `load` is read by
///            a GlobalBatchLoss only: the step's counts so far, to which this call's are added first unless accumulate is False. Of a rule that reads
///            margins (QuantileBias) counts are [(1 + load_bins) * E]: tokens per expert [E] and behind them the margins' histograms [E, load_bins], which are
///            0 without accumulate; what it takes as load is of that size. Counts are what the caller's load is to be added: of a router with BalancedTokens
///            those of the tokens that `balanced` [T] marks, or of all (with a rule that reads margins 0 without accumulate), and of a FromPlainTopK of a
///            GlobalBatchLoss those of the plain top-k. `permutation` counts what is to be computed.
///            `sequences` equal ones lie one behind the other, or with token_major interleaved; `sequence_offsets` [S + 1], int64, are the bounds of S of any
///            lengths, the first 0 and the last T. A SequenceLoss reads them.
///            A router that replays (Replay<TopK<K>>) takes, in both, the ids [T, K] of the tokens that `replay_tokens` [T] marks, or of all.
///   backward the gradient of the logits.
///   update   once per optimizer step: moves bias [L, E] or [E] and clears load, of the same shape, in place. A rule that keeps n values for each bias has
///            them behind it, zeros at first: [1 + n, L, E] or [1 + n, E], of which forward reads bias[0, l] or bias[0]. Of a rule that reads margins load
///            is [L, (1 + load_bins) * E] or [(1 + load_bins) * E], to whose rows the caller adds what forward returns as counts.
///   losses   each of the balancer's losses, in its order in Combine, of the forward call that has returned `saved`: their sum is its loss. Without a gradient, for logs.
///   sizes    K, that saved has saved_words + T * saved_words_per_token elements (what tracing without data needs), the bins of margins, 0 without, and how many
///            losses there are.
inline constexpr const char* router_schemas[] = {
    "route(Tensor logits, Tensor? bias=None, Tensor? active=None, Tensor? replay_experts=None, Tensor? replay_tokens=None) "
    "-> (Tensor experts, Tensor weights, Tensor counts)",
    "forward(Tensor logits, Tensor? bias=None, Tensor? load=None, bool accumulate=True, Tensor? active=None, "
    "int sequences=1, Tensor? replay_experts=None, Tensor? replay_tokens=None, Tensor? balanced=None, "
    "Tensor? sequence_offsets=None, bool token_major=False) "
    "-> (Tensor experts, Tensor weights, Tensor counts, Tensor loss, Tensor saved)",
    "backward(Tensor logits, Tensor experts, Tensor saved, Tensor? grad_weights, Tensor? grad_loss, Tensor? active=None, "
    "int sequences=1, Tensor? balanced=None, Tensor? sequence_offsets=None, bool token_major=False) -> Tensor",
    "update(Tensor(a!)? bias, Tensor(b!) load) -> ()",
    "losses(Tensor saved, int experts, int sequences=1) -> Tensor",
    "sizes(int experts, int sequences=1) -> (int top_k, int saved_words, int saved_words_per_token, "
    "int load_bins, int losses)"};

/// In one with `permutation`, whose results stand behind their own: fewer launches on a GPU (route_and_permute.hpp says how many), and one call.
///   forward_and_permute  forward, and permutation of its ids, rows padded to a multiple of align. Weights and loss have a gradient.
///   route_and_permute    route, and permutation of its ids.
inline constexpr const char* fused_schemas[] = {
    "forward_and_permute(Tensor logits, Tensor? bias=None, Tensor? load=None, bool accumulate=True, Tensor? active=None, "
    "int sequences=1, Tensor? replay_experts=None, Tensor? replay_tokens=None, Tensor? balanced=None, "
    "Tensor? sequence_offsets=None, bool token_major=False, int align=1) "
    "-> (Tensor experts, Tensor weights, Tensor counts, Tensor loss, Tensor saved, Tensor offsets, Tensor row_of_slot, "
    "Tensor slot_of_row)",
    "route_and_permute(Tensor logits, Tensor? bias=None, Tensor? active=None, Tensor? replay_experts=None, "
    "Tensor? replay_tokens=None, int align=1) -> (Tensor experts, Tensor weights, Tensor counts, Tensor offsets, "
    "Tensor row_of_slot, Tensor slot_of_row)"};

/// The operators of `router`, an object of static storage duration: what its fields are when a call is made counts.
template <TensorApi Api, const auto& router>
struct RouterOps {
  using Tensor = typename Api::Tensor;
  using Optional = typename Api::Optional;
  using ScalarType = typename Api::ScalarType;
  using RouterT = std::remove_cvref_t<decltype(router)>;
  using Traits = typename RouterT::Traits;
  using Calls = RouterCalls<Api, router>;
  using Load = typename Calls::Load;
  using Saved = typename Calls::Saved;
  using Routing = typename Calls::Routing;
  using ForwardCall = typename Calls::ForwardCall;
  using Fused = typename Calls::Fused;

  static std::tuple<Tensor, Tensor, Tensor> route(const Tensor& logits, const Optional& bias, const Optional& active,
                                                  const Optional& replay_experts = {}, const Optional& replay_tokens = {}) {
    const Views<Api> views("route", logits);
    RouteArgs args;
    const Routing routing(views, logits, bias, active, args);
    args.replay = routing.replay("route", views, replay_experts, replay_tokens);
    const Tensor workspace = Calls::scratch_for(logits, routing.shape());
    Api::run(logits, [&](const auto& place) { router.route(args, Calls::as_workspace(workspace), place); });
    return {routing.experts, routing.weights, routing.counts};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
      const Tensor& logits, const Optional& bias, const Optional& load, bool accumulate, const Optional& active,
      std::int64_t sequences, const Optional& replay_experts = {}, const Optional& replay_tokens = {},
      const Optional& balanced = {}, const Optional& sequence_offsets = {}, bool token_major = false) {
    const ForwardCall call(
        "forward", logits,
        {bias, load, accumulate, active, sequences, replay_experts, replay_tokens, balanced, sequence_offsets, token_major});
    const Tensor workspace = Calls::scratch_for(logits, call.routing.shape());
    Api::run(logits, [&](const auto& place) {
      call.run(place, [&] { router.forward(call.args, Calls::as_workspace(workspace), place); });
    });
    return call.results();
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward_and_permute(
      const Tensor& logits, const Optional& bias, const Optional& load, bool accumulate, const Optional& active,
      std::int64_t sequences, const Optional& replay_experts, const Optional& replay_tokens, const Optional& balanced,
      const Optional& sequence_offsets, bool token_major, std::int64_t align) {
    const ForwardCall call(
        "forward_and_permute", logits,
        {bias, load, accumulate, active, sequences, replay_experts, replay_tokens, balanced, sequence_offsets, token_major});
    const Fused fused("forward_and_permute", call.views, logits, call.routing, align);
    Api::run(logits, [&](const auto& place) {
      call.run(place, [&] {
        if constexpr (Calls::across_tokens)
          router.forward(call.args, fused.scratch(), place);
        else
          moe_balance::forward_and_permute(router, fused.routed(call.args), fused.order, fused.scratch(), place);
        fused.after(place);
      });
    });
    return std::tuple_cat(call.results(), fused.results());
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> route_and_permute(
      const Tensor& logits, const Optional& bias, const Optional& active, const Optional& replay_experts,
      const Optional& replay_tokens, std::int64_t align) {
    const char* const call = "route_and_permute";
    const Views<Api> views(call, logits);
    RouteArgs args;
    const Routing routing(views, logits, bias, active, args);
    args.replay = routing.replay(call, views, replay_experts, replay_tokens);
    const Fused fused(call, views, logits, routing, align);
    Api::run(logits, [&](const auto& place) {
      if constexpr (Calls::across_tokens)
        router.route(args, fused.scratch(), place);
      else
        moe_balance::route_and_permute(router, fused.routed(args), fused.order, fused.scratch(), place);
      fused.after(place);
    });
    return std::tuple_cat(std::tuple(routing.experts, routing.weights, routing.counts), fused.results());
  }

  static Tensor backward(const Tensor& logits, const Tensor& experts, const Tensor& saved, const Optional& grad_weights,
                         const Optional& grad_loss, const Optional& active, std::int64_t sequences,
                         const Optional& balanced = {}, const Optional& sequence_offsets = {}, bool token_major = false) {
    const Views<Api> views("backward", logits);
    BackwardArgs args;
    args.logits = views.matrix("logits", logits);
    args.sequences = Calls::sequences_in("backward", views, args.logits, sequences, sequence_offsets, token_major);
    const Shape shape = Calls::shape_of(args.logits, args.sequences);
    const Saved layout(shape);
    const Tensor grad_logits = Api::empty(logits, {shape.tokens, shape.experts}, Api::scalar_type(logits));
    const Optional dense = with_rows<Api>(grad_weights);
    args.experts = views.template matrix<const std::int32_t>("experts", experts);
    args.grad_weights = views.matrix("grad_weights", dense);
    args.grad_logits = views.matrix("grad_logits", grad_logits);
    args.saved = layout.sums(views.template elements<std::int64_t>("saved", Optional(saved), layout.words()));
    args.chosen = layout.chosen(args.saved);
    args.active = views.template elements<const std::uint8_t>("active", active, shape.tokens);
    args.balanced = views.template elements<const std::uint8_t>("balanced", balanced, shape.tokens);
    args.grad_loss = views.template element<const float>("grad_loss", grad_loss);
    args.loss_scale = grad_loss.has_value() ? 1.0f : 0.0f;
    const Tensor workspace = Calls::scratch_for(logits, shape);
    Api::run(logits, [&](const auto& place) { router.backward(args, Calls::as_workspace(workspace), place); });
    return grad_logits;
  }

  static Tensor losses(const Tensor& saved, std::int64_t experts, std::int64_t sequences) {
    const Views<Api> views("losses", saved);
    const Saved layout = Calls::layout_of("losses", experts, sequences);
    const VectorView<std::int64_t> words = views.template vector<std::int64_t>("saved", saved);
    const std::int64_t most = Calls::across_tokens ? std::numeric_limits<std::int64_t>::max() : layout.words();
    Validator{"losses"}.range("saved.size", words.size, layout.words(), most, "of so many experts and sequences");
    MOEB_EXPECTS(!Calls::across_tokens || (words.size - layout.words()) % Saved::words_of_ids == 0, "losses", "saved.size",
                 words.size, "what forward has saved of so many experts and sequences");
    const Tensor parts = Api::empty(saved, {RouterT::loss_count}, ScalarType::Float);
    if constexpr (RouterT::loss_count > 0) {
      const Tensor sum = Api::empty(saved, {}, ScalarType::Float);
      LossArgs args;
      args.saved = layout.sums(words.data);
      args.experts = static_cast<int>(experts);
      args.sequences.count = sequences;
      args.value = views.template element<float>("sum", sum);
      args.part_values = views.template vector<float>("losses", parts).data;
      Api::run(saved, [&](const auto& place) { router.loss(args, Workspace{}, place); });
    }
    return parts;
  }

  static std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t> sizes(std::int64_t experts,
                                                                                                std::int64_t sequences) {
    const Saved layout = Calls::layout_of("sizes", experts, sequences);
    return {Calls::k, layout.words(), Calls::across_tokens ? Saved::words_of_ids : 0, Load::load_bins("sizes"),
            RouterT::loss_count};
  }

  static void update(const Optional& bias, const Tensor& load) {
    const Views<Api> views("update", load);
    const LoadRef load_ref = Load::of_layers("update", views, load);
    BiasRef bias_ref;
    if (bias.has_value()) bias_ref = views.biases("bias", *bias, Traits::bias_memory);
    Api::run(load, [&](const auto& place) { router.update(bias_ref, load_ref, Workspace{}, place); });
  }
};

/// Calls visit.operator()<function>(name) for each operator of Ops, a RouterOps, that takes tensors: all but sizes.
template <class Ops, class Visitor>
void for_each_router_op(const Visitor& visit) {
  visit.template operator()<&Ops::route>("route");
  visit.template operator()<&Ops::forward>("forward");
  visit.template operator()<&Ops::backward>("backward");
  visit.template operator()<&Ops::update>("update");
  visit.template operator()<&Ops::losses>("losses");
}

/// The same for the operators of fused_schemas.
template <class Ops, class Visitor>
void for_each_fused_op(const Visitor& visit) {
  visit.template operator()<&Ops::forward_and_permute>("forward_and_permute");
  visit.template operator()<&Ops::route_and_permute>("route_and_permute");
}

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
