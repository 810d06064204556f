// EXPECT: frozen, which the library reads, is not a bool
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  MOEB_HOST_DEVICE bool frozen() const { return true; }
  MOEB_HOST_DEVICE float next_bias(float bias, int, const mb::LoadView&) const { return bias; }
};

void update(const mb::BiasRef& bias, const mb::LoadRef& load) {
  mb::Router{mb::Sigmoid{}, mb::TopK<2>{}, Wrong{}}.update(bias, load, {}, mb::Host{});
}
