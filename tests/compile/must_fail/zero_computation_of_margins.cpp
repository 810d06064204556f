// EXPECT: the balancer of WithZeroComputation reads margins: a quantile of all experts balances all of them
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::WithZeroComputation{mb::QuantileBias{}, 2, 1.0f}};
