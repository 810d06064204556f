// EXPECT: balancer\.token_loss
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float slope(int /*expert*/, const mb::LoadView& /*load*/) const { return 1.0f; }
  float token_slope(float log_sum_exp) const { return log_sum_exp; }
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
