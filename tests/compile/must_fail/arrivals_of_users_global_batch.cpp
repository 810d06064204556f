// EXPECT: the balancer counts arrivals, of which a load says nothing: its scope is a micro-batch or a sequence
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr bool counts_arrivals = true;
  static constexpr mb::LossScope scope = mb::LossScope::global_batch;
  int devices = 2;
  MOEB_HOST_DEVICE float slope(int expert, const mb::LoadView& load) const { return load.share(expert); }
};
const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
