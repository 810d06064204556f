// BalancedTokens, on a GPU.
#include "engine_cuda.cuh"

#include "bodies/balanced_tokens.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(balanced_edges, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_two_calls, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_infinities, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_margins, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_capacity, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_and_permuted, CudaEngine);

}  // namespace testing
