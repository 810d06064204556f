// EXPECT: the balancer of WithZeroComputation has a loss of probabilities
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::WithZeroComputation{mb::ImportanceLoss{}, 2, 1.0f}};
