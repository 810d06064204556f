// CONTRACT.md line 11 on a GPU: a user's own scoring, and K = 1.
#include "engine_cuda.cuh"

#include "bodies/gradient.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_11_user, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_one, CudaEngine);

}  // namespace testing
