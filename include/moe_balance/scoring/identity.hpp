// Identity: s = x. For research and for routers whose scores are computed elsewhere.
// A balancing loss normalises scores to sum to 1, which has a meaning only for scores >= 0.
#pragma once

#include <moe_balance/scoring_concepts.hpp>

MOEB_NAMESPACE_BEGIN

struct Identity {
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real operator()(Real logit) const {
    return logit;
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real derivative(Real /*logit*/, Real /*score*/) const {
    return Real(1);
  }
};
static_assert(ElementwiseScoring<Identity>);

MOEB_NAMESPACE_END
