// EXPECT: balancer\.slope.*balancer\.next_bias
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float coefficient = 1.0f;
};

const mb::presets::DeepSeekV3<Wrong> router;
