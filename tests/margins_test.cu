// The pass that counts margins on a GPU.
#include "engine_cuda.cuh"
#include "engine_host.hpp"

#include "bodies/margins.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(margins_softmax, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_over_selected, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_sigmoid, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_scores, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_of_many, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_nan, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_user, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_of_many_tokens, CudaEngine);

}  // namespace testing
