// What a balancer must offer, each of its possible parts, and what it may promise.
#pragma once

#include <moe_balance/loads.hpp>
#include <moe_balance/views.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Which counts a loss reads.
enum class LossScope : std::uint8_t { micro_batch, sequence, global_batch };

/// A loss sum_i slope_i P_i, where slope_i depends on counts only and P_i is the mean probability of expert i.
template <class B>
concept LossBalancer = std::is_trivially_copyable_v<B> && requires(const B balancer, const LoadView load) {
  { balancer.slope(0, load) } -> std::convertible_to<float>;
};

/// A loss of that kind whose value is not sum_i slope_i P_i = `sum` itself: one whose slopes read load.probability(i), so that they are derivatives of
/// something else.
template <class B>
concept ValuedLoss = LossBalancer<B> && requires(const B balancer, const LoadView load) {
  { balancer.value(0.0, load) } -> std::convertible_to<double>;
};

/// What a rule with memory returns: the next bias, and what it will find in its memory in the next step.
template <int Values>
struct BiasStep {
  float bias;            ///< the next one
  float memory[Values];  ///< 0 before the first step
};
/// Without memory.
template <>
struct BiasStep<0> {
  float bias;  ///< the next one
};

/// A rule that knows nothing but the present bias and the step's counts.
template <class B>
concept MemorylessBias = requires(const B balancer, const LoadView load) {
  { balancer.next_bias(0.0f, 0, load) } -> std::convertible_to<float>;
};
/// A rule that keeps B::memory values for each bias from step to step, 0 at first.
template <class B>
concept BiasWithMemory = requires(const B balancer, const LoadView load, const float (&memory)[B::memory]) {
  requires B::memory >= 1 && B::memory <= max_bias_memory;
  { balancer.next_bias(0.0f, 0, load, memory) } -> std::same_as<BiasStep<B::memory>>;
};

/// A rule that reads how the step's margins were distributed: `bins`, 1 to max_bins, of which `bin_of(margin)` says one, the nearest where it says
/// none that there is. A margin may be -infinity, where the logit is; another that is no number the scoring has made of numbers.
template <class B>
concept BiasFromMargins = requires(const B balancer, const LoadView load, const MarginView margins) {
  { balancer.bins } -> std::convertible_to<int>;
  { balancer.bin_of(0.0f) } -> std::convertible_to<int>;
  { balancer.next_bias(0.0f, 0, load, margins) } -> std::convertible_to<float>;
};

/// margins_are_scores: what the rule calls margins are scores, of any selection; false where the policy does not say.
template <class B>
inline constexpr bool margins_are_scores = false;
template <class B>
  requires requires {
    B::margins_are_scores;
  }
inline constexpr bool margins_are_scores<B> = B::margins_are_scores;

/// A selection bias per expert and its rule: the next bias from the present one, the step's counts and what the rule has kept, or the step's margins.
template <class B>
concept BiasBalancer = std::is_trivially_copyable_v<B> &&(MemorylessBias<B> || BiasWithMemory<B> || BiasFromMargins<B>);

/// Values that an elementary balancer's rule keeps for each bias; of any balancer BalancerTraits and Router::bias_memory say it.
template <class B>
inline constexpr int bias_memory = 0;
template <class B>
  requires BiasWithMemory<B>
inline constexpr int bias_memory<B> = B::memory;

/// Whether experts are ranked by score * (1 + bias), a factor of 0 at least, instead of score + bias; false where the policy does not say.
template <class B>
inline constexpr bool bias_is_factor = false;
template <class B>
  requires requires {
    B::bias_is_factor;
  }
inline constexpr bool bias_is_factor<B> = B::bias_is_factor;

/// A loss per token that depends on its logits through their log-sum-exp; `token_slope` is its derivative.
template <class B>
concept TokenLossBalancer = std::is_trivially_copyable_v<B> && requires(const B balancer) {
  { balancer.token_loss(0.0f) } -> std::convertible_to<float>;
  { balancer.token_slope(0.0f) } -> std::convertible_to<float>;
};

