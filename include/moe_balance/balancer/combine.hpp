// Combine<A, B, ...>: several balancers as one, each with its own coefficient; their losses add. DeepSeek-V3 is LossFreeBias with a
// SequenceLoss of 1e-4, Qwen3 a GlobalBatchLoss with a ZLoss. At most one part may have a bias.
#pragma once

#include <moe_balance/concepts.hpp>

#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <BalancerPolicy... Parts>
struct Combine;

template <BalancerPolicy First>
struct Combine<First> {
  using is_combination = void;
  First first{};

  constexpr Combine() = default;
  MOEB_INLINE constexpr explicit Combine(First part) : first(part) {}
};

template <BalancerPolicy First, BalancerPolicy... Rest>
  requires(sizeof...(Rest) > 0)
struct Combine<First, Rest...> {
  using is_combination = void;
  First first{};
  Combine<Rest...> rest{};

  constexpr Combine() = default;
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

/// What a balancer, elementary or combined, is made of.
template <class Balancer>
struct BalancerTraits {
  static constexpr int biases = BiasBalancer<Balancer> ? 1 : 0;
  static constexpr int losses = LossBalancer<Balancer> ? 1 : 0;
  static constexpr int token_losses = TokenLossBalancer<Balancer> ? 1 : 0;
  static constexpr bool reads_sequences = losses == 1 && loss_scope<Balancer> == LossScope::sequence;
  static constexpr bool reads_global_batch = losses == 1 && loss_scope<Balancer> == LossScope::global_batch;
};
template <class First>
struct BalancerTraits<Combine<First>> : BalancerTraits<First> {};
template <class First, class... Rest>
  requires(sizeof...(Rest) > 0)
struct BalancerTraits<Combine<First, Rest...>> {
  using A = BalancerTraits<First>;
  using B = BalancerTraits<Combine<Rest...>>;
  static constexpr int biases = A::biases + B::biases;
  static constexpr int losses = A::losses + B::losses;
  static constexpr int token_losses = A::token_losses + B::token_losses;
  static constexpr bool reads_sequences = A::reads_sequences || B::reads_sequences;
  static constexpr bool reads_global_batch = A::reads_global_batch || B::reads_global_batch;
};

MOEB_NAMESPACE_END
