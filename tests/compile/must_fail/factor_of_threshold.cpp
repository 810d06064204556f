// EXPECT: a bias that multiplies is no cutoff, which is what Threshold takes a bias for
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Sigmoid{}, mb::Replay{mb::Threshold<2>{}}, mb::MultiplicativeBias{mb::LossFreeBias{}}};
