// CONTRACT.md lines 1 to 6 on a GPU.
#include "engine_cuda.cuh"

#include "bodies/contract_selection.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_1, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_1_logits, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_2, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_2_groups, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3_order, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_3_excluded, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_4, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_4_status, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_5, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_5_all, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6_equal, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_6_no_tokens, CudaEngine);

}  // namespace testing
