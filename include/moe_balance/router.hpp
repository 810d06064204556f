// Router: what users hold. A configuration of four policies with const calls; all state is the caller's.
#pragma once

#include <moe_balance/arguments.hpp>
#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer/multiplicative_bias.hpp>
#include <moe_balance/balancer/no_balancer.hpp>
#include <moe_balance/engine/engine.hpp>
#include <moe_balance/engine/router_checks.hpp>
#include <moe_balance/requirements.hpp>
#include <moe_balance/shape.hpp>
#include <moe_balance/sync/single_device.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Routes tokens to experts and keeps the experts' load balanced.
///
/// `place` is where a call runs: Host{.threads = n} (the call returns when its work is done) or, with moe_balance.cuh, a cudaStream_t
/// (the call enqueues kernels and returns: no allocation, no synchronisation, capturable in a CUDA graph; all memory it was given must
/// stay alive until the stream has passed it). Errors: InvalidArgument, before anything is written; CudaError from a launch. What a call writes
/// shares no byte with what else it is given, but rows may lie between rows, and replay.experts may be experts itself.
/// A call that sums over ranks asserts SyncPolicyOn<Sync, Place>. It raises SyncError where the sum fails or is late; what a call has not
/// read by then is as it was, the bias above all.
template <class Scoring, class TopKT, class Balancer = NoBalancer, class Sync = SingleDevice>
struct Router {
  // Asserted here, not in the template's head, so that compilers name the missing member also under class template deduction.
  static_assert(requirements::of_scoring<Scoring>() && ScoringPolicy<Scoring>);
  static_assert(requirements::of_top_k<TopKT>() && TopKPolicy<TopKT>);
  static_assert(requirements::of_balancer<Balancer>() && BalancerPolicy<Balancer>);
  static_assert(requirements::of_sync<Sync>() && SyncPolicy<Sync>);

  /// What the balancer is made of.
  using Traits = BalancerTraits<Balancer>;
  static_assert(Traits::biases <= 1, "at most one part of a balancer may have a bias");
  static_assert(!Traits::bias_is_factor || (is_non_negative<Scoring> && !is_over_selected<Scoring>),
                "a bias that multiplies (MultiplicativeBias) needs scores that are never negative (non_negative)");
  static_assert(!Traits::bias_is_factor || !Traits::reads_margins, "a bias that multiplies cannot be found from margins");
  static_assert(!Traits::bias_is_factor || !reads_cutoffs<TopKT>,
                "a bias that multiplies is no cutoff, which is what Threshold takes a bias for");
  static_assert(!Traits::reads_margins || Traits::reads_scores || has_margins<TopKT>,
                "a rule that reads margins (BiasFromMargins) needs a plain top-k: TopK, or WithCapacity of it");
  static_assert(Traits::plain_losses == 0 || Traits::plain_losses + Traits::arrival_losses == Traits::losses,
                "either all losses, but those that count arrivals, count a plain top-k (FromPlainTopK) or none does");
  static_assert(Traits::plain_choices_agree && Traits::plain_choices >= 0 && Traits::plain_choices <= TopKT::k,
                "losses from a plain top-k (FromPlainTopK) all count as many of its experts, 1 to K");
  static_assert(Traits::arrival_losses <= 1, "at most one loss may count arrivals (CommunicationLoss)");
  static_assert(Traits::plain_losses == 0 || Traits::biases == 0 || !Traits::reads_global_batch,
                "a bias and a global-batch loss from a plain top-k cannot share one load");

  /// K, the experts chosen per token.
  static constexpr int k = TopKT::k;
  /// Balancing losses, the length of LossArgs::part_values.
  static constexpr int loss_count = Traits::losses + Traits::token_losses;
  /// Values that the balancer's rule keeps for each bias: update takes BiasRef::with_memory(bias_memory).
  static constexpr int bias_memory = Traits::bias_memory;

  Scoring scoring{};    ///< from logits to scores
  TopKT top_k{};        ///< from scores to K experts and their weights
  Balancer balancer{};  ///< bias, losses, or none
  Sync sync{};          ///< sums counts over ranks

