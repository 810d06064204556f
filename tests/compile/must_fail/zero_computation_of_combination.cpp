// EXPECT: WithZeroComputation takes one balancer: give Combine one around each part
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::WithZeroComputation{mb::Combine{mb::AuxLoss{}, mb::LossFreeBias{}}, 2, 1.0f}};
