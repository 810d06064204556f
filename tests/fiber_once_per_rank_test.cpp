// Tokens that go once to each rank, on fibers.
#include "bodies/once_per_rank.hpp"
#include "tile/fiber_dispatch.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(once_per_rank_slots, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_empty, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_trip, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_types, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_errors, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_overlaps, FiberEngine);

}  // namespace testing
