// CONTRACT.md lines 1 to 6 on the CPU.
#include "engine_host.hpp"

#include "bodies/contract_selection.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_1, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_1_logits, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_2, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_2_groups, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3_order, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3_excluded, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_4, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_4_status, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_5, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_5_all, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6_equal, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6_no_tokens, HostEngine);

}  // namespace testing
