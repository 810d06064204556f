// EXPECT: sync\.finish
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Wrong {
  int ranks() const { return 1; }
  template <class Place>
  void start(std::int64_t*, std::int64_t, const Place&) const {}
};

void train(const mb::ForwardArgs& args) {
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::NoBalancer{}, Wrong{}};
  router.forward(args, {}, mb::Host{});
}
