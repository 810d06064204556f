// EXPECT: balancer\.value\(sum, load\)
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  float slope(int expert, const mb::LoadView& load) const { return load.probability(expert); }
  double value(double sum) const { return sum / 2; }
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, Wrong{}};
