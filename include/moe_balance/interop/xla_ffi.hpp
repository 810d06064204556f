// Handlers of XLA's foreign-function interface, for JAX and other front ends: a router of yours and the dispatch calls, on the CPU. xla_ffi.cuh adds GPUs.
//
//   // handlers.cpp: g++ -std=c++20 -O2 -fPIC -shared -I include -isystem $(python3 -c "import jax; print(jax.ffi.include_dir())") handlers.cpp
//   #include <moe_balance/interop/xla_ffi.hpp>
//   constexpr mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{}};
//   MOEB_XLA_HANDLERS(my_moe, router, mb::Host)
//
// defines the C symbols my_moe_route, my_moe_forward, ..., to be registered with XLA, and my_moe_sizes, which says how large the results are that only
// the router knows. examples/jax_moe_layer/moe_balance_jax.py does so and adds the gradients.
//
// T = tokens, E = experts, K = experts per token, L = layers, R = rows, H = hidden size; "floats" are F32, BF16, F16, and F64 on the CPU. int64 arrays
// may be S32 [..., 2]; an empty buffer leaves an optional (?) operand or result out; `status` is int64 [4], the counters of Status, of this call alone.
//
//   handler           operands                                                results
//   route             logits [T,E], bias? F32 [E], active? U8 or PRED [T],    experts S32 [T,K], weights [T,K], counts int64 [E],
//                     replay_experts? S32 [T,K], replay_tokens? as active     kept_counts? int64 [E], status, workspace U8
//   forward           logits, bias?, load? int64 [E], active?,                experts, weights, loss F32 [], losses F32 [number of losses], counts,
//                     replay_experts?, replay_tokens?, balanced? as active,   new load?, saved U8, chosen? S32 [T,K], kept_counts?, loss_counts? int64 [E],
//                     sequence_offsets? int64 [sequences + 1]                 status, workspace
//   backward          logits, experts, chosen?, grad_weights? [T,K],          grad_logits [T,E], workspace
//                     grad_loss F32 [], saved, active?, balanced?, sequence_offsets?
//   loss              saved, global_counts int64 [E]                          saved with these counts, loss, losses
//   update            bias? F32 [E] or [L,E], load int64 [E] or [L,E]         new bias?, new load
//                     (bias [1+n,E] or [1+n,L,E] where its rule keeps n values for each; where it reads margins in n bins, each E of a
//                     load is (1+n)*E: counts [E] and behind them histograms [E,n])
//   permutation       experts S32 [T,K]                                       offsets int64 [E+1], row_of_slot int64 [T,K], slot_of_row int64 [R],
//                                                                             counts int64 [E], status, workspace U8
//   permute           hidden [T,H], row_of_slot?, slot_of_row, scale? [T,K]   permuted [R,H], status
//   permute_backward  grad_permuted [R,H], row_of_slot, scale?, hidden?       grad_hidden [T,H], grad_scale? [T,K], status
//   combine           permuted [R,H], row_of_slot, weights? [T,K]             combined [T,H], status
//   combine_backward  grad_combined [T,H], row_of_slot, slot_of_row,          grad_permuted [R,H], grad_weights? [T,K], status
//                     weights?, permuted?
//
// `loss` is for a global-batch loss over several devices: XLA sums the loss_counts that `forward` gave, which such a loss reads (of the step or of this call, by
// its window), and `saved` with the sum goes to `backward`. Selections that replay take replay_experts, balancers with BalancedTokens `balanced`, no others.
//
// Attributes, int64 each: `threads` of all (Host::threads: 0 takes all cores that the calling thread may run on for the time of the call, which blocks the XLA thread that makes it; a
// GPU ignores it); `sequences` and `token_major` (0 or 1) of forward and backward (loss takes the first), for SequenceLoss, whose sequences may have any lengths by `sequence_offsets`, the first 0, the last T; `align` and `rows_per_expert` of permutation;
// `top_k` of permute.
//
// Nothing is changed in place: forward and update copy load and bias to their results first, unless the caller aliases the two
// (input_output_aliases). Workspaces are results, to be ignored: no handler allocates device memory. Whatever is wrong becomes an error of XLA, with the
// library's message and code INVALID_ARGUMENT, INTERNAL for what is not the caller's fault; no exception leaves a handler.
// Interface: https://openxla.org/xla/custom_call
#pragma once

