// Expert parallelism on the CPU.
#include "bodies/expert_parallel.hpp"
#include "engine_host.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(physical_by_rule, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(local_ranges, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(tensor_masks, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_appended, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(splits, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(offsets_of_counts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_bad_ids, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_ids, HostEngine);

}  // namespace testing
