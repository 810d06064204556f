// EXPECT: policy\.template narrow
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr int k = 2;
};

const mb::Router router{mb::Softmax{}, mb::Replay<Wrong>{}};
