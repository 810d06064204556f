// EXPECT: balancer\.slope
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float slope(int /*expert*/, const mb::LoadView& /*load*/) { return 1.0f; }
  float next_bias(float bias, int /*expert*/, const mb::LoadView& /*load*/) const { return bias; }
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
