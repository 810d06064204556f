// EXPECT: unit_not_said.*is not documented
// A struct of arguments with a field that nothing is said of.
#pragma once

namespace moe_balance {

/// Arguments.
struct PlantedArgs {
  int rows = 0;  ///< R
  int unit_not_said = 0;
};

}  // namespace moe_balance