  /// The same router with another Sync.
  template <class Other>
  [[nodiscard]] constexpr Router<Scoring, TopKT, Balancer, Other> with_sync(const Other& other) const {
    return {scoring, top_k, balancer, other};
  }

  /// Bins of each expert's histogram of margins: update and an accumulating forward take LoadRef::with_bins(load_bins()). 0 but for QuantileBias and the like.
  [[nodiscard]] constexpr int load_bins() const { return bins_of(balancer); }

  /// Bytes of SavedRef for one forward of this shape; 0 where the balancer has no loss, the largest number there is for more sequences
  /// (or more experts in as many) than a call takes, and for fewer than none.
  [[nodiscard]] std::size_t saved_bytes(const Shape& shape) const { return checks().saved_bytes(shape); }

  /// Bytes of Workspace for any call of this shape. With a rule that reads margins (QuantileBias, ThresholdBias) and is not frozen, that includes what an
  /// accumulating forward on a GPU keeps of each token: 4 bytes, with a softmax 20; the largest number there is for more tokens than a call takes, and for fewer
  /// than none. Other calls, and all on the CPU, do not ask for that part.
  [[nodiscard]] std::size_t workspace_bytes(const Shape& shape) const { return checks().workspace_bytes(shape); }

  /// Inference: ids, weights and optionally counts. Reads the bias, touches no state, keeps nothing for a backward pass.
  template <EnginePlace Place, class Tag = EngineTagOf<Place>>
  void route(const RouteArgs& args, Workspace workspace, const Place& place) const {
    // A balancer that has a bias, so that the kernel is one that expects it; the caller may leave it out.
    using PlainBias = std::conditional_t<Traits::bias_is_factor, MultiplicativeBias<LossFreeBias>, LossFreeBias>;
    using PlainBalancer = std::conditional_t<(Traits::biases > 0), PlainBias, NoBalancer>;
    const Router<Scoring, TopKT, PlainBalancer> plain{scoring, top_k, {}, {}};
    ForwardArgs forward_args;
    forward_args.logits = args.logits;
    forward_args.experts = args.experts;
    forward_args.weights = args.weights;
    forward_args.counts = args.counts;
    forward_args.bias = args.bias;
    forward_args.active = args.active;
    forward_args.replay = args.replay;
    forward_args.status = args.status;
    forward_args.tokens_on_device = args.tokens_on_device;
    forward_args.accumulate = false;
    forward_args.kept_counts = args.kept_counts;
    plain.forward_named("route", forward_args, workspace, place, false);
  }

  /// Training: route, and the sums that balancing needs. With `accumulate` adds this call's counts, and margins where the rule reads those, to `load`; say so
  /// exactly once per token (not in evaluation, not when activations are recomputed).
  /// A GlobalBatchLoss reads `load` as it stands after this call, summed over ranks: each of its forwards starts that sum, with `accumulate` or
  /// not and for T = 0, too, so that all ranks must call forward equally often and in the same order. backward and loss await it;
  /// until one of them has run, or another forward with the same `saved`, that memory must stay alive.
  template <EnginePlace Place, class Tag = EngineTagOf<Place>>
  void forward(const ForwardArgs& args, Workspace workspace, const Place& place) const {
    if constexpr (looks_across_tokens<TopKT>) Validator{"forward"}.matrix("chosen", args.chosen, args.logits.rows, k);
    forward_named("forward", args, workspace, place);
  }

