// Routers that between them run all of the CPU engine's loops over tokens; whole_loops.sh looks at what they compile to.
#include "whole_loops.hpp"

/// A policy as a user writes it: nothing asks for its inlining.
struct Cubed {
  template <class Real>
  [[nodiscard]] MOEB_HOST_DEVICE Real operator()(Real logit) const {
    return logit * logit * logit;
  }
  template <class Real>
  [[nodiscard]] MOEB_HOST_DEVICE Real derivative(Real logit, Real /*score*/) const {
    return Real(3) * logit * logit;
  }
};

template <class RouterT>
void run(const RouterT& router, const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::Host& host) {
  router.forward(forward, {}, host);
  router.backward(backward, {}, host);
}

void run_softmax(const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::Host& host) {
  run(mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::Combine{mb::AuxLoss{}, mb::ZLoss{}, mb::EntropyLoss{}}}, forward,
      backward, host);
}
void run_sqrt_softplus(const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::Host& host) {
  run(mb::Router{mb::SqrtSoftplus{}, mb::TopK<6>{}, mb::LossFreeBias{}}, forward, backward, host);
}
void run_users_policy(const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::Host& host) {
  run(mb::Router{Cubed{}, mb::Replay<mb::GroupLimitedTopK<8>>{}, mb::LossFreeBias{}}, forward, backward, host);
}
