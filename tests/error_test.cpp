// CONTRACT.md line 14 on the CPU.
#include "engine_host.hpp"

#include "bodies/errors.hpp"
#include "bodies/router_overlaps.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(errors_null, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_misaligned, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_shape, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_views, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_types, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_sequences, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_groups, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_options, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_options_of_zero, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_replay, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_left_out, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_route, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_backward, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_one, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_loss, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_update, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_none, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(router_overlaps, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(router_overlaps_in_part, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(router_interleaved, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(router_in_place, HostEngine);

}  // namespace testing
