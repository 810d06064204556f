// EXPECT: policy\.template narrow
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr int k = 2;
  void check(const char*, int) const {}
  mb::Weighting weighting() const { return {}; }
};

const mb::Router router{mb::Softmax{}, Wrong{}};
