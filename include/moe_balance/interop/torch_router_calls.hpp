// What the operators of torch_router_ops.hpp share: the tensors and arguments of a call, and what it keeps for backward.
#pragma once

#include <moe_balance/dispatch/route_and_permute.hpp>
#include <moe_balance/interop/torch_dispatch_ops.hpp>
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

/// Calls of `router`, an object of static storage duration.
template <TensorApi Api, const auto& router>
struct RouterCalls {
  using Tensor = typename Api::Tensor;
  using Optional = typename Api::Optional;
  using ScalarType = typename Api::ScalarType;
  using RouterT = std::remove_cvref_t<decltype(router)>;
  using Traits = typename RouterT::Traits;
  using Load = RouterLoad<Api, router>;
  static constexpr std::int64_t k = RouterT::k;
  static constexpr bool across_tokens = looks_across_tokens<decltype(RouterT::top_k)>;

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
    [[nodiscard]] Shape shape() const { return {logits.rows, experts_count()}; }
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
          logits(view) {}
  };

  /// What a caller of forward may give.
  struct Given {
    const Optional& bias;
    const Optional& load;
    bool accumulate;
    const Optional& active;
    std::int64_t sequences;
    const Optional& replay_experts;
    const Optional& replay_tokens;
    const Optional& balanced;
    const Optional& sequence_offsets;
    bool token_major;
  };

  /// A call of forward: its arguments, and the tensors that it returns.
  struct ForwardCall {
    Views<Api> views;
    ForwardArgs args;
    Routing routing;
    Saved layout;
    Tensor saved;
    Tensor loss;
    typename Load::OfCall own_load;

    ForwardCall(const char* call, const Tensor& logits, const Given& given)
        : views(call, logits),
          routing(views, logits, given.bias, given.active, args),
          layout(shape_of(args.logits, sequences_in(call, views, args.logits, given))),
          saved(Api::empty(logits, {layout.words()}, ScalarType::Long)),
          loss(Api::empty(logits, {}, ScalarType::Float)),
          own_load(views, logits, given.load, routing.experts_count()) {
      args.replay = routing.replay(call, views, given.replay_experts, given.replay_tokens);
      MOEB_EXPECTS(Traits::biases == 0 || given.bias.has_value(), call, "bias", "None", "a tensor [E] of float32");
      args.sequences = sequences_in(call, views, args.logits, given);
      args.load = own_load.ref();
      args.accumulate = own_load.accumulates(given.accumulate);
      args.balanced = views.template elements<const std::uint8_t>("balanced", given.balanced, args.logits.rows);
      args.saved = layout.sums(views.template vector<std::int64_t>("saved", saved).data);
      args.chosen = layout.chosen(args.saved);
    }
    /// `route` runs the router on `args`.
    template <class Place, class Route>
    void run(const Place& place, const Route& route) const {
      own_load.begin(place);
      route();
      own_load.end(args, place);
      write_loss(args, views.template element<float>("loss", loss), place);
    }
    [[nodiscard]] std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> results() const {
      return {routing.experts, routing.weights, own_load.added(routing.counts), loss, saved};
    }
  };

  /// The permutation behind a call that routes: in one with it, or after it where a selection looks across tokens.
  struct Fused {
    PermutationTensors<Api> tensors;
    PermutationArgs order;
    Tensor workspace;

    Fused(const char* call, const Views<Api>& views, const Tensor& logits, const Routing& routing, std::int64_t align)
        : tensors(call, logits, routing.logits.rows, k, routing.logits.columns, align),
          order(tensors.args(views, align)),
          workspace(Api::empty(logits, {bytes_of_workspace(call, routing.shape())}, ScalarType::Byte)) {
      order.experts = views.template matrix<const std::int32_t>("experts", routing.experts);
      if (!across_tokens) order.counts = views.template vector<std::int64_t>("counts", routing.counts).data;
    }
    [[nodiscard]] Workspace scratch() const { return as_workspace(workspace); }
    /// The arguments of a fused call, whose counts are the permutation's.
    template <class Args>
    [[nodiscard]] static Args routed(Args args) {
      args.counts = nullptr;
      return args;
    }
    template <class Place>
    void after(const Place& place) const {
      if constexpr (across_tokens) permutation(order, scratch(), place);
    }
    [[nodiscard]] std::tuple<Tensor, Tensor, Tensor> results() const {
      return {tensors.offsets, tensors.row_of_slot, tensors.slot_of_row};
    }

   private:
    /// Refuses by this call's name what the size would be refused for by its own.
    [[nodiscard]] static std::int64_t bytes_of_workspace(const char* call, const Shape& shape) {
      const Validator check{call};
      check.range("logits.columns", shape.experts, 1, max_experts, "experts");
      check.range("top_k.k", k, 1, shape.experts, "K may not exceed the experts");
      return static_cast<std::int64_t>(route_and_permute_workspace_bytes(router, shape));
    }
  };

  /// How tokens lie in sequences. Memory is allocated by their number.
  [[nodiscard]] static Sequences sequences_in(const char* call, const Views<Api>& views, const ConstAnyMatrix& logits,
                                              const Given& given) {
    return sequences_in(call, views, logits, given.sequences, given.sequence_offsets, given.token_major);
  }
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

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
