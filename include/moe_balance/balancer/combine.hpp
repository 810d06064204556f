// Combine<A, B, ...>: several balancers as one, each with its own coefficient; their losses add. DeepSeek-V3 is LossFreeBias with a
// SequenceLoss of 1e-4, Qwen3 a GlobalBatchLoss with a ZLoss. At most one part may have a bias.
#pragma once

#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/requirements.hpp>

#include <concepts>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class... Parts>
struct Combine;

/// A single part.
template <class First>
struct Combine<First> {
  static_assert(requirements::of_balancer<First>() && BalancerPolicy<First>);
  using is_combination = void;
  First first{};  ///< keeps its own coefficient

  /// Each part with its defaults.
  constexpr Combine() = default;
  /// From its part.
  MOEB_INLINE constexpr explicit Combine(First part) : first(part) {}
};

/// A part and the others.
template <class First, class... Rest>
  requires(sizeof...(Rest) > 0)
struct Combine<First, Rest...> {
  static_assert(requirements::of_balancer<First>() && BalancerPolicy<First>);
  using is_combination = void;
  First first{};            ///< keeps its own coefficient
  Combine<Rest...> rest{};  ///< the other parts

  /// Each part with its defaults.
  constexpr Combine() = default;
  /// From its parts.
  MOEB_INLINE constexpr explicit Combine(First part, Rest... others) : first(part), rest(others...) {}
};
template <class... Parts>
Combine(Parts...) -> Combine<Parts...>;

/// Calls f(part) for each elementary balancer inside `balancer`, in order.
template <class Balancer, class Function>
MOEB_INLINE constexpr void for_each_part(const Balancer& balancer, Function&& f) {
  if constexpr (CombinedBalancer<Balancer>) {
    for_each_part(balancer.first, f);
    if constexpr (requires { balancer.rest; }) for_each_part(balancer.rest, f);
  } else {
    f(balancer);
  }
}

/// A slope that overflows pulls nowhere.
template <class Real>
[[nodiscard]] MOEB_INLINE Real finite_slope(Real slope) {
  return choose(is_finite(slope), slope, Real(0));
}

/// A token loss and its derivative; a balancer written for float only serves double too, at float's precision.
template <class Part, class Real>
[[nodiscard]] MOEB_INLINE Real token_loss_of(const Part& part, Real log_sum_exp) {
  if constexpr (requires {
                  { part.token_loss(log_sum_exp) } -> std::same_as<Real>;
                })
    return part.token_loss(log_sum_exp);
  else
    return static_cast<Real>(part.token_loss(static_cast<float>(log_sum_exp)));
}
/// See token_loss_of.
template <class Part, class Real>
[[nodiscard]] MOEB_INLINE Real token_slope_of(const Part& part, Real log_sum_exp) {
  Real slope;
  if constexpr (requires {
                  { part.token_slope(log_sum_exp) } -> std::same_as<Real>;
                })
    slope = part.token_slope(log_sum_exp);
  else
    slope = static_cast<Real>(part.token_slope(static_cast<float>(log_sum_exp)));
  return finite_slope(slope);
}

/// The same of an entropy loss.
template <class Part, class Real>
[[nodiscard]] MOEB_INLINE Real entropy_loss_of(const Part& part, Real entropy) {
  if constexpr (requires {
                  { part.entropy_loss(entropy) } -> std::same_as<Real>;
                })
    return part.entropy_loss(entropy);
  else
    return static_cast<Real>(part.entropy_loss(static_cast<float>(entropy)));
}
/// See token_slope_of.
template <class Part, class Real>
[[nodiscard]] MOEB_INLINE Real entropy_slope_of(const Part& part, Real entropy) {
  Real slope;
  if constexpr (requires {
                  { part.entropy_slope(entropy) } -> std::same_as<Real>;
                })
    slope = part.entropy_slope(entropy);
  else
    slope = static_cast<Real>(part.entropy_slope(static_cast<float>(entropy)));
  return finite_slope(slope);
}

