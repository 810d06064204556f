// EXPECT: k is a member of its objects
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  int k = 2;
  template <class Real, class Tile, class Layout, class Keys>
  void narrow(const Tile&, const Layout&, Keys&) const {}
  void check(const char*, int) const {}
  mb::Weighting weighting() const { return {}; }
};

const mb::Router router{mb::Softmax{}, Wrong{}};
