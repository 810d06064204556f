// Experts that compute nothing, on the CPU.
#include "engine_host.hpp"

#include "bodies/zero_computation.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(zero_computation_agreement, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_plain, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_balanced, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_by_hand, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_balances, HostEngine);

}  // namespace testing
