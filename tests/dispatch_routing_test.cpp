// Routing and its permutation in one call, on the CPU.
#include "engine_host.hpp"

#include "bodies/forward_and_permute.hpp"
#include "bodies/fused_overlaps.hpp"
#include "bodies/route_and_permute.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(route_and_permute_same, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_same, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_sizes, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_replay, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_capacity, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_overlaps, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_overlaps, HostEngine);

}  // namespace testing
