// MutualInformationLoss: -coefficient * the mutual information of token and expert, which is the entropy of the mean probabilities P minus the mean over tokens
// of their own entropies: P shall be even, and each token decided. Two losses in one: of P, coefficient * sum_i P_i log P_i, and of each token's entropy.
// Source: Shen et al. 2023, ModuleFormer, arXiv 2306.04640. The entropy of the whole is the softmax's of the logits: choose it with Softmax.
#pragma once

#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <string>

MOEB_NAMESPACE_BEGIN

struct MutualInformationLoss {
  static constexpr LossScope scope = LossScope::micro_batch;

  float coefficient = 1e-3f;  ///< multiplies both, in nats

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(is_finite(coefficient), call, ArgumentName("MutualInformationLoss", "coefficient"),
                 std::to_string(coefficient), "finite numbers");
  }

  /// The derivative of P_i log P_i but for a constant, which changes no gradient, because probabilities sum to 1.
  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const {
    constexpr float smallest = 0x1p-64f;  // an expert that nobody likes at all
    return mul(coefficient, log(larger_of(load.probability(expert), smallest)));
  }
  /// See EntropyLossBalancer.
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real entropy_loss(Real entropy) const {
    return mul(static_cast<Real>(coefficient), entropy);
  }
  /// See EntropyLossBalancer.
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real entropy_slope(Real /*entropy*/) const {
    return static_cast<Real>(coefficient);
  }
};
static_assert(LossBalancer<MutualInformationLoss> && EntropyLossBalancer<MutualInformationLoss>);

MOEB_NAMESPACE_END
