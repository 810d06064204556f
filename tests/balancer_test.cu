// Each balancer on a GPU.
#include "engine_cuda.cuh"

#include "bodies/balancer.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(aux_loss_balanced, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(aux_loss_skewed, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(aux_loss_normalised, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sequence_loss_layouts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sequence_loss_agreement, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(global_batch, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(global_batch_late, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(device_loss_agreement, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(device_loss_of_experts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(device_loss_of_window, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(device_loss_balanced, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(communication_loss_agreement, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(communication_loss_of_experts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(communication_loss_once, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_factor, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_factor_edges, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_factor_rule, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(user_arrivals, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_proportional, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_at_rest, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_smebu, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_pid, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_with_memory_at_rest, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_with_memory_apart, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_without_counts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_centring_of_numbers, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_layer_alone, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_pid_proportional, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_sign_rule, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_direction, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_frozen, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_centring, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(bias_balances, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_balances, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_by_hand, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_near_exact, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_octaves, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_forward, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(quantile_layers, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(z_loss_value, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(z_loss_small, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(combine_parts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(loss_scales, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(token_without_experts, CudaEngine);

}  // namespace testing
