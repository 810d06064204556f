// GlobalBatchLoss: coefficient * E * sum_i F_i P_i, where F_i is expert i's share of all assignments on all ranks in all
// micro-batches of this step so far (ForwardArgs::load, summed over ranks), and P_i the mean probability in this micro-batch on this
// rank. The mean of the ranks' losses is the loss of the whole batch.
// Every forward of a router with this loss starts a sum over ranks, whether it accumulates or not, and T = 0 takes part: all ranks call forward
// equally often, in the same order. The sum is awaited by what reads F: backward and loss.
// Without `accumulate` (evaluation, recomputation) each rank brings its load as it is: this call's own tokens are in F only if an earlier
// call has put them there.
// Experts may specialise, because no single sequence or micro-batch has to be balanced.
// Source: Qiu et al. 2025, arXiv 2501.11873, eq. (5) and Algorithm 1.
#pragma once

#include <moe_balance/balancer/loss_scale.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

/// paper: as above. megatron_core: 1 / ranks of it, as Megatron-Core's global_aux_loss has it.
enum class GlobalBatchScale : std::uint8_t { paper, megatron_core };

struct GlobalBatchLoss {
  static constexpr LossScope scope = LossScope::global_batch;

  float coefficient = 1e-2f;                                ///< a balanced router's loss
  LossScale scale = LossScale::per_assignment;              ///< whether `coefficient` is that, or a K-th of it
  GlobalBatchScale global_scale = GlobalBatchScale::paper;  ///< the size of the loss
  GlobalBatchWindow window = GlobalBatchWindow::step;       ///< which micro-batches F counts

  /// Errors: InvalidArgument.
  void check(const char* call) const {
    MOEB_EXPECTS(is_finite(coefficient), call, ArgumentName("GlobalBatchLoss", "coefficient"), std::to_string(coefficient),
                 "finite numbers");
    MOEB_EXPECTS(scale <= LossScale::per_token, call, ArgumentName("GlobalBatchLoss", "scale"), static_cast<int>(scale),
                 "per_assignment, per_token");
    MOEB_EXPECTS(global_scale <= GlobalBatchScale::megatron_core, call, ArgumentName("GlobalBatchLoss", "global_scale"),
                 static_cast<int>(global_scale), "paper, megatron_core");
    MOEB_EXPECTS(window <= GlobalBatchWindow::micro_batch, call, ArgumentName("GlobalBatchLoss", "window"),
                 static_cast<int>(window), "step, micro_batch");
  }

  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const {
    const float whole = switch_slope(coefficient, scale, expert, load);
    return global_scale == GlobalBatchScale::paper ? whole : div(whole, static_cast<float>(load.ranks()));
  }
};
static_assert(LossBalancer<GlobalBatchLoss>);

MOEB_NAMESPACE_END
