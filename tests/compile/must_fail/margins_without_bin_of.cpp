// EXPECT: nor, with int bins and bin_of\(margin\) const -> int: balancer\.next_bias\(bias, expert, load, margins\)
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  int bins = 8;
  float next_bias(float bias, int /*expert*/, const mb::LoadView& /*load*/, const mb::MarginView& /*margins*/) const {
    return bias;
  }
};

const mb::Router router{mb::Sigmoid{}, mb::TopK<2>{}, Wrong{}};
