// Tokens that go once to each rank, on the CPU.
#include "bodies/once_per_rank.hpp"
#include "engine_host.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(once_per_rank_slots, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_empty, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_trip, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_types, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_overlaps, HostEngine);

}  // namespace testing
