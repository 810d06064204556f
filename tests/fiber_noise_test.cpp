// Random numbers on logits, as a GPU adds them, on fibers.
#include "tile/fiber_dispatch.hpp"

#include "bodies/noise.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(noise_numbers, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_on_logits, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_of_parts, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_backward, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_distribution, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(noise_errors, FiberEngine);

}  // namespace testing
