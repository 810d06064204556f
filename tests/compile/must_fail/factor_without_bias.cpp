// EXPECT: the balancer says bias_is_factor and has no next_bias
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr bool bias_is_factor = true;
  MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const { return load.share(expert); }
};
const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
