// The losses and rules of layers with experts that compute nothing, as a GPU computes them, on fibers.
#include "engine_fibers.hpp"

#include "bodies/zero_computation.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(zero_computation_agreement, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(zero_computation_by_hand, FiberEngine);

}  // namespace testing
