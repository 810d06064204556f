// Expert parallelism on fibers.

#include "bodies/expert_parallel.hpp"
#include "tile/fiber_dispatch.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(physical_by_rule, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(physical_hashed, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(local_ranges, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(tensor_masks, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_appended, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(splits, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(offsets_of_counts, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(received_rows_named, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(nothing_received, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(received_errors, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(received_arguments, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(round_trip, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_errors, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_bad_ids, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_ids, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_overlaps, FiberEngine);

}  // namespace testing
