// EXPECT: either all losses, but those that count arrivals, count a plain top-k
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

const mb::Router router{
    mb::Softmax{}, mb::TopK<2>{},
    mb::Combine{mb::FromPlainTopK{mb::AuxLoss{}}, mb::CommunicationLoss{mb::AuxLoss{}, 2, 2}, mb::SequenceLoss{}}};
