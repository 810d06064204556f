// EXPECT: WithCapacity<Replay<S>>
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::Replay<mb::WithCapacity<mb::TopK<2>>>{}};
