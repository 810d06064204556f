// EXPECT: Compound moe_balance::Nameless is not documented
#pragma once

namespace moe_balance {

/// The opening comment may speak for the first type only.
struct Documented {};

struct Policy {};

struct Nameless {
  int rows = 0;  ///< R
};

}  // namespace moe_balance
