// EXPECT: where this call runs the Sync lacks: sync\.start
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Stream {};

struct OnlyOnStreams {
  int ranks() const { return 1; }
  void start(std::int64_t*, std::int64_t, const Stream&) const {}
  void finish(std::int64_t*, const Stream&) const {}
};

void train(const mb::ForwardArgs& args) {
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::GlobalBatchLoss{}, OnlyOnStreams{}};
  router.forward(args, {}, mb::Host{});
}
