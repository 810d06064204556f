// The operators that PyTorch gets from a router: what torch_ops.hpp says.
#pragma once

#include <moe_balance/interop/torch_load.hpp>
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

/// The operators of `router`, an object of static storage duration: what its fields are when a call is made counts.
template <TensorApi Api, const auto& router>
struct RouterOps {
  using Tensor = typename Api::Tensor;
  using Optional = typename Api::Optional;
  using ScalarType = typename Api::ScalarType;
  using RouterT = std::remove_cvref_t<decltype(router)>;
  using Traits = typename RouterT::Traits;
  using Load = RouterLoad<Api, router>;
  static constexpr std::int64_t k = RouterT::k;
  static constexpr bool across_tokens = looks_across_tokens<decltype(RouterT::top_k)>;

  static std::tuple<Tensor, Tensor, Tensor> route(const Tensor& logits, const Optional& bias, const Optional& active,
                                                  const Optional& replay_experts = {}, const Optional& replay_tokens = {}) {
    const Views<Api> views("route", logits);
    RouteArgs args;
    const Routing routing(views, logits, bias, active, args);
    args.replay = routing.replay("route", views, replay_experts, replay_tokens);
    Api::run(logits, [&](const auto& place) { router.route(args, routing.scratch(), place); });
    return {routing.experts, routing.weights, routing.counts};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
      const Tensor& logits, const Optional& bias, const Optional& load, bool accumulate, const Optional& active,
      std::int64_t sequences, const Optional& replay_experts = {}, const Optional& replay_tokens = {},
      const Optional& balanced = {}, const Optional& sequence_offsets = {}, bool token_major = false) {
    const Views<Api> views("forward", logits);
    ForwardArgs args;
    const Routing routing(views, logits, bias, active, args);
    args.replay = routing.replay("forward", views, replay_experts, replay_tokens);
    MOEB_EXPECTS(Traits::biases == 0 || bias.has_value(), "forward", "bias", "None", "a tensor [E] of float32");
    args.sequences = sequences_in("forward", views, args.logits, sequences, sequence_offsets, token_major);
    const Saved layout(shape_of(args.logits, args.sequences));
    const Tensor saved = Api::empty(logits, {layout.words()}, ScalarType::Long);
    const Tensor loss = Api::empty(logits, {}, ScalarType::Float);
    const typename Load::OfCall own_load(views, logits, load, routing.experts_count());
    args.load = own_load.ref();
    args.accumulate = own_load.accumulates(accumulate);
    args.balanced = views.template elements<const std::uint8_t>("balanced", balanced, args.logits.rows);
    args.saved = layout.sums(views.template vector<std::int64_t>("saved", saved).data);
    args.chosen = layout.chosen(args.saved);
    Api::run(logits, [&](const auto& place) {
      own_load.begin(place);
      router.forward(args, routing.scratch(), place);
      own_load.end(args, place);
      write_loss(args, views.template element<float>("loss", loss), place);
    });
    return {routing.experts, routing.weights, own_load.added(routing.counts), loss, saved};
  }

  static Tensor backward(const Tensor& logits, const Tensor& experts, const Tensor& saved, const Optional& grad_weights,
                         const Optional& grad_loss, const Optional& active, std::int64_t sequences,
                         const Optional& balanced = {}, const Optional& sequence_offsets = {}, bool token_major = false) {
    const Views<Api> views("backward", logits);
    BackwardArgs args;
    args.logits = views.matrix("logits", logits);
    args.sequences = sequences_in("backward", views, args.logits, sequences, sequence_offsets, token_major);
    const Shape shape = shape_of(args.logits, args.sequences);
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
    const Tensor workspace = scratch_for(logits, shape);
    Api::run(logits, [&](const auto& place) { router.backward(args, as_workspace(workspace), place); });
    return grad_logits;
  }

  static Tensor losses(const Tensor& saved, std::int64_t experts, std::int64_t sequences) {
    const Views<Api> views("losses", saved);
    const Saved layout = layout_of("losses", experts, sequences);
    const VectorView<std::int64_t> words = views.template vector<std::int64_t>("saved", saved);
    Validator{"losses"}.range("saved.size", words.size, layout.words(), std::numeric_limits<std::int64_t>::max());
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
    const Saved layout = layout_of("sizes", experts, sequences);
    return {k, layout.words(), across_tokens ? Saved::words_of_ids : 0, Load::load_bins("sizes"), RouterT::loss_count};
  }

  static void update(const Optional& bias, const Tensor& load) {
    const Views<Api> views("update", load);
    const LoadRef load_ref = Load::of_layers("update", views, load);
    BiasRef bias_ref;
    if (bias.has_value()) bias_ref = views.biases("bias", *bias, Traits::bias_memory);
    Api::run(load, [&](const auto& place) { router.update(bias_ref, load_ref, Workspace{}, place); });
  }

 private:
  /// What forward keeps for backward, in one tensor of int64: the sums of the losses and, where there is a capacity, ids before dropping.
  struct Saved {
    static constexpr std::int64_t words_of_ids = (k + 1) / 2;
    Shape shape;
    std::size_t sum_bytes;

