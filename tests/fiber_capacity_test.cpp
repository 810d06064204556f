// The kernels of a capacity on fibers.
#include "bodies/capacity.hpp"
#include "bodies/capacity_router.hpp"
#include "tile/fiber_dispatch.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(capacity_random, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_empty_slots, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_overlap, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_non_finite, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_overflow, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_selections, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_losses, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_route, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router_overlap, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_pad, FiberEngine);

}  // namespace testing
