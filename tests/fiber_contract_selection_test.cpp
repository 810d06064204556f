// CONTRACT.md lines 1 to 6 for the CUDA kernels' bodies, on fibers.
#include "engine_fibers.hpp"

#include "bodies/contract_selection.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_1, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_1_logits, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_2, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_2_groups, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3_order, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3_excluded, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_4, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_4_status, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_5, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_5_all, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6_equal, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6_no_tokens, FiberEngine);

}  // namespace testing