  /// Writes grad_logits = d(sum(weights * grad_weights) + loss_scale * grad_loss * loss)/d(logits), exactly, for finite rows; rows without
  /// finite weights and inactive rows get 0. Selection, counts and bias are constants to it. Awaits the sum that forward started.
  /// grad_logits may be logits itself: the same data, type and stride.
  template <EnginePlace Place, class Tag = EngineTagOf<Place>>
  void backward(const BackwardArgs& given, Workspace workspace, const Place& place) const {
    Validator{"backward"}.compiled_experts(given.logits.columns, Engine<Place>::most_experts);
    Engine<Place>::check("backward", place);
    checks().backward(given, workspace, Engine<Place>::serves_float64);
    BackwardArgs args = given;
    if constexpr (looks_across_tokens<TopKT>) args = top_k.before_backward(scoring, given, workspace, place);
    const SavedView saved =
        SavedLayout<Balancer>{args.logits.columns, sequences_of<Balancer>(args).count}.view(args.saved.data);
    await_global_counts(saved, place);
    const BackwardProblem<Scoring, TopKT, Balancer> problem{scoring,
                                                            top_k,
                                                            balancer,
                                                            args.logits,
                                                            args.experts,
                                                            args.grad_weights,
                                                            args.grad_logits,
                                                            saved,
                                                            args.active,
                                                            args.tokens_on_device,
                                                            args.grad_loss,
                                                            args.loss_scale,
                                                            sync.ranks(),
                                                            Segments{sequences_of<Balancer>(args), args.logits.rows},
                                                            rows_hold_quads(args.logits),
                                                            rows_hold_quads(args.grad_logits),
                                                            0,
                                                            args.balanced};
    in_real_type<Place>(args.logits.type,
                        [&](auto real) { Engine<Place>::template backward<decltype(real)>(problem, place); });
  }

  /// Writes the value of the loss of one forward call, as float32: for logging, and for an autograd graph. Its gradient is in backward.
  /// A token's part of a token loss saturates at 16384, or 2^30 / T if that is less (fixed-point sums); the gradient does not. Awaits the sum that forward started.
  template <EnginePlace Place, class Tag = EngineTagOf<Place>>
  void loss(const LossArgs& args, Workspace /*workspace*/, const Place& place) const {
    static_assert(loss_count > 0, "this router's balancer has no loss");
    checks().loss(args);
    const std::int64_t sequences = sequences_of<Balancer>(args).count;
    const SavedView saved = SavedLayout<Balancer>{args.experts, sequences}.view(args.saved.data);
    await_global_counts(saved, place);
    Engine<Place>::loss(LossProblem<Balancer>{balancer, saved, args.experts, k, sync.ranks(), keeps_fewer<TopKT>, sequences,
                                              args.value, args.part_values},
                        place);
  }

  /// Once per optimizer step: sums `load` over ranks, moves the bias of every layer by the balancer's rule, clears `load`. Without a bias
  /// in the balancer (GlobalBatchLoss) it only clears; `bias` may then be empty. The same as start_update and finish_update.
  template <EnginePlace Place, class Tag = EngineTagOf<Place>>
  void update(BiasRef bias, LoadRef load, Workspace workspace, const Place& place) const {
    checks().update("update", bias, load, Engine<Place>::serves_float64);
    start_update(load, workspace, place);
    finish_update(bias, load, workspace, place);
  }

  /// The first half of update: starts the sum of `load` over ranks, after the step's last forward, so that it runs beside the backward pass.
  /// One sum for all layers where they lie together (load.stride == load.row_size()), one for each otherwise. Until finish_update no
  /// forward may accumulate into this load.
  template <EnginePlace Place, class Tag = EngineTagOf<Place>>
  void start_update(LoadRef load, Workspace /*workspace*/, const Place& place) const {
    check_options("start_update", balancer);
    Validator{"start_update"}.load_of_layers(load, Engine<Place>::serves_float64, load_bins());
    if constexpr (Traits::biases > 0) {
      static_assert(requirements::of_sync_on<Sync, Place>() && SyncPolicyOn<Sync, Place>);
      for_each_sum(load, [&](std::int64_t* counts, std::int64_t n) { sync.start(counts, n, place); });
    }
  }

  /// The second half of update: awaits the sums, then moves the bias of every layer and clears `load`. Where a sum fails, no bias has moved.
  template <EnginePlace Place, class Tag = EngineTagOf<Place>>
  void finish_update(BiasRef bias, LoadRef load, Workspace /*workspace*/, const Place& place) const {
    checks().update("finish_update", bias, load, Engine<Place>::serves_float64);
    if constexpr (Traits::biases > 0) {
      static_assert(requirements::of_sync_on<Sync, Place>() && SyncPolicyOn<Sync, Place>);
      for_each_sum(load, [&](std::int64_t* counts, std::int64_t /*n*/) {
        MOEB_EXPECTS(may_be_started(sync, counts), "finish_update", "load.counts", "not being summed over ranks",
                     "a load that start_update was given before");
      });
      for_each_sum(load, [&](std::int64_t* counts, std::int64_t /*n*/) { sync.finish(counts, place); });
    }
    Engine<Place>::update(UpdateProblem<Balancer>{balancer, bias, load, k, sync.ranks(), failure_flag_of(sync)}, place);
  }

