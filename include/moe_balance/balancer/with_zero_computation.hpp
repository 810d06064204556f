// WithZeroComputation<Balancer>: another balancer in a layer whose last Z experts compute nothing (they return what they are given, or 0), so that
// tokens choose how much is computed for them. On average `computed_per_token` = K_e of a token's K slots shall go to the N = E - Z experts that compute:
// - a bias rule steers each of those to K_e / (K N) of all assignments and leaves the others' bias as it is, which so have the rest;
// - a loss asks the same of P: over the N times K / K_e, and over the others, taken together as one expert, times K / (K - K_e). With AuxLoss it is
//     coefficient * (sum_{i < N} f_i P_i + f_z P_z), f_i = c_i N / (K_e T), f_z = c_z / ((K - K_e) T), c_z and P_z summed over the Z,
//   and with DeviceLoss the first sum is over D groups of experts, f_d = c_d D / (K_e T): LongCat-Flash's. Its balanced value is the coefficient.
// A rule with K_e = K balances the first N alone, whatever keeps tokens from the others: a selection that does not open them yet.
// Source: LongCat-Flash, arXiv 2509.01322, section 2.1 (the bias, whose step is mu (K_e / (K N) - c_i / (K T)), and the loss); experts that compute
// nothing: MoE++, arXiv 2410.07348. PermutationArgs::zero_experts gives such experts no rows, CombineArgs::identity adds up what they return.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/requirements.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

/// A loss's slope must be proportional to the counts, as those of this library are, and not ask which expert it is of: the experts that compute nothing are
/// expert 0 of one. A rule's LoadView has the budget as its total(). Its base is the other balancer, options and all (no final class):
/// WithZeroComputation{LossFreeBias{.update_rate = 1e-3f}, 256, 8.0f}.
template <class Balancer>
struct WithZeroComputation : Balancer {
  static_assert(!CombinedBalancer<Balancer>, "WithZeroComputation takes one balancer: give Combine one around each part");
  static_assert(LossBalancer<Balancer> || BiasBalancer<Balancer>,
                "the balancer of WithZeroComputation lacks: balancer.slope(expert, load) const -> float, or "
                "balancer.next_bias(bias, expert, load) const");
  static_assert(requirements::of_balancer<Balancer>());
  static_assert(!KnowsZeroExperts<Balancer>, "WithZeroComputation is around a balancer that has one around it already");
  static_assert(!ValuedLoss<Balancer> && !EntropyLossBalancer<Balancer>,
                "the balancer of WithZeroComputation has a loss of probabilities, in which counts have no part");
  static_assert(
      !counts_arrivals<Balancer>,
      "the balancer of WithZeroComputation counts arrivals at devices of all experts, of which some compute nothing");
  static_assert(plain_choices<Balancer> == 0,
                "the balancer of WithZeroComputation counts fewer experts than a token has: no part of K slots is theirs");
  static_assert(!BiasFromMargins<Balancer>,
                "the balancer of WithZeroComputation reads margins: a quantile of all experts balances all of them");

  int zero_experts = 0;             ///< Z, to be given: the last so many of E
  float computed_per_token = 0.0f;  ///< K_e, to be given: above 0, below K; K of a bias rule: the last Z are closed

  /// Without the experts, as in start_update. Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(zero_experts >= 1, call, ArgumentName("WithZeroComputation", "zero_experts"), zero_experts, "1 or more");
    MOEB_EXPECTS(computed_per_token > 0.0f && is_finite(computed_per_token), call,
                 ArgumentName("WithZeroComputation", "computed_per_token"), std::to_string(computed_per_token),
                 "above 0 and below K");
    if constexpr (requires { this->centring; }) {
      MOEB_EXPECTS(this->centring == Centring::none, call, ArgumentName("WithZeroComputation", "centring"),
                   static_cast<int>(this->centring), "none: what the biases have in common steers how much is computed");
    }
    check_options(call, static_cast<const Balancer&>(*this));
  }
  /// Errors: InvalidArgument.
  void check(const char* call, int experts, int k) const {
    check(call);
    MOEB_EXPECTS(zero_experts < experts, call, ArgumentName("WithZeroComputation", "zero_experts"), zero_experts, "1 to ",
                 experts - 1, ": one expert at least computes");
    // A loss divides by what is left for the others.
    constexpr bool has_loss = LossBalancer<Balancer>;
    const auto most = static_cast<float>(k);
    MOEB_EXPECTS(computed_per_token < most || (!has_loss && computed_per_token == most), call,
                 ArgumentName("WithZeroComputation", "computed_per_token"), std::to_string(computed_per_token),
                 has_loss ? "above 0 and below K = " : "above 0, at most K = ", k);
    check_options(call, static_cast<const Balancer&>(*this), experts - zero_experts, k);
  }

  /// The loss's among the experts of this one's kind, where those that compute nothing are one, times K / what a token's slots of the kind shall be.
  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const requires LossBalancer<Balancer> {
    const auto k = static_cast<float>(load.top_k());
    LoadView of_kind = load;
    of_kind.expert_count = load.experts() - zero_experts;
    if (expert < of_kind.experts()) return mul(Balancer::slope(expert, of_kind), div(k, computed_per_token));
    std::int64_t count = load.joined_count;
    if (count < 0) {
      count = 0;
      for (int i = of_kind.experts(); i < load.experts(); ++i) count += load.count(i);
    }
    of_kind.counts = &count;
    of_kind.expert_count = 1;
    return mul(Balancer::slope(0, of_kind), div(k, sub(k, computed_per_token)));
  }

  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert,
                                            const LoadView& load) const requires MemorylessBias<Balancer> {
    const LoadView computing = computing_of(load);
    return steers(expert, computing) ? static_cast<float>(Balancer::next_bias(bias, expert, computing)) : bias;
  }
  /// See BiasBalancer.
  [[nodiscard]] MOEB_INLINE auto next_bias(float bias, int expert, const LoadView& load,
                                           const auto& kept) const requires BiasWithMemory<Balancer> {
    const LoadView computing = computing_of(load);
    if (steers(expert, computing)) return Balancer::next_bias(bias, expert, computing, kept);
    BiasStep<Balancer::memory> same{bias, {}};
    for (int n = 0; n < Balancer::memory; ++n) same.memory[n] = kept[n];
    return same;
  }

 private:
  /// The experts that compute, and the assignments that all of them shall have, a whole number.
  [[nodiscard]] MOEB_INLINE LoadView computing_of(const LoadView& load) const {
    const double budget = mul(static_cast<double>(load.total()), static_cast<double>(computed_per_token));
    const double assignments = div(budget, static_cast<double>(load.top_k()));
    LoadView computing = load;
    computing.expert_count = load.experts() - zero_experts;
    computing.assignments = static_cast<std::int64_t>(add(assignments, 0.5));
    return computing;
  }
  /// Whether the rule moves an expert's bias. A target of 0 would be divided by.
  [[nodiscard]] MOEB_INLINE static bool steers(int expert, const LoadView& computing) {
    return expert < computing.experts() && computing.total() > 0;
  }
};
template <class Balancer>
WithZeroComputation(Balancer, int, float) -> WithZeroComputation<Balancer>;
static_assert(BiasBalancer<WithZeroComputation<LossFreeBias>>);

MOEB_NAMESPACE_END
