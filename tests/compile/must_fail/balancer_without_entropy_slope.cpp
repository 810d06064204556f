// EXPECT: balancer\.entropy_slope
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float slope(int, const mb::LoadView&) const { return 0; }
  float entropy_loss(float entropy) const { return entropy; }
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
