// EXPECT: losses from a plain top-k .FromPlainTopK. all count as many of its experts, 1 to K
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::FromPlainTopK<mb::AuxLoss, 3>{}};
