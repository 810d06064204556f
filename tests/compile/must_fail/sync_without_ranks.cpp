// EXPECT: sync\.ranks
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  template <class Place>
  void start(std::int64_t*, std::int64_t, const Place&) const {}
  template <class Place>
  void finish(std::int64_t*, const Place&) const {}
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::NoBalancer{}, Wrong{}};
