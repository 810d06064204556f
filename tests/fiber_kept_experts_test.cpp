// What a GPU keeps of a token's experts, on fibers.
#include "engine_fibers.hpp"

#include "bodies/kept_experts.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(top_p_softmax, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(top_p_over_selected, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(top_p_by_hand, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_agreement, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_by_hand, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_many, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_user, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_replay, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_nan, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_by_hand, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_of_all, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_balances, FiberEngine);

}  // namespace testing
