// CONTRACT.md line 11 on a GPU, elementwise scorings of the library; logits at the ends of their range.
#include "engine_cuda.cuh"

#include "bodies/gradient.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_11_sigmoid, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_sqrt_softplus, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_identity, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_extremes_elementwise, CudaEngine);

}  // namespace testing
