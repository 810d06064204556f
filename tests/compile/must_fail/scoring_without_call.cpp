// EXPECT: scoring\(logit\)
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float derivative(float, float) const { return 1.0f; }
};

const mb::Router router{Wrong{}, mb::TopK<2>{}};
