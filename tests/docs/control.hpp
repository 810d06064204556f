// What the planted headers are without their faults: a policy that its file's opening comment describes, and members that a concept asks for.
#pragma once

namespace moe_balance {

/// Documented.
int documented();

struct Policy {
  static constexpr int k = 2;
  int rows = 0;  ///< R

  template <class Real>
  [[nodiscard]] Real operator()(Real logit) const {
    return logit;
  }
};

}  // namespace moe_balance
