// Losses of probabilities as a GPU computes them, on fibers.
#include "engine_fibers.hpp"

#include "bodies/probability_losses.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(probability_losses_softmax, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_sigmoid, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_over_selected, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_many, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_faults, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(token_slope_overflow, FiberEngine);

}  // namespace testing
