// EXPECT: counts fewer experts than a token has: no part of K slots is theirs
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::WithZeroComputation{mb::FromPlainTopK<mb::AuxLoss, 1>{}, 2, 1.0f}};
