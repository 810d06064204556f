// EXPECT: scoring\.score\(logit, row\)
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  static constexpr bool normalised = true;
  template <class Real>
  using Row = mb::SoftmaxRow<Real>;
  template <class Tile, class Layout, class Real>
  mb::SoftmaxRow<Real> prepare(const Tile&, const Layout&, const mb::Slots<Real, Layout>&, mb::Slots<Real, Layout>&) const {
    return {};
  }
};

const mb::Router router{Wrong{}, mb::TopK<2>{}};
