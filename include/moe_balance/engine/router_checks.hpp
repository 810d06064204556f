// What the calls of a router demand of their arguments, before anything is written.
#pragma once

#include <moe_balance/arguments.hpp>
#include <moe_balance/engine/validate.hpp>
#include <moe_balance/requirements.hpp>
#include <moe_balance/shape.hpp>
#include <moe_balance/token/margins.hpp>
#include <moe_balance/token/saved.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

MOEB_NAMESPACE_BEGIN

/// Sequences matter only to balancers that read them.
template <class Balancer, class Args>
[[nodiscard]] Sequences sequences_of(const Args& args) {
  return BalancerTraits<Balancer>::reads_sequences ? args.sequences : Sequences{};
}

/// Of a router of these policies. `on_host`: whether the call's memory is the host's, so that what offsets and layers hold can be read, too, and logits may
/// be float64. Errors: InvalidArgument.
template <class Scoring, class TopKT, class Balancer>
struct RouterChecks {
  using Traits = BalancerTraits<Balancer>;
  static constexpr int k = TopKT::k;

  const TopKT& top_k;
  const Balancer& balancer;

  [[nodiscard]] std::size_t saved_bytes(const Shape& shape) const {
    constexpr std::int64_t most_sequences = std::numeric_limits<std::int32_t>::max();
    constexpr std::int64_t most_sums = std::numeric_limits<std::int64_t>::max() / 64;  // so that their bytes fit int64
    const bool is_taken = shape.experts >= 0 && (!Traits::reads_sequences ||
                                                 (shape.sequences >= 0 && shape.sequences <= most_sequences &&
                                                  shape.experts <= most_sums / std::max<std::int64_t>(shape.sequences, 1)));
    if (SavedLayout<Balancer>::is_used && !is_taken) return std::numeric_limits<std::size_t>::max();
    return static_cast<std::size_t>(SavedLayout<Balancer>{shape.experts, shape.sequences}.words()) * sizeof(std::int64_t);
  }

  /// Of any call.
  [[nodiscard]] std::size_t workspace_bytes(const Shape& shape) const {
    return std::max(selection_bytes(shape), forward_bytes(shape, true, false));
  }

  /// Where forward keeps thresholds of margins in its workspace, behind what the selection has; nowhere on the host.
  [[nodiscard]] TokenThresholds<Scoring> thresholds_in(const Workspace& workspace, const Shape& shape, bool on_host) const {
    if (on_host) return {};
    return TokenThresholds<Scoring>::of(static_cast<std::byte*>(workspace.data) + thresholds_offset(shape), shape.tokens);
  }

  /// Whether the global-batch losses read the load of the step, or the current micro-batch only; all of them the same.
  [[nodiscard]] bool reads_step(const char* call) const {
    const WindowCount windows = count_windows(balancer);
    MOEB_EXPECTS(windows.step == 0 || windows.micro_batch == 0, call, "balancer's window",
                 "step in one loss and micro_batch in another", "the same in all global-batch losses of a router");
    return windows.step > 0;
  }

