// CONTRACT.md line 11 on the CPU: a user's own scoring, and K = 1.
#include "engine_host.hpp"

#include "bodies/gradient.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_11_user, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_one, HostEngine);

}  // namespace testing
