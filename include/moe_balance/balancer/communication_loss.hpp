// CommunicationLoss<Loss>: another loss over devices, of which each counts the tokens that it receives at all, whatever the number of its experts that they chose:
// with AuxLoss coefficient * sum_d f''_d P''_d, f''_d = D / (M T) * the tokens that have an expert of device d, P''_d the sum of its experts' mean probabilities.
// A token that goes to a device is sent there once; one that a capacity drops there is counted all the same, as in every loss. Where selection keeps M devices (GroupLimitedTopK), what a device sends is bounded by that; this loss evens
// out what devices receive. Balanced, each token reaching M devices, it is the coefficient (M times that with LossScale::per_token); it is less where tokens reach fewer, as with TopP.
// Experts lie on devices in equal blocks, the first E / D on device 0, as expert parallelism places them.
// Source: DeepSeek-V2, arXiv 2405.04434, section 2.2.3 (communication balance loss).
#pragma once

#include <moe_balance/balancer/aux_loss.hpp>
#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/balancer/sequence_loss.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class Loss = AuxLoss>
struct CommunicationLoss {
  static_assert(std::is_same_v<Loss, AuxLoss> || std::is_same_v<Loss, SequenceLoss>,
                "the loss of CommunicationLoss is neither AuxLoss nor SequenceLoss: a load says nothing of devices");
  static constexpr bool counts_arrivals = true;  ///< see moe_balance::counts_arrivals
  static constexpr LossScope scope = loss_scope<Loss>;

  Loss loss{};      ///< what is taken over devices; its coefficient is that of the whole
  int devices = 0;  ///< D, to be given, a divisor of the experts: ranks of expert parallelism, or nodes
  /// M, to be given, 1 to the smaller of D and K: those that a token's experts lie on; groups_kept where D is the groups.
  int devices_per_token = 0;

  /// Without the experts, as in update: the loss's own options. Errors: InvalidArgument.
  void check(const char* call) const { check_options(call, loss); }
  /// Errors: InvalidArgument.
  void check(const char* call, int experts, int k) const {
    check_devices(call, ArgumentName("CommunicationLoss", "devices"), devices, experts);
    const int most = std::min(devices, k);
    MOEB_EXPECTS(devices_per_token >= 1 && devices_per_token <= most, call,
                 ArgumentName("CommunicationLoss", "devices_per_token"), devices_per_token, "1 to ", most,
                 ", the smaller of the devices and K");
    check_options(call, loss, experts, k);
  }

  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const {
    const int size = load.experts() / devices;
    const int first = expert / size * size;
    std::int64_t tokens = 0;
    for (int i = first; i < first + size; ++i) tokens += load.count(i);
    LoadView of_device = load;  // one expert of D that tokens choose M of
    of_device.counts = &tokens;
    of_device.expert_count = devices;
    of_device.assignments_per_token = devices_per_token;
    of_device.assignments = devices_per_token * load.tokens();
    return loss.slope(0, of_device);
  }
};
template <class Loss>
CommunicationLoss(Loss, int, int) -> CommunicationLoss<Loss>;
static_assert(LossBalancer<CommunicationLoss<>>);
/// \cond
template <class Loss>
inline constexpr bool has_slopes_of_devices<CommunicationLoss<Loss>> = true;
/// \endcond

MOEB_NAMESPACE_END
