// CONTRACT.md lines 13 and 15 on a GPU, and memory that calls may share, of more experts than error_test has kernels for.
#include "engine_cuda.cuh"

#include "bodies/contract_running.hpp"
#include "bodies/router_overlaps.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_13, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_again, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_route, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_15_twice, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(route_is_forward, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(replay_ids, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(row_strides, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(many_layers, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(different_layers, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(router_in_place, CudaEngine);

}  // namespace testing
