// Losses of probabilities, on a GPU.
#include "engine_cuda.cuh"

#include "bodies/probability_losses.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(probability_losses_softmax, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_sigmoid, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_over_selected, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_faults, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(token_slope_overflow, CudaEngine);

}  // namespace testing