/// Checks the bins that an elementary balancer's rule counts margins in, if it does: memory is written by them. Errors: InvalidArgument.
template <class Balancer>
void check_bins(const char* call, const Balancer& balancer) {
  if constexpr (BiasFromMargins<Balancer>) {
    const int bins = static_cast<int>(balancer.bins);
    MOEB_EXPECTS(bins >= 1 && bins <= max_bins, call, "balancer's bins", bins, "1 to ", max_bins);
  }
}

/// Checks a number of devices that hold equal blocks of experts. Errors: InvalidArgument.
template <class Name>
void check_devices(const char* call, const Name& name, int devices, int experts) {
  MOEB_EXPECTS(devices >= 1 && devices <= experts && experts % devices == 0, call, name, devices, "a divisor of the ",
               experts, " experts");
}

/// Checks the options of each part that has a check(call) for them, before a call.
template <class Balancer>
void check_options(const char* call, const Balancer& balancer) {
  if constexpr (CombinedBalancer<Balancer>) {
    check_options(call, balancer.first);
    if constexpr (requires { balancer.rest; }) check_options(call, balancer.rest);
  } else {
    if constexpr (requires { balancer.check(call); }) balancer.check(call);
    check_bins(call, balancer);
  }
}
/// The same before a call that routes to k of so many experts: a part's check(call, experts, k) or check(call, experts) takes the place of its check(call).
template <class Balancer>
void check_options(const char* call, const Balancer& balancer, int experts, int k) {
  if constexpr (CombinedBalancer<Balancer>) {
    check_options(call, balancer.first, experts, k);
    if constexpr (requires { balancer.rest; }) check_options(call, balancer.rest, experts, k);
  } else {
    if constexpr (requires { balancer.check(call, experts, k); })
      balancer.check(call, experts, k);
    else if constexpr (requires { balancer.check(call, experts); })
      balancer.check(call, experts);
    else if constexpr (requires { balancer.check(call); })
      balancer.check(call);
    check_bins(call, balancer);
    if constexpr (counts_arrivals<Balancer>) check_devices(call, "balancer's devices", balancer.devices, experts);
  }
}

/// The options of the rules alone, beside so many experts: update reads no loss. Not by for_each_part, which is device code, too.
template <class Balancer>
void check_rules(const char* call, const Balancer& balancer, int experts, int k) {
  if constexpr (CombinedBalancer<Balancer>) {
    check_rules(call, balancer.first, experts, k);
    if constexpr (requires { balancer.rest; }) check_rules(call, balancer.rest, experts, k);
  } else if constexpr (BiasBalancer<Balancer>) {
    check_options(call, balancer, experts, k);
  }
}

/// What a balancer, elementary or combined, is made of.
template <class Balancer>
struct BalancerTraits {
  static constexpr int biases = BiasBalancer<Balancer> ? 1 : 0;
  static constexpr int bias_memory = moe_balance::bias_memory<Balancer>;
  static constexpr bool bias_is_factor = biases == 1 && moe_balance::bias_is_factor<Balancer>;
  static constexpr bool reads_margins = BiasFromMargins<Balancer>;
  static constexpr bool reads_scores = reads_margins && margins_are_scores<Balancer>;
  static constexpr int losses = LossBalancer<Balancer> ? 1 : 0;
  static constexpr int entropy_losses = EntropyLossBalancer<Balancer> ? 1 : 0;
  static constexpr int token_losses = (TokenLossBalancer<Balancer> ? 1 : 0) + entropy_losses;  ///< of either kind
  static constexpr bool reads_sequences = losses == 1 && loss_scope<Balancer> == LossScope::sequence;
  static constexpr bool reads_global_batch = losses == 1 && loss_scope<Balancer> == LossScope::global_batch;
  static constexpr int plain_losses = losses == 1 && counts_plain_top_k<Balancer> ? 1 : 0;
  static constexpr int plain_choices = plain_losses == 1 ? moe_balance::plain_choices<Balancer> : 0;
  static constexpr bool plain_choices_agree = true;
  static constexpr int arrival_losses = losses == 1 && counts_arrivals<Balancer> ? 1 : 0;
  static constexpr bool marks_tokens = marks_balanced_tokens<Balancer>;
};
template <class First>
struct BalancerTraits<Combine<First>> : BalancerTraits<First> {};
template <class First, class... Rest>
  requires(sizeof...(Rest) > 0)
