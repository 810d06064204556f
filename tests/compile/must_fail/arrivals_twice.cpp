// EXPECT: at most one loss may count arrivals
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{},
                        mb::Combine{mb::CommunicationLoss{mb::AuxLoss{}, 2, 2}, mb::CommunicationLoss{mb::AuxLoss{}, 4, 2}}};