#include <moe_balance/dispatch/host.hpp>
#include <moe_balance/engine/host.hpp>
#include <moe_balance/interop/xla_dispatch.hpp>
#include <moe_balance/router.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

namespace xla {

/// `offsets`: [count + 1], or empty where sequences are equally long.
[[nodiscard]] inline Sequences sequences_of(const Reader& read, const Operand& offsets, std::int64_t count,
                                            std::int64_t token_major) {
  if (Reader::is_empty(offsets)) {
    return {.count = count, .layout = token_major != 0 ? Sequences::Layout::token_major : Sequences::Layout::sequence_major};
  }
  Validator{read.call}.range("sequences", count, 1, std::numeric_limits<std::int32_t>::max());
  const std::int64_t* bounds =
      read.array<std::int64_t>("sequence_offsets", offsets, count + 1, "the sequences' and one more");
  MOEB_EXPECTS(token_major == 0, read.call, "token_major", token_major,
               "0, where sequence_offsets say which tokens belong together");
  return {.count = count, .layout = Sequences::Layout::offsets, .offsets = bounds};
}

/// What handlers of a router need of it.
template <const auto& router>
struct Handled {
  using RouterT = std::remove_cvref_t<decltype(router)>;
  using Traits = typename RouterT::Traits;
  using Selection = std::remove_cvref_t<decltype(router.top_k)>;
  static_assert(
      std::is_same_v<std::remove_cvref_t<decltype(router.sync)>, SingleDevice>,
      "XLA may drop or repeat a call, which a sum over ranks does not survive: let XLA sum the load before update");
  static constexpr bool has_bias = Traits::biases > 0;
  static constexpr int bias_memory = Traits::bias_memory;
  static constexpr bool reads_global_batch = Traits::reads_global_batch;
  static constexpr bool needs_load = has_bias || reads_global_batch;
  static constexpr bool has_capacity = looks_across_tokens<Selection>;
};

/// Bins of the histograms that a load has behind its counts. Options out of range are refused by their names before sizes are compared with them.
template <const auto& router>
[[nodiscard]] int load_bins_of(const Reader& read) {
  if constexpr (Handled<router>::Traits::reads_margins) check_options(read.call, router.balancer);
  return router.load_bins();
}

/// Bytes of `saved`, whose size does not depend on the tokens; 0 for what no call takes.
template <const auto& router>
[[nodiscard]] std::int64_t saved_bytes_of(std::int64_t experts, std::int64_t sequences) {
  if (experts < 1 || experts > max_experts || sequences < 1) return 0;
  const std::size_t bytes = router.saved_bytes({.tokens = 0, .experts = static_cast<int>(experts), .sequences = sequences});
  return bytes == std::numeric_limits<std::size_t>::max() ? 0 : static_cast<std::int64_t>(bytes);
}

/// The members that RouteArgs and ForwardArgs share.
template <class Args>
void fill(Args& args, const Reader& read, const Operand& logits, const Operand& bias, const Operand& active,
          const Operand& replay_experts, const Operand& replay_tokens, const Operand& experts, const Operand& weights,
          const Operand& counts, const Operand& kept_counts) {
  args.logits = read.matrix("logits", logits);
  const std::int64_t tokens = args.logits.rows;
  const std::int64_t expert_count = args.logits.columns;
  const char* const experts_of_logits = "the experts of logits";
  if (float* data = read.optional_array<float>("bias", bias, expert_count, experts_of_logits)) {
    args.bias = BiasRef{data, static_cast<int>(expert_count)};
  }
  args.active = read.optional_array<std::uint8_t>("active", active, tokens, "the tokens of logits");
  args.experts = read.matrix_of<std::int32_t>("experts", experts);
  args.replay.experts = read.optional_matrix_of<std::int32_t>("replay_experts", replay_experts);
  if (tokens == 0) args.replay.experts = {nullptr, 0, args.experts.columns};  // a buffer of no token is empty
  args.replay.tokens = read.optional_array<std::uint8_t>("replay_tokens", replay_tokens, tokens, "the tokens of logits");
  args.weights = read.matrix("weights", weights);
  args.counts = read.optional_array<std::int64_t>("counts", counts, expert_count, experts_of_logits);
  args.kept_counts = read.optional_array<std::int64_t>("kept_counts", kept_counts, expert_count, experts_of_logits);
}

template <const auto& router, class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error route(Place place, Threads threads, Operand logits, Operand bias, Operand active,
                               Operand replay_experts, Operand replay_tokens, Result experts, Result weights, Result counts,
                               Result kept_counts, Result status, Result workspace) {
  static_assert(sizeof(Handled<router>) > 0);
  return guarded([&] {
    const Reader read{"route"};
    const Place there = with_threads(read.call, place, *threads);
    RouteArgs args;
    fill(args, read, logits, bias, active, replay_experts, replay_tokens, *experts, *weights, *counts, *kept_counts);
    args.status = cleared_status(read, *status, there);
    router.route(args, read.workspace(*workspace), there);
  });
}

/// The loss and its parts; zeros where there is none.
template <const auto& router, class Place, class Tag = EngineTagOf<Place>>
void write_losses(const Reader& read, const SavedRef& saved, std::int64_t experts, const Sequences& sequences,
                  const Operand& loss, const Operand& losses, const Place& place) {
  constexpr int count = Handled<router>::RouterT::loss_count;
  float* const value = read.scalar<float>("loss", loss);
  float* const parts = read.optional_array<float>("losses", losses, count, "losses of the balancer");
  if constexpr (count > 0) {
    router.loss(
        {.saved = saved, .experts = static_cast<int>(experts), .sequences = sequences, .value = value, .part_values = parts},
        {}, place);
  } else {
    Engine<Place>::clear(value, sizeof(float), place);
  }
}

template <const auto& router, class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error forward(Place place, Threads threads, SequenceCount sequences, TokenMajor token_major,
                                 Operand logits, Operand bias, Operand load, Operand active, Operand replay_experts,
                                 Operand replay_tokens, Operand balanced, Operand sequence_offsets, Result experts,
                                 Result weights, Result loss, Result losses, Result counts, Result new_load, Result saved,
                                 Result chosen, Result kept_counts, Result loss_counts, Result status, Result workspace) {
  static_assert(sizeof(Handled<router>) > 0);
  return guarded([&] {
    const Reader read{"forward"};
    const Place there = with_threads(read.call, place, *threads);
    ForwardArgs args;
    fill(args, read, logits, bias, active, replay_experts, replay_tokens, *experts, *weights, *counts, *kept_counts);
    const std::int64_t size = args.logits.columns;
    LoadRef new_ref = LoadRef::with_bins(nullptr, load_bins_of<router>(read), static_cast<int>(size));
    const char* const what =
        new_ref.bins > 0 ? "a count and bins for each of the experts of logits" : "the experts of logits";
    const std::int64_t* old_load = read.optional_array<std::int64_t>("load", load, new_ref.row_size(), what);
    if (old_load != nullptr) {
      new_ref.counts = read.array<std::int64_t>("new load", *new_load, new_ref.row_size(), what);
      args.load = new_ref;
    }
    args.balanced = read.optional_array<std::uint8_t>("balanced", balanced, args.logits.rows, "the tokens of logits");
    [[maybe_unused]] auto* const counts_of_loss =
        read.optional_array<std::int64_t>("loss_counts", *loss_counts, size, "the experts of logits");
    args.saved = read.saved(*saved);
    args.sequences = sequences_of(read, sequence_offsets, *sequences, *token_major);
    if constexpr (Handled<router>::has_capacity) args.chosen = read.matrix_of<std::int32_t>("chosen", *chosen);
    args.status = cleared_status(read, *status, there);
    if (old_load != nullptr) carry_over(old_load, args.load.counts, load.size_bytes(), there);
    router.forward(args, read.workspace(*workspace), there);
    if constexpr (Handled<router>::reads_global_batch) {
      using Balancer = std::remove_cvref_t<decltype(router.balancer)>;
      const SavedView view =
          SavedLayout<Balancer>{size, moe_balance::sequences_of<Balancer>(args).count}.view(args.saved.data);
      if (counts_of_loss != nullptr) carry_over(view.global_counts, counts_of_loss, loss_counts->size_bytes(), there);
    }
    write_losses<router>(read, args.saved, size, args.sequences, *loss, *losses, there);
  });
}

template <const auto& router, class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error loss(Place place, Threads threads, SequenceCount sequences, Operand saved, Operand global_counts,
                              Result new_saved, Result loss, Result losses) {
  return guarded([&] {
    const Reader read{"loss"};
    const Place there = with_threads(read.call, place, *threads);
    MOEB_EXPECTS(Handled<router>::reads_global_batch, read.call, "balancer", "without a global-batch loss", "one with it");
    const VectorView<std::int64_t> counts = read.vector_of<std::int64_t>("global_counts", global_counts);
    const Validator check{read.call};
    check.range("global_counts.size", counts.size, 1, max_experts, "experts");
    check.range("sequences", *sequences, 1, std::numeric_limits<std::int32_t>::max());
    const std::int64_t bytes = saved_bytes_of<router>(counts.size, *sequences);
    const void* old = read.array<std::uint8_t>("saved", saved, bytes, "bytes that forward has written");
    void* data = read.array<std::uint8_t>("new saved", *new_saved, bytes, "the bytes of saved");
    carry_over(old, data, static_cast<std::size_t>(bytes), there);
    using Layout = SavedLayout<std::remove_cvref_t<decltype(router.balancer)>>;
    carry_over(counts.data, Layout{counts.size, *sequences}.view(data).global_counts, global_counts.size_bytes(), there);
    write_losses<router>(read, {data, static_cast<std::size_t>(bytes)}, counts.size, {.count = *sequences}, *loss, *losses,
                         there);
  });
}

template <const auto& router, class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error backward(Place place, Threads threads, SequenceCount sequences, TokenMajor token_major,
                                  Operand logits, Operand experts, Operand chosen, Operand grad_weights, Operand grad_loss,
                                  Operand saved, Operand active, Operand balanced, Operand sequence_offsets,
                                  Result grad_logits, Result workspace) {
  static_assert(sizeof(Handled<router>) > 0);
  return guarded([&] {
    const Reader read{"backward"};
    const Place there = with_threads(read.call, place, *threads);
    BackwardArgs args;
    args.logits = read.matrix("logits", logits);
    args.experts = read.matrix_of<std::int32_t>("experts", experts);
    if constexpr (Handled<router>::has_capacity) args.chosen = read.matrix_of<std::int32_t>("chosen", chosen);
    args.grad_weights = read.optional_matrix("grad_weights", grad_weights);
    args.grad_logits = read.matrix("grad_logits", *grad_logits);
    args.grad_loss = read.scalar<float>("grad_loss", grad_loss);
    args.saved = read.saved(saved);
    args.sequences = sequences_of(read, sequence_offsets, *sequences, *token_major);
    args.active = read.optional_array<std::uint8_t>("active", active, args.logits.rows, "the tokens of logits");
    args.balanced = read.optional_array<std::uint8_t>("balanced", balanced, args.logits.rows, "the tokens of logits");
    router.backward(args, read.workspace(*workspace), there);
  });
}

/// One layer or many: [E] or [L, E], each row with the histograms of its experts behind it.
[[nodiscard]] inline LoadRef load_of(const Reader& read, const char* name, const Operand& buffer, bool many, int bins) {
  MatrixView<std::int64_t> rows;
  if (many) {
    rows = read.matrix_of<std::int64_t>(name, buffer);
  } else {
    const VectorView<std::int64_t> row = read.vector_of<std::int64_t>(name, buffer);
    rows = {row.data, 1, row.size};
  }
  MOEB_EXPECTS(rows.columns % (1 + bins) == 0, read.call, (std::string(name) + ".columns").c_str(), rows.columns,
               "a multiple of ", 1 + bins, ": for each expert a count and the bins that the balancer's rule reads");
  return LoadRef::with_bins(rows.data, bins, static_cast<int>(rows.columns / (1 + bins)), rows.rows);
}

template <const auto& router, class Place, class Tag = EngineTagOf<Place>>
[[nodiscard]] ffi::Error update(Place place, Threads threads, Operand bias, Operand load, Result new_bias, Result new_load) {
  static_assert(sizeof(Handled<router>) > 0);
  return guarded([&] {
    const Reader read{"update"};
    const Place there = with_threads(read.call, place, *threads);
    const std::size_t words = load.element_type() == ffi::S64 ? 1 : 2;
    const bool many = load.dimensions().size() >= 1 + words;
    const int bins = load_bins_of<router>(read);
    const LoadRef old_counts = load_of(read, "load", load, many, bins);
    const LoadRef counts = load_of(read, "new load", *new_load, many, bins);
    const Validator check{read.call};
    check.range("new load.layers", counts.layers, old_counts.layers, old_counts.layers, "the layers of load");
    check.range("new load.experts", counts.experts, old_counts.experts, old_counts.experts, "the experts of load");
    BiasRef biases{};
    if (!Reader::is_empty(bias)) {
      constexpr int memory = Handled<router>::bias_memory;
      const BiasRef old_biases = read.biases_of("bias", bias, many, memory);
      biases = read.biases_of("new bias", *new_bias, many, memory);
      check.range("bias.layers", old_biases.layers, counts.layers, counts.layers, "the layers of load");
      check.range("bias.experts", old_biases.experts, counts.experts, counts.experts, "the experts of load");
      check.range("new bias.layers", biases.layers, counts.layers, counts.layers, "the layers of load");
      check.range("new bias.experts", biases.experts, counts.experts, counts.experts, "the experts of load");
    }
    carry_over(load.untyped_data(), counts.counts, new_load->size_bytes(), there);
    if (biases.data != nullptr) carry_over(bias.untyped_data(), biases.data, bias.size_bytes(), there);
    router.update(biases, counts, {}, there);
  });
}

/// What Python cannot know of a router: how large some results are, and which operands it needs. All int64, for ctypes.
struct Sizes {
  std::int64_t top_k;
  std::int64_t losses;                     ///< elements of the result `losses`
  std::int64_t has_bias;                   ///< 0 or 1: update moves a bias
  std::int64_t needs_load;                 ///< 0 or 1: forward needs a load
  std::int64_t reads_global_batch;         ///< 0 or 1: `loss` serves this router
  std::int64_t has_capacity;               ///< 0 or 1: `chosen` and `kept_counts` are results
  std::int64_t saved_bytes;                ///< of forward
  std::int64_t workspace_bytes = 0;        ///< of route, forward and backward
  std::int64_t permutation_rows = 0;       ///< R, for these ids and `align`
  std::int64_t permutation_workspace = 0;  ///< bytes
  std::int64_t bias_memory = 0;            ///< values that the rule keeps for each bias, in tables behind them
  std::int64_t load_bins = 0;  ///< of each expert's histogram behind a load's counts; 0 where the rule reads no margins
};

/// 0 for what no call takes. For callers in C: throws nothing.
template <const auto& router>
[[nodiscard]] Sizes sizes(std::int64_t tokens, std::int64_t experts, std::int64_t sequences, std::int64_t align) {
  using RouterT = typename Handled<router>::RouterT;
  const Shape shape{.tokens = tokens,
                    .experts = static_cast<int>(std::clamp<std::int64_t>(experts, 0, max_experts)),
                    .sequences = sequences};
  Sizes result{.top_k = RouterT::k,
               .losses = RouterT::loss_count,
               .has_bias = Handled<router>::has_bias,
               .needs_load = Handled<router>::needs_load,
               .reads_global_batch = Handled<router>::reads_global_batch,
               .has_capacity = Handled<router>::has_capacity,
               .saved_bytes = saved_bytes_of<router>(experts, sequences),
               .bias_memory = Handled<router>::bias_memory,
               .load_bins = router.load_bins()};
  try {
    result.workspace_bytes = static_cast<std::int64_t>(router.workspace_bytes(shape));
    result.permutation_rows = permutation_rows(tokens, RouterT::k, experts, align);
    result.permutation_workspace = static_cast<std::int64_t>(permutation_workspace_bytes(tokens, RouterT::k, experts));
  } catch (const InvalidArgument&) {  // what is wrong the handler says, which gets the same arguments
  }
  return result;
}

/// Calls a handler with what XLA hands over.
template <auto handler>
[[nodiscard]] XLA_FFI_Error* run(XLA_FFI_CallFrame* frame) {
  static const auto bound = ffi::Ffi::BindTo(handler);
  return bound->Call(frame);
}

}  // namespace xla

