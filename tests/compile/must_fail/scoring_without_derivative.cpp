// EXPECT: scoring\.derivative
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float operator()(float logit) const { return logit; }
};

const mb::Router router{Wrong{}, mb::TopK<2>{}};