    explicit Saved(const Shape& its_shape) : shape(its_shape), sum_bytes(router.saved_bytes(its_shape)) {}
    [[nodiscard]] std::int64_t words() const {
      const std::int64_t of_sums = static_cast<std::int64_t>(sum_bytes / sizeof(std::int64_t));
      return of_sums + (across_tokens ? shape.tokens * words_of_ids : 0);
    }
    [[nodiscard]] SavedRef sums(void* data) const { return {data, sum_bytes}; }
    [[nodiscard]] MatrixView<std::int32_t> chosen(const SavedRef& sums) const {
      if (!across_tokens || sums.data == nullptr) return {};
      void* behind = static_cast<std::byte*>(sums.data) + sum_bytes;
      return {static_cast<std::int32_t*>(behind), shape.tokens, k, 2 * words_of_ids};
    }
  };

  /// That of a call of no tokens.
  [[nodiscard]] static Saved layout_of(const char* call, std::int64_t experts, std::int64_t sequences) {
    Validator{call}.range("experts", experts, 1, max_experts);
    Validator{call}.range("sequences", sequences, 1, std::numeric_limits<std::int32_t>::max());
    return Saved({0, static_cast<int>(experts), Traits::reads_sequences ? sequences : 1});
  }

  /// The tensors that route and forward return, and the arguments that they share.
  struct Routing {
    Tensor experts;
    Tensor weights;
    Tensor counts;
    Tensor workspace;
    ConstAnyMatrix logits;

    template <class Args>
    Routing(const Views<Api>& views, const Tensor& of, const Optional& bias, const Optional& active, Args& args)
        : Routing(views.matrix("logits", of), of) {
      args.logits = logits;
      args.experts = views.template matrix<std::int32_t>("experts", experts);
      args.weights = views.matrix("weights", weights);
      args.counts = views.template vector<std::int64_t>("counts", counts).data;
      args.active = views.template elements<const std::uint8_t>("active", active, logits.rows);
      args.bias = {views.template elements<float>("bias", bias, logits.columns), experts_count()};
    }
    [[nodiscard]] int experts_count() const { return static_cast<int>(logits.columns); }
    [[nodiscard]] Workspace scratch() const { return as_workspace(workspace); }
    [[nodiscard]] ReplayRef replay(const char* call, const Views<Api>& views, const Optional& ids,
                                   const Optional& tokens) const {
      MOEB_EXPECTS(!is_replaying<decltype(RouterT::top_k)> || ids.has_value(), call, "replay_experts", "None",
                   "a tensor [T, K] of int32");
      ReplayRef result;
      if (ids.has_value()) result.experts = views.template matrix<const std::int32_t>("replay_experts", *ids);
      result.tokens = views.template elements<const std::uint8_t>("replay_tokens", tokens, logits.rows);
      return result;
    }

   private:
    Routing(const ConstAnyMatrix& view, const Tensor& of)
        : experts(Api::empty(of, {view.rows, k}, ScalarType::Int)),
          weights(Api::empty(of, {view.rows, k}, view.type == DataType::float64 ? ScalarType::Double : ScalarType::Float)),
          counts(Api::empty(of, {view.columns}, ScalarType::Long)),
          workspace(scratch_for(of, {view.rows, static_cast<int>(view.columns)})),
          logits(view) {}
  };

  /// How tokens lie in sequences. Memory is allocated by their number.
  [[nodiscard]] static Sequences sequences_in(const char* call, const Views<Api>& views, const ConstAnyMatrix& logits,
                                              std::int64_t count, const Optional& offsets, bool token_major) {
    const Validator check{call};
    if (offsets.has_value()) {
      constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
      const VectorView<const std::int64_t> bounds = views.template vector<const std::int64_t>("sequence_offsets", *offsets);
      check.range("sequence_offsets.size", bounds.size, 2, most + 1, "the sequences' and one more");
      MOEB_EXPECTS(count == 1 || count == bounds.size - 1, call, "sequences", count, "1, or the ", bounds.size - 1,
                   " of sequence_offsets");
      MOEB_EXPECTS(!token_major, call, "token_major", "True",
                   "False, where sequence_offsets say which tokens belong together");
      return {.count = bounds.size - 1, .layout = Sequences::Layout::offsets, .offsets = bounds.data};
    }
    const std::int64_t most = logits.rows > 0 ? logits.rows : std::numeric_limits<std::int32_t>::max();
    check.range("sequences", count, 1, most, "a divisor of the tokens");
    return {.count = count, .layout = token_major ? Sequences::Layout::token_major : Sequences::Layout::sequence_major};
  }
  /// Sequences count for a balancer that reads them.
  [[nodiscard]] static Shape shape_of(const ConstAnyMatrix& logits, const Sequences& sequences) {
    return {logits.rows, static_cast<int>(logits.columns), Traits::reads_sequences ? sequences.count : 1};
  }

  [[nodiscard]] static Tensor scratch_for(const Tensor& like, const Shape& shape) {
    return Api::empty(like, {static_cast<std::int64_t>(router.workspace_bytes(shape))}, ScalarType::Byte);
  }
  [[nodiscard]] static Workspace as_workspace(const Tensor& bytes) {
    const TensorView view = Api::view(bytes);
    return {view.data, static_cast<std::size_t>(view.shape[0])};
  }

  /// The value of the loss, through the loss call where there is one; 0 otherwise.
  template <class Place>
  static void write_loss(const ForwardArgs& args, float* value, const Place& place) {
    if constexpr (RouterT::loss_count > 0) {
      router.loss({.saved = args.saved,
                   .experts = static_cast<int>(args.logits.columns),
                   .sequences = args.sequences,
                   .value = value},
                  Workspace{}, place);
    } else {
      Engine<Place>::clear(value, sizeof(float), place);
    }
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

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
