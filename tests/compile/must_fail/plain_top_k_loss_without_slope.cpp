// EXPECT: balancer\.slope
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float coefficient = 1.0f;
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::FromPlainTopK<Wrong>{}};
