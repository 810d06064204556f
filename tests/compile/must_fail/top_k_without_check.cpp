// EXPECT: policy\.check
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr int k = 2;
  template <class Real, class Tile, class Layout, class Keys>
  void narrow(const Tile&, const Layout&, Keys&) const {}
  mb::Weighting weighting() const { return {}; }
};

const mb::Router router{mb::Softmax{}, Wrong{}};
