// Capacity on a GPU.
#include "engine_cuda.cuh"

#include "bodies/capacity.hpp"
#include "bodies/capacity_router.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(capacity_random, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_corners, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_empty_slots, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_overlap, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_errors, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_non_finite, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_overflow, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_selections, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_losses, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_route, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_backward_ids, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router_overlap, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_pad, CudaEngine);

}  // namespace testing
