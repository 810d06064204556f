// A user's own policies on a GPU.
#include "engine_cuda.cuh"

#include "bodies/custom_policy.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(custom_scoring, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_nan, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_losses, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_resolution, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_combination, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_bias, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(custom_bias_memory, CudaEngine);

}  // namespace testing
