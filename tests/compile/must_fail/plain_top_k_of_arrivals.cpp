// EXPECT: FromPlainTopK would leave out which devices the loss counts arrivals at: give it to Combine beside it
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::FromPlainTopK{mb::CommunicationLoss{mb::AuxLoss{}, 2, 2}}};
