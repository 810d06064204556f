// CONTRACT.md's conventions on the CPU.
#include "engine_host.hpp"

#include "bodies/conventions.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(plain_top_k_micro_batch, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_sequence, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_devices, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_global_batch, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(plain_top_k_bias, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_of_other_losses, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_of_others, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(first_choices_by_hand, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(low_scores, HostEngine);

}  // namespace testing
