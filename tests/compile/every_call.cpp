// Every call of a router with every part, for compilation under unusual settings.
#include <moe_balance/moe_balance.hpp>

namespace mb = moe_balance;

void every_call(const mb::RouteArgs& route, const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::LossArgs& loss,
                mb::BiasRef bias, mb::LoadRef load, mb::Workspace workspace);

void every_call(const mb::RouteArgs& route, const mb::ForwardArgs& forward, const mb::BackwardArgs& backward, const mb::LossArgs& loss,
                mb::BiasRef bias, mb::LoadRef load, mb::Workspace workspace) {
  const mb::Router router{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f},
                          mb::Combine{mb::LossFreeBias{}, mb::SequenceLoss{}, mb::ZLoss{}}};
  const mb::Host host{.threads = 2};
  router.route(route, workspace, host);
  router.forward(forward, workspace, host);
  router.backward(backward, workspace, host);
  router.loss(loss, workspace, host);
  router.update(bias, load, workspace, host);
}
