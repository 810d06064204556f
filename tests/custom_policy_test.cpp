// A user's own policies on the CPU.
#include "engine_host.hpp"

#include "bodies/custom_policy.hpp"

#include <cmath>

namespace users {

/// s_i = sqrt(x_i) / sum of those that are numbers: NaN for logits below 0.
struct RootShare {
  static constexpr bool normalised = true;
  static constexpr bool non_negative = true;
  template <class Real>
  struct Row {
    Real total;
  };
  template <class TileT, class LayoutT, class Real>
  Row<Real> prepare(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                    mb::Slots<Real, LayoutT>& scores) const {
    mb::for_each_slot(layout, [&](int slot) { scores[slot] = std::sqrt(logits[slot]); });
    const Real total = mb::canonical_sum<Real>(
        tile, layout, [&](int slot, Real sum) { return scores[slot] >= 0 ? sum + scores[slot] : sum; });
    mb::for_each_slot(layout, [&](int slot) { scores[slot] /= total; });
    return {total};
  }
  template <class Real>
  Real score(Real logit, const Row<Real>& row) const {
    return std::sqrt(logit) / row.total;
  }
  template <class TileT, class LayoutT, class Real>
  void backward(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                const mb::Slots<Real, LayoutT>& scores, mb::Slots<Real, LayoutT>& grad, const Row<Real>& /*row*/) const {
    const Real mean =
        mb::canonical_sum<Real>(tile, layout, [&](int slot, Real sum) { return sum + grad[slot] * scores[slot]; });
    mb::for_each_slot(layout, [&](int slot) {
      grad[slot] = scores[slot] > 0 ? (grad[slot] - mean) * scores[slot] / (2 * logits[slot]) : Real(0);
    });
  }
};

}  // namespace users

namespace testing {

TEST_CASE("scores of a user's that are NaN for finite logits take no part in gradients, whatever the number of experts") {
  for (const int experts : {32, 63, 64, 65}) {
    CAPTURE(experts);
    Inputs inputs;
    inputs.tokens = 1;
    inputs.experts = experts;
    for (int e = 0; e < experts; ++e) inputs.logits.push_back(e % 3 == 0 ? -1.0 : e % 7 + 1.0);
    inputs.grad_weights = {1, -2};
    const Outcome outcome =
        train(HostEngine(), mb::Router{users::RootShare{}, mb::TopK<2>{.renormalise = false}, mb::AuxLoss{.coefficient = 1}},
              inputs);
    for (const double gradient : outcome.grad_logits) CHECK(std::isfinite(gradient));
    CHECK(outcome.grad_logits[1] != 0);
  }
}

TEST_CASE_TEMPLATE_INVOKE(custom_scoring, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_nan, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_losses, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_resolution, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_combination, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_bias, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_bias_memory, HostEngine);

}  // namespace testing