  /// `needs_bias`: whether the call may not leave it out.
  void forward(const char* call, const ForwardArgs& args, Workspace workspace, bool on_host, bool load_is_read,
               bool needs_bias) const {
    const Validator check{call};
    const std::int64_t tokens = args.logits.rows;
    const std::int64_t experts = args.logits.columns;
    check.logits(args.logits, k, on_host);
    top_k.check(call, static_cast<int>(experts));
    check_options(call, balancer, static_cast<int>(experts), k);
    check.matrix("experts", args.experts, tokens, k);
    check.matrix("weights", args.weights, tokens, k);
    check.type_beside_logits("weights", args.weights.type, args.logits.type);
    check.optional_pointer("counts", args.counts, alignof(std::int64_t));
    check.bias(args.bias, experts, needs_bias);
    check.load(args.load, experts, load_is_read || (Traits::biases > 0 && args.accumulate), bins_of(balancer));
    if (args.accumulate && !Traits::reads_scores && counts_margins(balancer)) {
      check.range("logits.columns", experts, k + 1, max_experts, "experts to leave unchosen, for the margins");
    }
    check.optional_pointer("status", args.status, alignof(Status));
    check.optional_pointer("tokens_on_device", args.tokens_on_device, alignof(std::int64_t));
    if constexpr (is_replaying<TopKT>) {
      check.matrix("replay.experts", args.replay.experts, tokens, k);
    } else {
      check.left_out("replay.experts", args.replay.experts.data, "Replay");
      check.left_out("replay.tokens", args.replay.tokens, "Replay");
    }
    if constexpr (!looks_across_tokens<TopKT>) {
      check.left_out("chosen", args.chosen.data, "WithCapacity");
      check.left_out("kept_counts", args.kept_counts, "WithCapacity");
    }
    check_balanced(check, args.balanced);
    if constexpr (Traits::reads_sequences) check.sequences(args.sequences, tokens, on_host);
    if constexpr (looks_across_tokens<TopKT>) top_k.check_memory(call, args, workspace);
    const Shape shape{tokens, static_cast<int>(experts), sequences_of<Balancer>(args).count};
    check_saved(check, args.saved, shape);
    const std::size_t used = forward_bytes(shape, args.accumulate, on_host);
    check.memory("workspace", workspace.data, workspace.bytes, used, 16);
    const ByteRows scratch("workspace", workspace.data,
                           keeps_thresholds(args.accumulate, on_host) ? static_cast<std::int64_t>(used) : 0);
    check.forward_memory(args, saved_bytes(shape), looks_across_tokens<TopKT> ? args.chosen : MatrixView<std::int32_t>(),
                         is_replaying<TopKT> ? args.replay : ReplayRef{}, sequences_of<Balancer>(args), scratch);
  }

  void backward(const BackwardArgs& args, Workspace workspace, bool on_host) const {
    const Validator check{"backward"};
    const std::int64_t tokens = args.logits.rows;
    const std::int64_t experts = args.logits.columns;
    check.logits(args.logits, k, on_host);
    top_k.check("backward", static_cast<int>(experts));
    if constexpr (is_over_selected<Scoring>) {
      MOEB_EXPECTS(k > 1, "backward", "top_k.k", k,
                   "2 or more with SoftmaxOverSelected: a softmax over one expert is 1 and has no gradient");
    }
    check.matrix("experts", args.experts, tokens, k);
    if constexpr (looks_across_tokens<TopKT>)
      check.matrix("chosen", args.chosen, tokens, k);
    else
      check.left_out("chosen", args.chosen.data, "WithCapacity");
    if (args.grad_weights.data != nullptr) {
      check.matrix("grad_weights", args.grad_weights, tokens, k);
      check.type_beside_logits("grad_weights", args.grad_weights.type, args.logits.type);
    }
    check.matrix("grad_logits", args.grad_logits, tokens, experts);
    check.type_beside_logits("grad_logits", args.grad_logits.type, args.logits.type);
    check.optional_pointer("tokens_on_device", args.tokens_on_device, alignof(std::int64_t));
    check.optional_pointer("grad_loss", args.grad_loss, alignof(float));
    check.finite("loss_scale", args.loss_scale);
    check_options("backward", balancer, static_cast<int>(experts), k);
    check_balanced(check, args.balanced);
    if constexpr (Traits::reads_sequences) check.sequences(args.sequences, tokens, on_host);
    if constexpr (looks_across_tokens<TopKT>) top_k.check_memory("backward", args, workspace);
    const Shape shape{tokens, static_cast<int>(experts), sequences_of<Balancer>(args).count};
    check_saved(check, args.saved, shape);
    check.memory("workspace", workspace.data, workspace.bytes, selection_bytes(shape), 16);
    check.backward_memory(args, saved_bytes(shape),
                          looks_across_tokens<TopKT> ? args.chosen : MatrixView<const std::int32_t>(),
                          sequences_of<Balancer>(args));
    if (on_host && SavedLayout<Balancer>::is_used) {
      check.range("saved.tokens", *SavedLayout<Balancer>{experts, shape.sequences}.view(args.saved.data).tokens, 0, tokens,
                  "those of logits: saved has the sums of another call");
    }
  }

