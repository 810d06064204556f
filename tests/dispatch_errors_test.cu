// Bad arguments of dispatch on a GPU.
#include "engine_cuda.cuh"

#include "bodies/dispatch_errors.hpp"

#include <moe_balance/dispatch/many_experts.cuh>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_permutation, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_overlap, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_columns_of_one_table, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_every_overlap, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_rows, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_identity, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_indices, CudaEngine);

}  // namespace testing
