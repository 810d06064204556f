// Random numbers on logits, on a GPU.
#include "engine_cuda.cuh"

#include "bodies/noise.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(noise_numbers, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_on_logits, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_of_parts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_backward, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_distribution, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_errors, CudaEngine);

}  // namespace testing