struct BalancerTraits<Combine<First, Rest...>> {
  using A = BalancerTraits<First>;
  using B = BalancerTraits<Combine<Rest...>>;
  static constexpr int biases = A::biases + B::biases;
  static constexpr int bias_memory = A::bias_memory + B::bias_memory;
  static constexpr bool bias_is_factor = A::bias_is_factor || B::bias_is_factor;
  static constexpr bool reads_margins = A::reads_margins || B::reads_margins;
  static constexpr bool reads_scores = A::reads_scores || B::reads_scores;
  static constexpr int losses = A::losses + B::losses;
  static constexpr int entropy_losses = A::entropy_losses + B::entropy_losses;
  static constexpr int token_losses = A::token_losses + B::token_losses;
  static constexpr bool reads_sequences = A::reads_sequences || B::reads_sequences;
  static constexpr bool reads_global_batch = A::reads_global_batch || B::reads_global_batch;
  static constexpr int plain_losses = A::plain_losses + B::plain_losses;
  static constexpr int plain_choices = A::plain_losses > 0 ? A::plain_choices : B::plain_choices;
  static constexpr bool plain_choices_agree =
      A::plain_choices_agree && B::plain_choices_agree &&
      (A::plain_losses == 0 || B::plain_losses == 0 || A::plain_choices == B::plain_choices);
  static constexpr int arrival_losses = A::arrival_losses + B::arrival_losses;
  static constexpr bool marks_tokens = A::marks_tokens || B::marks_tokens;
};

/// How many experts of a plain top-k the losses of a router of K count.
template <class Balancer, int K>
inline constexpr int counted_plain_choices =
    BalancerTraits<Balancer>::plain_choices == 0 ? K : BalancerTraits<Balancer>::plain_choices;

/// Whether update leaves the part's bias as it is.
template <class Part>
[[nodiscard]] MOEB_INLINE constexpr bool is_frozen(const Part& part) {
  if constexpr (requires { part.frozen; }) {
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(part.frozen)>, bool>,
                  "the balancer's frozen, which the library reads, is not a bool");
    return part.frozen;
  } else {
    static_assert(
        !requires { &Part::frozen; }, "the balancer's frozen, which the library reads, is not a bool");
    return false;
  }
}

/// The bins in which a balancer's rule counts margins; 0 where it reads none.
template <class Balancer>
[[nodiscard]] MOEB_INLINE constexpr int bins_of(const Balancer& balancer) {
  int bins = 0;
  for_each_part(balancer, [&](const auto& part) MOEB_LAMBDA {
    if constexpr (BiasFromMargins<std::remove_cvref_t<decltype(part)>>) bins = static_cast<int>(part.bins);
  });
  return bins;
}

/// Whether forward counts margins: not for a bias that stays.
template <class Balancer>
[[nodiscard]] MOEB_INLINE constexpr bool counts_margins(const Balancer& balancer) {
  bool counts = false;
  for_each_part(balancer, [&](const auto& part) MOEB_LAMBDA {
    if constexpr (BiasFromMargins<std::remove_cvref_t<decltype(part)>>) counts = !is_frozen(part);
  });
  return counts;
}

/// How many global-batch losses inside a balancer read the step, and how many the current micro-batch only.
struct WindowCount {
  int step = 0;
  int micro_batch = 0;
};
/// Over all parts.
template <class Balancer>
[[nodiscard]] constexpr WindowCount count_windows(const Balancer& balancer) {
  if constexpr (CombinedBalancer<Balancer>) {
    WindowCount count = count_windows(balancer.first);
    if constexpr (requires { balancer.rest; }) {
      const WindowCount rest = count_windows(balancer.rest);
      count.step += rest.step;
      count.micro_batch += rest.micro_batch;
    }
    return count;
  } else if constexpr (BalancerTraits<Balancer>::reads_global_batch) {
    const bool step = loss_window(balancer) == GlobalBatchWindow::step;
    return {step ? 1 : 0, step ? 0 : 1};
  } else {
    return {};
  }
}

MOEB_NAMESPACE_END
