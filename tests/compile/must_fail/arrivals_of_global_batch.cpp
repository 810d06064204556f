// EXPECT: the loss of CommunicationLoss is neither AuxLoss nor SequenceLoss: a load says nothing of devices
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::CommunicationLoss{mb::GlobalBatchLoss{}, 2, 2}};
