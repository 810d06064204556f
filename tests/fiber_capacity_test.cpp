// The kernels of a capacity on fibers.
#include "bodies/capacity.hpp"
#include "bodies/capacity_router.hpp"
#include "tile/fiber_dispatch.hpp"

#include <string>

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
TEST_CASE_TEMPLATE_INVOKE(capacity_backward_ids, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router_overlap, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_pad, FiberEngine);

TEST_CASE("capacity on fibers: what a GPU may refuse is called by the call's and the argument's own names") {
  for (const int experts : {4, 5000}) {  // counted, sorted
    CAPTURE(experts);
    (void)limit(FiberEngine{}, {.tokens = 1, .k = 2, .experts = experts, .chosen = {0, 3}, .weights = {0.5, 0.5}});
    const mb::ExpertCount& asked = expert_count_asked_for;
    CHECK(std::string(asked.call) == "limit_to_capacity");
    CHECK(std::string(asked.argument) == "expert_count");
    CHECK(asked.experts + asked.more == experts);
  }
}

}  // namespace testing
