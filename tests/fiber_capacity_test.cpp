// The kernels of a capacity on fibers.
#include "bodies/capacity.hpp"
#include "tile/fiber_dispatch.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(capacity_random, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_empty_slots, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_overlap, FiberEngine);

}  // namespace testing
