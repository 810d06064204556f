// CONTRACT.md line 14 on a GPU.
#include "engine_cuda.cuh"

#include "bodies/errors.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(errors_null, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_misaligned, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_shape, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_views, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_types, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_sequences, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_groups, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_replay, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_route, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_backward, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_one, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_loss, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_update, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_none, CudaEngine);

}  // namespace testing