MOEB_NAMESPACE_END

#define MOEB_XLA_HANDLER(symbol, ...)                                                                      \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* symbol(XLA_FFI_CallFrame* call_frame) { \
    return ::moe_balance::xla::run<__VA_ARGS__>(call_frame);                                               \
  }

/// Defines NAME_route, NAME_forward, NAME_backward, NAME_loss, NAME_update, NAME_permutation, NAME_permute, NAME_permute_backward, NAME_combine,
/// NAME_combine_backward and NAME_sizes. `router` names a Router of static storage duration, `place` is moe_balance::Host or cudaStream_t.
#define MOEB_XLA_HANDLERS(name, router, place)                                                                    \
  MOEB_XLA_HANDLER(name##_route, ::moe_balance::xla::route<router, place>)                                        \
  MOEB_XLA_HANDLER(name##_forward, ::moe_balance::xla::forward<router, place>)                                    \
  MOEB_XLA_HANDLER(name##_backward, ::moe_balance::xla::backward<router, place>)                                  \
  MOEB_XLA_HANDLER(name##_loss, ::moe_balance::xla::loss<router, place>)                                          \
  MOEB_XLA_HANDLER(name##_update, ::moe_balance::xla::update<router, place>)                                      \
  MOEB_XLA_HANDLER(name##_permutation, ::moe_balance::xla::permutation<place>)                                    \
  MOEB_XLA_HANDLER(name##_permute, ::moe_balance::xla::permute<place>)                                            \
  MOEB_XLA_HANDLER(name##_permute_backward, ::moe_balance::xla::permute_backward<place>)                          \
  MOEB_XLA_HANDLER(name##_combine, ::moe_balance::xla::combine<place>)                                            \
  MOEB_XLA_HANDLER(name##_combine_backward, ::moe_balance::xla::combine_backward<place>)                          \
  extern "C" __attribute__((visibility("default"))) void name##_sizes(std::int64_t tokens, std::int64_t experts,  \
                                                                      std::int64_t sequences, std::int64_t align, \
                                                                      ::moe_balance::xla::Sizes* result) {        \
    *result = ::moe_balance::xla::sizes<router>(tokens, experts, sequences, align);                               \
  }
