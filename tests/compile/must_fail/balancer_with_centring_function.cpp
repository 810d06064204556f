// EXPECT: centring, which the library reads, is not a moe_balance::Centring
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  MOEB_HOST_DEVICE mb::Centring centring() const { return mb::Centring::bias; }
  MOEB_HOST_DEVICE float next_bias(float bias, int, const mb::LoadView&) const { return bias; }
};

void update(const mb::BiasRef& bias, const mb::LoadRef& load) {
  mb::Router{mb::Sigmoid{}, mb::TopK<2>{}, Wrong{}}.update(bias, load, {}, mb::Host{});
}
