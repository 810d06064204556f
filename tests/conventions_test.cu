// CONTRACT.md's conventions on a GPU.
#include "engine_cuda.cuh"

#include "bodies/conventions.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(plain_top_k_micro_batch, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_sequence, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_devices, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_global_batch, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_bias, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_of_other_losses, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_of_others, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_by_hand, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(low_scores, CudaEngine);

}  // namespace testing
