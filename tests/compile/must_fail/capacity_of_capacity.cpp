// EXPECT: one capacity
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::WithCapacity<mb::WithCapacity<mb::TopK<2>>>{}};
