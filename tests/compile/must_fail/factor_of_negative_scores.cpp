// EXPECT: a bias that multiplies (MultiplicativeBias) needs scores that are never negative (non_negative)
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::SoftmaxOverSelected{}, mb::TopK<2>{}, mb::MultiplicativeBias{mb::LossFreeBias{}}};