  void loss(const LossArgs& args) const {
    const Validator check{"loss"};
    check.range("experts", args.experts, 1, max_experts);
    check_options("loss", balancer, args.experts, k);
    check.pointer("value", args.value, alignof(float));
    check.optional_pointer("part_values", args.part_values, alignof(float));
    const std::int64_t sequences = sequences_of<Balancer>(args).count;
    if (args.saved.experts != 0)
      check.range("experts", args.experts, args.saved.experts, args.saved.experts, "those that saved was made for");
    check.range("sequences.count", sequences, 1, std::numeric_limits<std::int32_t>::max());
    check_saved(check, args.saved, {0, args.experts, sequences});
    check.loss_memory(args, saved_bytes({0, args.experts, sequences}), Traits::losses + Traits::token_losses);
  }

  void update(const char* call, const BiasRef& bias, const LoadRef& load, bool on_host) const {
    const Validator check{call};
    check_options(call, balancer);
    check.load_of_layers(load, on_host, bins_of(balancer));
    if (load.experts_of_layer == nullptr)
      check_rules(call, balancer, load.experts, k);
    else if (on_host)
      for (std::int64_t l = 0; l < load.layers; ++l) check_rules(call, balancer, load.experts_of_layer[l], k);
    if constexpr (Traits::biases > 0) check.bias_of_layers(bias, load, Traits::bias_memory);
  }

 private:
  /// A balancer that does not mark tokens would balance all of them.
  void check_balanced(const Validator& check, const std::uint8_t* balanced) const {
    MOEB_EXPECTS(Traits::marks_tokens || balanced == nullptr, check.call, "balanced", "given",
                 "null, unless BalancedTokens is a part of the balancer");
  }
  /// What is known to be for another shape would be read at other places than it was written to.
  void check_saved(const Validator& check, const SavedRef& saved, const Shape& shape) const {
    if (saved.experts != 0) check.range("saved.experts", saved.experts, shape.experts, shape.experts, "the call's experts");
    if (Traits::reads_sequences && saved.sequences != 0)
      check.range("sequences.count", shape.sequences, saved.sequences, saved.sequences, "those that saved was made for");
    check.memory("saved", saved.data, saved.bytes, saved_bytes(shape), alignof(std::int64_t));
  }
  /// Workspace of calls that count no margins.
  [[nodiscard]] std::size_t selection_bytes([[maybe_unused]] const Shape& shape) const {
    if constexpr (looks_across_tokens<TopKT>)
      return top_k.workspace_bytes(shape);
    else
      return 0;
  }
  [[nodiscard]] std::size_t thresholds_offset(const Shape& shape) const { return (selection_bytes(shape) + 15) / 16 * 16; }
  [[nodiscard]] bool keeps_thresholds(bool accumulate, bool on_host) const {
    return Traits::reads_margins && accumulate && !on_host && counts_margins(balancer);
  }
  [[nodiscard]] std::size_t forward_bytes(const Shape& shape, bool accumulate, bool on_host) const {
    if constexpr (Traits::reads_margins) {
      constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
      const std::size_t offset = thresholds_offset(shape);
      const std::size_t thresholds = TokenThresholds<Scoring>::bytes(shape.tokens);
      if (keeps_thresholds(accumulate, on_host)) return thresholds > most - offset ? most : offset + thresholds;
    }
    return selection_bytes(shape);
  }
};

MOEB_NAMESPACE_END
