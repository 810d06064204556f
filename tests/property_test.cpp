// Random problems on the CPU.
#include "engine_host.hpp"

#include "bodies/properties.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(properties_softmax, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(properties_groups, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(properties_replay, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(properties_over_selected, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(properties_identity, HostEngine);

}  // namespace testing
