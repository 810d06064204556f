// BalancedTokens as a GPU computes it, on fibers.
#include "tile/fiber_dispatch.hpp"

#include "bodies/balanced_tokens.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(balanced_agreement, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_edges, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_two_calls, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_infinities, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_margins, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_capacity, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_and_permuted, FiberEngine);

}  // namespace testing
