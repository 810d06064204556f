// EXPECT: leave out the loss's next_bias, token_loss or entropy_loss
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

struct Both {
  MOEB_HOST_DEVICE float slope(int, const mb::LoadView&) const { return 1.0f; }
  MOEB_HOST_DEVICE float next_bias(float bias, int, const mb::LoadView&) const { return bias; }
};

const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::FromPlainTopK<Both>{}};
