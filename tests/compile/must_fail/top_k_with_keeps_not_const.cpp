// EXPECT: policy\.keeps
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr int k = 2;
  template <class Real, class Tile, class Layout, class Keys>
  void narrow(const Tile&, const Layout&, Keys&) const {}
  void check(const char*, int) const {}
  mb::Weighting weighting() const { return {}; }
  template <class Real>
  bool keeps(const mb::RankedExpert<Real>& expert) {
    return expert.score > 0;
  }
};

const mb::Router router{mb::Softmax{}, Wrong{}};
