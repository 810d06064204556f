// EXPECT: nor, with static constexpr int memory of 1 to 8: balancer\.next_bias\(bias, expert, load, memory\)
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr int memory = 1;
  float next_bias(float bias, int /*expert*/, const mb::LoadView& /*load*/, const float (&/*kept*/)[1]) const {
    return bias;
  }
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
