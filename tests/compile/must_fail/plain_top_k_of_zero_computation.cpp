// EXPECT: put WithZeroComputation around FromPlainTopK, not into it
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::FromPlainTopK{mb::WithZeroComputation{mb::AuxLoss{}, 2, 1.0f}}};
