// DeviceLoss<Loss>: another loss over devices instead of experts: sum_d f'_d P'_d, with f'_d the mean of the loss's slopes over the experts of device d
// and P'_d the sum of their mean probabilities. It asks devices to be equally busy and leaves the experts of one to specialise.
// With AuxLoss: coefficient * sum_d f'_d P'_d of DeepSeekMoE, whose value for balanced devices is the coefficient.
// Experts lie on devices in equal blocks, the first E / D on device 0, as expert parallelism places them.
// Source: DeepSeekMoE, arXiv 2401.06066, section 3.3 (device-level balance loss); DeepSeek-V2, arXiv 2405.04434, eq. (26)-(28).
#pragma once

#include <moe_balance/balancer/aux_loss.hpp>
#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

MOEB_NAMESPACE_BEGIN

template <class Loss = AuxLoss>
struct DeviceLoss {
  static_assert(LossBalancer<Loss>, "the loss of DeviceLoss lacks: balancer.slope(expert, load) const -> float");
  static_assert(!BiasBalancer<Loss> && !TokenLossBalancer<Loss>,
                "DeviceLoss would leave out the loss's next_bias or token_loss: give them to Combine beside it");
  static constexpr bool counts_plain_top_k = moe_balance::counts_plain_top_k<Loss>;
  static constexpr LossScope scope = loss_scope<Loss>;

  Loss loss{};      ///< what is averaged over a device's experts; its coefficient is that of the whole
  int devices = 1;  ///< D, a divisor of the experts: ranks of expert parallelism, or nodes

  /// Without the experts, as in update: the loss's own options. Errors: InvalidArgument.
  void check(const char* call) const { check_options(call, loss); }
  /// Errors: InvalidArgument.
  void check(const char* call, int experts) const {
    MOEB_EXPECTS(devices >= 1 && devices <= experts && experts % devices == 0, call, ArgumentName("DeviceLoss", "devices"),
                 devices, "a divisor of the ", experts, " experts");
    check_options(call, loss, experts);
  }

  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const {
    const int share = load.experts() / devices;
    const int first = expert / share * share;
    float sum = 0.0f;
    for (int i = first; i < first + share; ++i) sum = add(sum, loss.slope(i, load));
    return div(sum, static_cast<float>(share));
  }
};
template <class Loss>
DeviceLoss(Loss, int) -> DeviceLoss<Loss>;
static_assert(LossBalancer<DeviceLoss<>>);

MOEB_NAMESPACE_END
