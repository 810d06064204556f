// Capacity on a GPU.
#include "engine_cuda.cuh"

#include "bodies/capacity.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(capacity_random, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_corners, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_empty_slots, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_overlap, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_errors, CudaEngine);

}  // namespace testing
