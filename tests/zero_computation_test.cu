// Experts that compute nothing, on a GPU.
#include "engine_cuda.cuh"

#include "bodies/zero_computation.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(zero_computation_agreement, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_plain, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_balanced, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_by_hand, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_balances, CudaEngine);

}  // namespace testing
