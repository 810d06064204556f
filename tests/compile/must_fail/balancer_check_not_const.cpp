// EXPECT: the balancer's check is neither: balancer.check\(call\) const, nor: balancer.check\(call, experts\) const
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Unchecked {
  MOEB_HOST_DEVICE float slope(int, const mb::LoadView&) const { return 1.0f; }
  void check(const char*) {}
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Unchecked{}};
