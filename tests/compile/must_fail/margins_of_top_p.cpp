// EXPECT: a rule that reads margins .BiasFromMargins. needs a plain top-k: TopK
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Sigmoid{}, mb::TopP<2>{}, mb::QuantileBias{}};
