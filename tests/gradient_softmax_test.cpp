// CONTRACT.md line 11 on the CPU, scorings of a whole row; logits at the ends of their range.
#include "engine_host.hpp"

#include "bodies/gradient.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_11_softmax, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_over_selected, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_11_extremes_softmax, HostEngine);

}  // namespace testing
