// What a policy must offer. Each concept has a test that a type without one member is refused with a message naming it.
#pragma once

#include <moe_balance/loads.hpp>
#include <moe_balance/numeric/canonical_sum.hpp>
#include <moe_balance/tile/tile.hpp>
#include <moe_balance/views.hpp>

#include <concepts>
#include <cstdint>
#include <type_traits>
#include <utility>

MOEB_NAMESPACE_BEGIN

// Scoring -------------------------------------------------------------------------------------------------------------------

/// Each expert's score from its logit alone: `score = scoring(logit)`, `scoring.derivative(logit, score)` its derivative.
/// Both take and return float; library policies are templates that serve double as well. A policy whose bits shall agree between CPU and GPU
/// computes with mb::mul, add, fma, exp, ...: compilers contract plain a * b + c differently.
template <class S>
concept ElementwiseScoring = std::is_trivially_copyable_v<S> && requires(const S scoring, float logit, float score) {
  { scoring(logit) } -> std::convertible_to<float>;
  { scoring.derivative(logit, score) } -> std::convertible_to<float>;
};

/// Scores that depend on the token's whole row. `prepare` writes a score for each slot and returns what `score` needs to compute any
/// one of them again; `backward` turns dL/dscores into dL/dlogits in place. NaN and -inf logits (padding is one of them) must take no part.
template <class S>
concept RowScoring = std::is_trivially_copyable_v<S> &&
    requires(const S scoring, const SerialTile tile, const Layout<SerialTile, 64> layout,
             const Slots<float, Layout<SerialTile, 64>> in, Slots<float, Layout<SerialTile, 64>> out,
             const typename S::template Row<float> row) {
  { scoring.prepare(tile, layout, in, out) } -> std::same_as<typename S::template Row<float>>;
  { scoring.score(1.0f, row) } -> std::same_as<float>;
  {scoring.backward(tile, layout, in, in, out, row)};
  { S::normalised } -> std::convertible_to<bool>;
};

/// What a Router takes as scoring.
template <class S>
concept ScoringPolicy = ElementwiseScoring<S> || RowScoring<S>;

/// Optional traits of a scoring, all false when absent. A derived class has its base's members: promises of the library's own classes are therefore not
/// members, and hold for these classes only.
/// normalised: a token's scores sum to 1, so that they are the loss's probabilities as they are.
template <class S>
inline constexpr bool is_normalised = false;
template <class S>
  requires requires {
    S::normalised;
  }
inline constexpr bool is_normalised<S> = S::normalised;
/// non_negative: a score is never below +0 (nor -0), and with `normalised` never above 1 by more than roundings; a logit that is not finite
/// has score 0, infinity or NaN then. GPU kernels rank and add up such scores with fewer instructions.
template <class S>
inline constexpr bool is_non_negative = false;
template <class S>
  requires requires {
    S::non_negative;
  }
inline constexpr bool is_non_negative<S> = S::non_negative;
/// finite_scores: where all of a token's logits are finite, so are its scores. The CPU's backward pass looks at each of them otherwise.
template <class S>
inline constexpr bool is_finitely_scoring = false;
template <class S>
  requires requires {
    S::finite_scores;
  }
inline constexpr bool is_finitely_scoring<S> = S::finite_scores;
/// over_selected: experts are ranked by logit + bias, and weights are computed among the chosen logits only.
template <class S>
inline constexpr bool is_over_selected = false;
template <class S>
  requires requires {
    S::over_selected;
  }
inline constexpr bool is_over_selected<S> = S::over_selected;

// TopK ----------------------------------------------------------------------------------------------------------------------

/// How chosen scores become weights: divided by their sum (+ 1e-20) when K > 1, then multiplied.
struct Weighting {
  bool renormalise = true;      ///< where K > 1
  float scaling_factor = 1.0f;  ///< multiplies every weight
};

/// The most experts that a token may have.
inline constexpr int max_top_k = 32;

/// Chooses K experts, 1 to max_top_k, from ranking keys. `narrow` may exclude experts before the K best are taken, and leaves at least K; `check` throws for shapes that the
/// policy's options do not fit.
template <class P>
concept TopKPolicy = std::is_trivially_copyable_v<P> &&
    requires(const P policy, const SerialTile tile, const Layout<SerialTile, 64> layout,
             Slots<std::int32_t, Layout<SerialTile, 64>> keys) {
  typename std::integral_constant<int, P::k>;
  requires P::k >= 1 && P::k <= max_top_k;
  {policy.template narrow<float>(tile, layout, keys)};
  {policy.check("", 1)};
  { policy.weighting() } -> std::convertible_to<Weighting>;
};

/// replays: ids may come from the caller (args.replay).
template <class P>
inline constexpr bool is_replaying = false;
template <class P>
  requires requires {
    P::replays;
  }
inline constexpr bool is_replaying<P> = P::replays;

