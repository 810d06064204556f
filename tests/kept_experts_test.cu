// Selections that keep fewer than K experts, on a GPU.
#include "engine_cuda.cuh"

#include "bodies/kept_experts.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(top_p_softmax, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(top_p_over_selected, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(top_p_by_hand, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_agreement, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_by_hand, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_user, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_replay, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_nan, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_by_hand, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_of_all, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_balances, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_capacity, CudaEngine);

}  // namespace testing
