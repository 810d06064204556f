// EXPECT: the balancer's scope, which the library reads, is not a moe_balance::LossScope
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr int scope = 1;
  float slope(int /*expert*/, const mb::LoadView& /*load*/) const { return 1.0f; }
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
