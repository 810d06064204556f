// EXPECT: the balancer counts arrivals and lacks: balancer.slope
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr bool counts_arrivals = true;
  MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const { return load.share(expert); }
};
const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
