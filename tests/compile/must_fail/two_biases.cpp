// EXPECT: at most one part of a balancer may have a bias
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

static_assert(mb::BiasBalancer<mb::LossFreeBias>);

const mb::Router router{mb::Sigmoid{}, mb::TopK<2>{}, mb::Combine{mb::LossFreeBias{}, mb::LossFreeBias{}}};