/// A loss per token that depends on the entropy of its softmax, -sum_i p_i log p_i; `entropy_slope` is its derivative. The softmax is that of the logits,
/// whatever the scoring; logits that are not finite take no part.
template <class B>
concept EntropyLossBalancer = std::is_trivially_copyable_v<B> && requires(const B balancer) {
  { balancer.entropy_loss(0.0f) } -> std::convertible_to<float>;
  { balancer.entropy_slope(0.0f) } -> std::convertible_to<float>;
};

/// Several balancers as one; see balancer/combine.hpp.
template <class B>
concept CombinedBalancer = requires {
  typename B::is_combination;
};

/// A balancer that does nothing says so.
template <class B>
concept IdleBalancer = requires {
  typename B::is_idle;
};

/// marks_balanced_tokens: calls say which tokens are balanced (BalancedTokens); false where the policy does not say.
template <class B>
inline constexpr bool marks_balanced_tokens = false;
template <class B>
  requires requires {
    B::marks_balanced_tokens;
  }
inline constexpr bool marks_balanced_tokens<B> = B::marks_balanced_tokens;

/// What a Router takes as balancer: one or more of the parts above, a combination, or nothing at all.
template <class B>
concept BalancerPolicy = std::is_trivially_copyable_v<B> &&
    (LossBalancer<B> || BiasBalancer<B> || TokenLossBalancer<B> || EntropyLossBalancer<B> || CombinedBalancer<B> ||
     IdleBalancer<B>);

/// A balancer that tells experts that compute from the last `zero_experts`, which compute nothing (balancer/with_zero_computation.hpp).
template <class B>
concept KnowsZeroExperts = requires(const B balancer) {
  balancer.zero_experts;
  balancer.computed_per_token;
};

/// The scope of a loss; micro_batch where the policy does not say.
template <class B>
inline constexpr LossScope loss_scope = LossScope::micro_batch;
template <class B>
  requires requires {
    B::scope;
  }
inline constexpr LossScope loss_scope<B> = B::scope;

/// Which micro-batches' assignments F of a global-batch loss counts, on all ranks: those of the step so far (Algorithm 1's buffer), or the
/// current one only. All global-batch losses of one router read the same.
enum class GlobalBatchWindow : std::uint8_t { step, micro_batch };

/// The window of a global-batch loss, its `window` or that of the loss that it wraps; the step where the policy does not say.
template <class B>
[[nodiscard]] constexpr GlobalBatchWindow loss_window(const B& balancer) {
  if constexpr (requires { balancer.window; }) {
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(balancer.window)>, GlobalBatchWindow>,
                  "the balancer's window, which the library reads, is not a moe_balance::GlobalBatchWindow");
    return balancer.window;
  } else if constexpr (requires { balancer.loss; })
    return loss_window(balancer.loss);
  else
    return GlobalBatchWindow::step;
}

/// Whether a loss counts a plain top-k of the scores instead of the routing; false where the policy does not say.
template <class B>
inline constexpr bool counts_plain_top_k = false;
template <class B>
  requires requires {
    B::counts_plain_top_k;
  }
inline constexpr bool counts_plain_top_k<B> = B::counts_plain_top_k;

/// How many experts of the plain top-k such a loss counts, the first ones, 1 to K; 0, which is K, where the policy does not say.
template <class B>
inline constexpr int plain_choices = 0;
template <class B>
  requires requires {
    B::plain_choices;
  }
inline constexpr int plain_choices<B> = B::plain_choices;

/// Whether all experts on one of a loss's `int devices`, equal blocks of experts, have one slope. Of the library's own classes: one derived from them may do otherwise.
template <class B>
inline constexpr bool has_slopes_of_devices = false;

/// Whether a loss of a micro-batch or a sequence counts arrivals at its `int devices`, equal blocks of experts: its LoadView's count(expert) is how many tokens have
/// the expert as their first, in the order of their slots, of those on its device, so that the sum over a device's experts is how many tokens reach it.
/// total() stays that of the assignments. False where the policy does not say.
template <class B>
inline constexpr bool counts_arrivals = false;
template <class B>
  requires requires {
    B::counts_arrivals;
  }
inline constexpr bool counts_arrivals<B> = B::counts_arrivals;

MOEB_NAMESPACE_END
