// EXPECT: balancer\.token_slope
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float token_loss(float log_sum_exp) const { return log_sum_exp; }
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
