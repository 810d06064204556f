// CONTRACT.md line 11 on the CPU, elementwise scorings of the library; logits at the ends of their range.
#include "engine_host.hpp"

#include "bodies/gradient.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_11_sigmoid, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_sqrt_softplus, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_identity, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_extremes_elementwise, HostEngine);

}  // namespace testing
