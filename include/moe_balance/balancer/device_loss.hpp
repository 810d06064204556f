// DeviceLoss<Loss>: another loss over devices instead of experts: sum_d f'_d P'_d, with f'_d the mean of the loss's slopes over the experts of device d
// and P'_d the sum of their mean probabilities. It asks devices to be equally busy and leaves the experts of one to specialise.
// With AuxLoss: coefficient * sum_d f'_d P'_d of DeepSeekMoE, whose value for balanced devices is the coefficient.
// Experts lie on devices in equal blocks, the first E / D on device 0, as expert parallelism places them. With one device the loss is constant.
// Source: DeepSeekMoE, arXiv 2401.06066, section 3.3 (device-level balance loss); DeepSeek-V2, arXiv 2405.04434, section 2.2.3.
#pragma once

#include <moe_balance/balancer/aux_loss.hpp>
#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/balancer/global_batch_loss.hpp>
#include <moe_balance/balancer/sequence_loss.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/requirements.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// slope(expert, load) is proportional to load.count(expert). Of the library's own classes, each for itself: one derived from them may do otherwise.
template <class Loss>
inline constexpr bool is_proportional_to_count =
    std::is_same_v<Loss, AuxLoss> || std::is_same_v<Loss, SequenceLoss> || std::is_same_v<Loss, GlobalBatchLoss>;

/// The mean of a loss's slopes over the experts from `first` to `first + size`.
template <class Loss>
[[nodiscard]] MOEB_INLINE float mean_slope(const Loss& loss, int first, int size, const LoadView& load) {
  float sum = 0.0f;
  if constexpr (is_proportional_to_count<Loss>) {  // one slope, of an expert that has the tokens of all
    std::int64_t count = 0;
    for (int i = first; i < first + size; ++i) count += load.count(i);
    LoadView joined = load;
    joined.counts = &count;
    sum = loss.slope(0, joined);
  } else {
    for (int i = first; i < first + size; ++i) sum = add(sum, loss.slope(i, load));
  }
  return div(sum, static_cast<float>(size));
}

template <class Loss = AuxLoss>
struct DeviceLoss {
  static_assert(LossBalancer<Loss>, "the loss of DeviceLoss lacks: balancer.slope(expert, load) const -> float");
  static_assert(requirements::of_balancer<Loss>());
  static_assert(
      !BiasBalancer<Loss> && !TokenLossBalancer<Loss> && !EntropyLossBalancer<Loss>,
      "DeviceLoss would leave out the loss's next_bias, token_loss or entropy_loss: give them to Combine beside it");
  static_assert(!counts_arrivals<Loss>,
                "DeviceLoss would leave out which devices the loss counts arrivals at: give it to Combine beside it");
  static_assert(!KnowsZeroExperts<Loss>,
                "DeviceLoss would mix experts that compute and others: put WithZeroComputation around it");
  static constexpr bool counts_plain_top_k = moe_balance::counts_plain_top_k<Loss>;
  static constexpr int plain_choices = moe_balance::plain_choices<Loss>;  ///< see moe_balance::plain_choices
  static constexpr LossScope scope = loss_scope<Loss>;

  Loss loss{};      ///< what is averaged over a device's experts; its coefficient is that of the whole
  int devices = 0;  ///< D, to be given, a divisor of the experts: ranks of expert parallelism, or nodes

  /// Without the experts, as in update: the loss's own options. Errors: InvalidArgument.
  void check(const char* call) const { check_options(call, loss); }
  /// Errors: InvalidArgument.
  void check(const char* call, int experts, int k) const {
    check_devices(call, ArgumentName("DeviceLoss", "devices"), devices, experts);
    check_options(call, loss, experts, k);
  }

  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const {
    const int share =
        load.experts() < devices ? 1 : load.experts() / devices;  // fewer: experts taken together, see WithZeroComputation
    return mean_slope(loss, expert / share * share, share, load);
  }
  /// As the loss, if it has that.
  [[nodiscard]] MOEB_INLINE double value(double sum, const LoadView& load) const requires ValuedLoss<Loss> {
    return loss.value(sum, load);
  }
};
template <class Loss>
DeviceLoss(Loss, int) -> DeviceLoss<Loss>;
static_assert(LossBalancer<DeviceLoss<>>);
/// \cond
template <class Loss>
inline constexpr bool has_slopes_of_devices<DeviceLoss<Loss>> = true;
/// \endcond

MOEB_NAMESPACE_END
