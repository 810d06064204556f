// Routing and its permutation in one call, on a GPU.
#include "engine_cuda.cuh"

#include "bodies/forward_and_permute.hpp"
#include "bodies/fused_overlaps.hpp"
#include "bodies/route_and_permute.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(route_and_permute_same, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_errors, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_same, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_sizes, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_sums, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_arrivals, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_replay, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_capacity, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_margins, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_errors, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_overlaps, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_overlaps, CudaEngine);

}  // namespace testing
