// CONTRACT.md's conventions as a GPU computes them, on fibers.
#include "engine_fibers.hpp"

#include "bodies/conventions.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(plain_top_k_micro_batch, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_sequence, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_devices, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_global_batch, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_bias, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_of_other_losses, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_of_others, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_by_hand, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(low_scores, FiberEngine);

}  // namespace testing