/// narrows = false: `narrow` looks at no key, so that padding need not be excluded before it where it ranks last anyway. Of TopK it is known without the member,
/// which a derived class with a `narrow` of its own would have.
template <class P>
inline constexpr bool is_narrowing = true;
template <class P>
  requires requires {
    P::narrows;
  }
inline constexpr bool is_narrowing<P> = P::narrows;

/// Whether `narrow_side_by_side` is `narrow` for rows side by side on a CPU thread. Of classes that say so themselves, each for itself: one derived from
/// them may narrow otherwise.
template <class P>
inline constexpr bool narrows_side_by_side = false;

/// One of the K experts that rank best for a token, as a selection with `keeps` sees it: a token then keeps those that it says, in the order of their rank, and
/// the others' slots are empty (id -1, weight 0, no count). An expert whose logit is -infinity is not asked for, nor kept, while another of the K is there. Of
/// a token whose K weights are not finite all stay.
template <class Real>
struct RankedExpert {
  Real score;  ///< of the scoring; of SoftmaxOverSelected its share among the K
  Real
      ranking;  ///< what it was ranked by: score + bias, or logit + bias where the scoring ranks by logits; score * (1 + bias) by a bias_is_factor
  Real before;  ///< sum of the scores of those that rank before it
  Real best;    ///< the score of the first that is asked for
  int rank;     ///< 0 to K - 1
};

/// Selections that may keep fewer than K experts: `bool keeps(const RankedExpert<Real>&) const`.
template <class P>
inline constexpr bool keeps_fewer = requires(const P policy, const RankedExpert<float> expert) {
  { policy.keeps(expert) } -> std::convertible_to<bool>;
};
/// Whether a selection takes a bias for minus a cutoff, so that it must be added; false where neither the policy nor the selection inside it says so.
template <class P>
inline constexpr bool reads_cutoffs = [] {
  if constexpr (requires { P::reads_cutoffs; })
    return P::reads_cutoffs;
  else if constexpr (requires(const P policy) { policy.selection; })
    return reads_cutoffs<std::remove_cvref_t<decltype(std::declval<P>().selection)>>;
  else
    return false;
}();
/// Asks it; one written for float only serves double, too, at float's precision.
template <class P, class Real>
[[nodiscard]] MOEB_INLINE bool is_kept(const P& policy, const RankedExpert<Real>& expert) {
  if constexpr (requires { policy.keeps(expert); })
    return policy.keeps(expert);
  else
    return policy.keeps(RankedExpert<float>{static_cast<float>(expert.score), static_cast<float>(expert.ranking),
                                            static_cast<float>(expert.before), static_cast<float>(expert.best),
                                            expert.rank});
}

/// looks_across_tokens: a pass over all tokens follows the routing kernel (dispatch/capacity.hpp); the policy brings workspace_bytes,
/// check_memory, ids_before, after_forward and before_backward.
template <class P>
inline constexpr bool looks_across_tokens = false;
template <class P>
  requires requires {
    P::looks_across_tokens;
  }
inline constexpr bool looks_across_tokens<P> = P::looks_across_tokens;

// Balancer ------------------------------------------------------------------------------------------------------------------

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

// Sync ----------------------------------------------------------------------------------------------------------------------

/// Knows its ranks. A policy is a handle that is cheap to copy; what it needs while sums are under way lies in an object that all copies
/// share. Kernels never see it.
template <class S>
concept SyncPolicy = std::copy_constructible<S> && requires(const S sync) {
  { sync.ranks() } -> std::convertible_to<int>;
};

/// Sums integer counts over ranks, in the order of `place` (a CUDA stream or Host). Asserted by the calls, for the place they run in:
/// a policy may serve one only.
/// `start` may return before the sum is there, and others may be started before it is finished; until then `counts` belongs to the
/// policy. What is enqueued or run after `finish` of the same pointer sees the sum in `counts`; `finish` of a pointer that no sum
/// is under way for does nothing. All ranks start the same sums in the same order. Optional: `sync.is_started(counts)`, whether one is.
template <class S, class Place>
concept SyncPolicyOn = SyncPolicy<S> && requires(const S sync, std::int64_t* counts, std::int64_t n, const Place place) {
  {sync.start(counts, n, place)};
  {sync.finish(counts, place)};
};

/// What a kernel may read to learn that a sum over ranks has failed, though its stream went on: not 0 then. Null where the policy has no
/// `failure_flag()`: its finish raises instead.
template <class S>
[[nodiscard]] const std::int32_t* failure_flag_of(const S& sync) {
  if constexpr (requires { sync.failure_flag(); })
    return sync.failure_flag();
  else
    return nullptr;
}

/// Whether a sum of `counts` has been started and not been finished, where the policy can tell.
template <class S>
[[nodiscard]] bool may_be_started(const S& sync, const std::int64_t* counts) {
  if constexpr (requires { sync.is_started(counts); })
    return sync.is_started(counts);
  else
    return true;
}

MOEB_NAMESPACE_END
