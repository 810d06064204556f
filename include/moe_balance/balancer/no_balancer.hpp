// NoBalancer: the router alone. For inference without a bias, and as the baseline that every balancer is compared with.
#pragma once

#include <moe_balance/balancer_concepts.hpp>

MOEB_NAMESPACE_BEGIN

struct NoBalancer {
  using is_idle = void;
};
static_assert(BalancerPolicy<NoBalancer>);

MOEB_NAMESPACE_END
