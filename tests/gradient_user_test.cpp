// CONTRACT.md line 11 on the CPU: a user's own scoring, K = 1, and logits at the ends of their range.
#include "engine_host.hpp"

#include "bodies/gradient.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_11_user, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_one, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_extremes, HostEngine);

}  // namespace testing
