// CONTRACT.md line 9 on a GPU: the scorings that contract_numbers_test leaves out, which would take one file too long to compile.
#include "engine_cuda.cuh"

#include "bodies/contract_numbers.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_9_scorings, CudaEngine);

}  // namespace testing
