// Tokens that go once to each rank, on a GPU.
#include "bodies/once_per_rank.hpp"
#include "engine_cuda.cuh"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(once_per_rank_slots, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_empty, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_trip, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_types, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_errors, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(once_per_rank_overlaps, CudaEngine);

}  // namespace testing
