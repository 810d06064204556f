// CONTRACT.md line 11 on a GPU, scorings of a whole row; logits at the ends of their range.
#include "engine_cuda.cuh"

#include "bodies/gradient.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_11_softmax, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_over_selected, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_extremes_softmax, CudaEngine);

}  // namespace testing
