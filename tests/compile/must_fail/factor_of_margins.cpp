// EXPECT: the rule of MultiplicativeBias reads margins, which say what to add to a score
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::MultiplicativeBias{mb::QuantileBias{}}};
