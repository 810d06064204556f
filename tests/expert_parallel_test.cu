// Expert parallelism on a GPU.
#include "bodies/expert_parallel.hpp"
#include "engine_cuda.cuh"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(physical_by_rule, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(physical_hashed, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(local_ranges, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(tensor_masks, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_appended, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(splits, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(offsets_of_counts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(received_rows_named, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(nothing_received, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(received_errors, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(received_arguments, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(round_trip, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_errors, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_bad_ids, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_ids, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_overlaps, CudaEngine);

}  // namespace testing
