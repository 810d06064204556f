// EXPECT: unable to resolve reference.*NoSuchPolicy
// A comment that refers to what is not there.
#pragma once

namespace moe_balance {

/// As \ref moe_balance::NoSuchPolicy has it.
int documented();

}  // namespace moe_balance
