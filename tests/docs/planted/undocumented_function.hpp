// EXPECT: unheard_of.*is not documented
// A header as this project writes them, but for one function.
#pragma once

namespace moe_balance {

/// Documented.
int documented();

int unheard_of();

}  // namespace moe_balance
