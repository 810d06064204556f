// FromPlainTopK<Loss>: the same loss with f taken from a plain top-k of the scores, without bias, groups or replay, instead of the actual
// routing. P is as before.
// Source: Megatron-Core's auxiliary losses (#2767, #5195); DeepSeek-V3, arXiv 2412.19437, eq. (18). Choose it to do as they, or to keep a loss
// independent of the bias that it is combined with; the default, the actual routing, is what Switch Transformer, DeepSeek-V2 and others define.
// FromPlainTopK<Loss, 1> counts each token's best expert only: f of GShard (Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1) and of DeepSpeed's top-2
// gates.
// All losses of a router count the same way. With a GlobalBatchLoss that reads the step, `load` holds these counts, so that no bias can share it (one of
// GlobalBatchWindow::micro_batch does not read it, and it has the routing's).
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/balancer_concepts.hpp>
#include <moe_balance/requirements.hpp>

MOEB_NAMESPACE_BEGIN

/// `Choices`: how many experts of the plain top-k count, the best ones; 0: all K. f_i is count / (Choices T) then, or Choices times that by LossScale::per_token.
template <class Loss, int Choices = 0>
struct FromPlainTopK {
  static_assert(LossBalancer<Loss>, "the loss of FromPlainTopK lacks: balancer.slope(expert, load) const -> float");
  static_assert(requirements::of_balancer<Loss>());
  static_assert(
      !BiasBalancer<Loss> && !TokenLossBalancer<Loss> && !EntropyLossBalancer<Loss>,
      "FromPlainTopK would leave out the loss's next_bias, token_loss or entropy_loss: give them to Combine beside it");
  static_assert(!counts_arrivals<Loss>,
                "FromPlainTopK would leave out which devices the loss counts arrivals at: give it to Combine beside it");
  static_assert(Choices >= 0, "FromPlainTopK counts 1 to K experts of a token, or 0 for K");
  static_assert(!counts_plain_top_k<Loss> || plain_choices<Loss> == Choices,
                "FromPlainTopK is around a loss that counts another number of a plain top-k's experts");
  static_assert(!KnowsZeroExperts<Loss>, "put WithZeroComputation around FromPlainTopK, not into it");
  static constexpr bool counts_plain_top_k = true;
  static constexpr int plain_choices = Choices;  ///< see moe_balance::plain_choices
  static constexpr LossScope scope = loss_scope<Loss>;

  Loss loss{};  ///< what reads the counts

  /// As the loss, if it has that.
  void check(const char* call) const { check_options(call, loss); }
  /// As the loss, if it has that.
  void check(const char* call, int experts, int k) const { check_options(call, loss, experts, k); }

  [[nodiscard]] MOEB_INLINE float slope(int expert, const LoadView& load) const { return loss.slope(expert, load); }
  /// As the loss, if it has that.
  [[nodiscard]] MOEB_INLINE double value(double sum, const LoadView& load) const requires ValuedLoss<Loss> {
    return loss.value(sum, load);
  }
};
template <class Loss>
FromPlainTopK(Loss) -> FromPlainTopK<Loss>;

MOEB_NAMESPACE_END
