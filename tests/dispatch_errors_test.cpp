// Bad arguments of dispatch on the CPU.
#include "engine_host.hpp"

#include "bodies/dispatch_errors.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_permutation, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_overlap, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_every_overlap, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_rows, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_indices, HostEngine);

}  // namespace testing
