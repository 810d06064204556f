// The dispatch kernels' bodies on fibers under AddressSanitizer and UndefinedBehaviorSanitizer, which this program is always compiled with: arrays and
// shared memory are exactly as large as asked for. The cases named "planted" are as in fiber_sanitized_test.cpp.
#include "tile/fiber_dispatch.hpp"

#include "bodies/capacity.hpp"
#include "bodies/dispatch.hpp"
#include "bodies/dispatch_errors.hpp"
#include "bodies/expert_parallel.hpp"
#include "bodies/permute.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_identity, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_identity_anywhere, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_fixed_rows, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_hidden_sizes, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_copies, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_disagreeing, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sorting, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_indices, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_random, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(physical_by_rule, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(local_ranges, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(tensor_masks, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_appended, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(splits, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(offsets_of_counts, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_errors, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_bad_ids, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_ids, FiberEngine);

TEST_CASE("planted: a permutation with one row less than its slots" * doctest::skip()) {
  std::vector<std::int32_t> ids{0, 1, 0, 1};
  std::vector<std::int64_t> offsets(3), row_of_slot(4), slot_of_row(3), workspace(64);
  mb::PermutationProblem problem =
      mb::detail::permutation_problem({.experts = mb::MatrixView<const std::int32_t>(ids.data(), 2, 2),
                                       .offsets = {offsets.data(), 3},
                                       .row_of_slot = {row_of_slot.data(), 2, 2},
                                       .slot_of_row = {slot_of_row.data(), 4}});
  problem.histogram = mb::Histogram::of(nullptr, 1, 2, 2, 2);
  mb::detail::place_slots(problem, 1, FiberEngine{}.place());
}

}  // namespace testing
