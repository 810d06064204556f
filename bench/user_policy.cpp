// A scoring of a user's own, benchmarked by one line. user_policy.cu is the same on a GPU.
#include "microbenchmark.hpp"

namespace mb = moe_balance;

struct Softplus {
  MOEB_HOST_DEVICE float operator()(float logit) const { return mb::softplus(logit); }
  MOEB_HOST_DEVICE float derivative(float logit, float /*score*/) const { return mb::sigmoid(logit); }
};

const bool softplus = microbenchmark::add("softplus_top4", mb::Router{Softplus{}, mb::TopK<4>{}});
