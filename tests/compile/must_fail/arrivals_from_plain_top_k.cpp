// EXPECT: the balancer counts either arrivals or a plain top-k
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr bool counts_arrivals = true;
  static constexpr bool counts_plain_top_k = true;
  int devices = 2;
  MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const { return load.share(expert); }
};
const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
