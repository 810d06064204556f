// EXPECT: the balancer of WithZeroComputation counts arrivals at devices of all experts, of which some compute nothing
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{},
                        mb::WithZeroComputation{mb::CommunicationLoss{mb::AuxLoss{}, 2, 2}, 2, 1.0f}};