 private:
  template <class, class, class, class>
  friend struct Router;

  /// Calls f(double{}) for float64 logits, f(float{}) for all others.
  template <class Place, class Function>
  static void in_real_type(DataType type, Function&& f) {
    if constexpr (Engine<Place>::serves_float64) {
      if (type == DataType::float64) return f(double{});
    }
    f(float{});
  }

  /// One sum for all layers, with their histograms; one each where they lie apart, so that what lies between them stays as it is.
  template <class Function>
  static void for_each_sum(const LoadRef& load, const Function& f) {
    const bool together = load.stride == load.row_size();
    const std::int64_t sums = together ? 1 : load.layers;
    for (std::int64_t i = 0; i < sums; ++i) {
      f(load.layer(i).counts, (together ? load.layers : 1) * load.row_size());
    }
  }

  /// After this `saved.global_counts` is the sum over ranks, for whatever runs or is enqueued next.
  template <class Place, class Tag = EngineTagOf<Place>>
  void await_global_counts(const SavedView& saved, const Place& place) const {
    static_assert(requirements::of_sync_on<Sync, Place>() && SyncPolicyOn<Sync, Place>);
    if constexpr (Traits::reads_global_batch) sync.finish(saved.global_counts, place);
  }

  [[nodiscard]] RouterChecks<Scoring, TopKT, Balancer> checks() const { return {top_k, balancer}; }

  template <class Place, class Tag = EngineTagOf<Place>>
  void forward_named(const char* call, const ForwardArgs& args, Workspace workspace, const Place& place,
                     bool needs_bias = Traits::biases > 0) const {
    static_assert(requirements::of_sync_on<Sync, Place>() && SyncPolicyOn<Sync, Place>);
    static_assert(k <= Engine<Place>::most_experts, "MOE_BALANCE_CUDA_MAX_EXPERTS must be K or more");
    Validator{call}.compiled_experts(args.logits.columns, Engine<Place>::most_experts);
    Engine<Place>::check(call, place);
    const bool load_is_read = checks().reads_step(call);
    checks().forward(call, args, workspace, Engine<Place>::serves_float64, load_is_read, needs_bias);
    const int experts = static_cast<int>(args.logits.columns);
    const std::int64_t sequences = sequences_of<Balancer>(args).count;
    const SavedView saved = SavedLayout<Balancer>{experts, sequences}.view(args.saved.data);
    const std::size_t row_bytes = static_cast<std::size_t>(experts) * sizeof(std::int64_t);
    await_global_counts(saved, place);  // of an earlier forward whose sum nobody read: it may still be written to
    const bool adds_directly = args.accumulate && !load_is_read;
    Totals totals{args.counts, adds_directly ? args.load.counts : nullptr, saved, args.status};
    const ForwardProblem<Scoring, TopKT, Balancer> problem{scoring,
                                                           top_k,
                                                           balancer,
                                                           args.logits,
                                                           routed_ids(args, workspace),
                                                           args.weights,
                                                           args.bias.data,
                                                           args.active,
                                                           args.tokens_on_device,
                                                           args.replay,
                                                           Segments{sequences_of<Balancer>(args), args.logits.rows},
                                                           rows_hold_quads(args.logits),
                                                           0,
                                                           largest_token_loss(args.logits.rows),
                                                           args.balanced};
    if constexpr (requires { Engine<Place>::check_fits(call, problem, place); }) {
      Engine<Place>::check_fits(call, problem, place);
    }
    clear_totals(problem, static_cast<std::int64_t*>(args.saved.data), totals, place);
    in_real_type<Place>(args.logits.type,
                        [&](auto real) { Engine<Place>::template forward<decltype(real)>(problem, totals, place); });

    if constexpr (Traits::reads_margins) {
      if (args.accumulate && args.logits.rows > 0 && counts_margins(balancer)) {
        count_margins(args, problem.experts, workspace, place);
      }
    }
    if constexpr (looks_across_tokens<TopKT>) top_k.after_forward(args, workspace, place);

    if constexpr (Traits::reads_global_batch) {
      Engine<Place>::copy(saved.global_counts, saved.counts, row_bytes, place);
      if (load_is_read) {
        Engine<Place>::publish(args.load.counts, saved.global_counts, experts, args.accumulate, place);
      }
      sync.start(saved.global_counts, experts, place);
    }
  }

