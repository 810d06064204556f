// EXPECT: needs scores that are never negative
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::SoftmaxOverSelected{}, mb::TopK<2>{}, mb::MultiplicativeBias{mb::LossFreeBias{}}};
