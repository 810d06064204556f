// A user's own policies on the CPU.
#include "engine_host.hpp"

#include "bodies/custom_policy.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(custom_scoring, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_nan, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_losses, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_resolution, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_combination, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_bias, HostEngine);

}  // namespace testing
