// EXPECT: DeviceLoss would mix experts that compute and others: put WithZeroComputation around it
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::DeviceLoss{mb::WithZeroComputation{mb::AuxLoss{}, 2, 1.0f}, 2}};