  /// Adds the margins of a call that has routed, to these ids, to the histograms of its load.
  template <class Place, class Tag = EngineTagOf<Place>>
  void count_margins(const ForwardArgs& args, const MatrixView<std::int32_t>& ids, const Workspace& workspace,
                     const Place& place) const {
    const Shape shape{args.logits.rows, static_cast<int>(args.logits.columns)};
    const bool on_host = Engine<Place>::serves_float64;
    const MarginProblem<Scoring, TopKT, Balancer> problem{scoring,
                                                          top_k,
                                                          balancer,
                                                          args.logits,
                                                          ids,
                                                          args.bias.data,
                                                          args.load.counts + args.load.experts,
                                                          rows_hold_quads(args.logits),
                                                          args.active,
                                                          args.tokens_on_device,
                                                          checks().thresholds_in(workspace, shape, on_host),
                                                          args.balanced};
    in_real_type<Place>(args.logits.type,
                        [&](auto real) { Engine<Place>::template count_margins<decltype(real)>(problem, place); });
  }

  /// Clears what a forward call adds up in, or has its kernel do that where the engine offers it: a launch less.
  template <class Problem, class Place, class Tag = EngineTagOf<Place>>
  void clear_totals(const Problem& problem, std::int64_t* saved, Totals& totals, const Place& place) const {
    const int experts = static_cast<int>(problem.logits.columns);
    const std::int64_t saved_words = SavedLayout<Balancer>{experts, problem.segments.count()}.words();
    const std::size_t saved_size = static_cast<std::size_t>(saved_words) * sizeof(std::int64_t);
    if (loss_count == 0 && totals.counts == nullptr) return;
    if constexpr (requires { Engine<Place>::clearing_blocks(problem, place); }) {
      totals.clearing_blocks = Engine<Place>::clearing_blocks(problem, place);
      if (totals.clearing_blocks > 0) {
        totals.saved_words = saved;
        totals.words_to_clear = saved_words;
        totals.counts_to_clear = totals.counts != nullptr ? experts : 0;
        return;
      }
    }
    if constexpr (loss_count > 0 && !Traits::reads_global_batch &&
                  requires { Engine<Place>::add_up_in_rows(totals, saved, 0, place); }) {
      if (problem.segments.count() == 1 && totals.counts == nullptr) {
        return Engine<Place>::add_up_in_rows(totals, saved, saved_words, place);
      }
    }
    if constexpr (requires { Engine<Place>::clear_sums(saved, 0, saved, 0, place); }) {
      const int counts = totals.counts != nullptr ? experts : 0;
      return Engine<Place>::clear_sums(saved, saved_words, totals.counts, counts, place);
    }
    if constexpr (loss_count > 0) Engine<Place>::clear(saved, saved_size, place);
    if (totals.counts != nullptr) {
      Engine<Place>::clear(totals.counts, static_cast<std::size_t>(experts) * sizeof(std::int64_t), place);
    }
  }

  /// Where the routing kernel writes ids.
  [[nodiscard]] MatrixView<std::int32_t> routed_ids(const ForwardArgs& args,
                                                    [[maybe_unused]] const Workspace& workspace) const {
    if constexpr (looks_across_tokens<TopKT>)
      return top_k.ids_before(args, workspace);
    else
      return args.experts;
  }
};
template <class Scoring, class TopKT>
Router(Scoring, TopKT) -> Router<Scoring, TopKT>;
template <class Scoring, class TopKT, class Balancer>
Router(Scoring, TopKT, Balancer) -> Router<Scoring, TopKT, Balancer>;
template <class Scoring, class TopKT, class Balancer, class Sync>
Router(Scoring, TopKT, Balancer, Sync) -> Router<Scoring, TopKT, Balancer, Sync>;

MOEB_NAMESPACE_END
