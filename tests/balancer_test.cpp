// Each balancer on the CPU.
#include "engine_host.hpp"

#include "bodies/balancer.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(aux_loss_balanced, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(aux_loss_skewed, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(aux_loss_normalised, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sequence_loss_layouts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sequence_loss_agreement, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(global_batch, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(global_batch_late, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(device_loss_agreement, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(device_loss_of_experts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(device_loss_of_window, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(device_loss_balanced, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(communication_loss_agreement, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(communication_loss_of_experts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(communication_loss_once, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_factor, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_factor_edges, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_factor_rule, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(user_arrivals, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_proportional, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_at_rest, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_smebu, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_pid, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_with_memory_at_rest, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_with_memory_apart, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_without_counts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_centring_of_numbers, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_layer_alone, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_pid_proportional, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_sign_rule, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_direction, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_frozen, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_centring, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_balances, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_balances, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_by_hand, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_near_exact, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_octaves, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_forward, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_layers, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(z_loss_value, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(z_loss_small, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(combine_parts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(loss_scales, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(token_without_experts, HostEngine);

TEST_CASE("MultiplicativeBias: more experts, side by side and by rows") {
  check_factor(HostEngine(), 60);
  check_factor(HostEngine(), 300);
}

}  // namespace testing
