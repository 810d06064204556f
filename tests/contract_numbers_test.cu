// CONTRACT.md lines 7, 8, 9, 10 and 16 on a GPU.
#include "engine_cuda.cuh"

#include "bodies/contract_numbers.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_7, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_7_bits, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_8, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_8_order, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_9, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_10, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_16, CudaEngine);

}  // namespace testing
