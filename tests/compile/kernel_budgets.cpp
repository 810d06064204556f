// Prints what tuning.hpp and the kernels' shared-memory layouts say of every tier, for resources.sh and kernel_table.py:
//   tier INDEX EXPERTS WIDTH THREADS BLOCKS_PER_SM REGISTERS
//   shared INDEX KERNEL BALANCER BYTES        (dynamic shared memory; BALANCER as a demangler prints it, without spaces)
#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/moe_balance.hpp>

#include <cstdio>
#include <utility>

namespace mb = moe_balance;

namespace {

constexpr auto tiers = std::make_integer_sequence<int, mb::cuda_tier_count>{};

template <int Tier>
void print_tier() {
  constexpr mb::CudaTier tier = mb::cuda_tiers[Tier];
  std::printf("tier %d %d %d %d %d %d\n", Tier, tier.max_experts, tier.width, tier.threads, tier.blocks_per_sm,
              mb::register_budget(tier));
}

template <class Balancer, int Tier>
void print_shared(const char* balancer) {
  const std::size_t backward = mb::backward_shared_bytes<Balancer, mb::cuda_tiers[Tier].max_experts>();
  std::printf("shared %d forward %s %zu\n", Tier, balancer, mb::forward_shared_bytes<Balancer, Tier>());
  std::printf("shared %d backward %s %zu\n", Tier, balancer, backward);
}

template <int... Tier>
void print_tiers(std::integer_sequence<int, Tier...>) {
  (print_tier<Tier>(), ...);
}

template <class Balancer, int... Tier>
void print_balancer(const char* name, std::integer_sequence<int, Tier...>) {
  (print_shared<Balancer, Tier>(name), ...);
}

/// Blocks an SM holds of a forward kernel with a loss, with this many KiB of shared memory.
template <int Tier>
constexpr int resident_with_loss(std::size_t shared_kib) {
  constexpr std::size_t bytes = mb::forward_shared_bytes<mb::AuxLoss, Tier>();
  return mb::resident_blocks(mb::cuda_tiers[Tier], bytes, shared_kib * 1024);
}
constexpr int sm_80 = 164;
constexpr int sm_90 = 228;
static_assert(resident_with_loss<6>(sm_80) == 1 && resident_with_loss<6>(sm_90) == 2, "96 KiB a block");
static_assert(resident_with_loss<5>(sm_80) == 2 && resident_with_loss<4>(sm_80) == 1, "registers bind");
static_assert(resident_with_loss<6>(0) == 1, "a grid has blocks");

}  // namespace

int main() {
  print_tiers(tiers);
  print_balancer<mb::NoBalancer>("NoBalancer", tiers);
  print_balancer<mb::Combine<mb::LossFreeBias, mb::SequenceLoss>>("Combine<LossFreeBias,SequenceLoss>", tiers);
  print_balancer<mb::Combine<mb::AuxLoss, mb::ZLoss>>("Combine<AuxLoss,ZLoss>", tiers);
  print_balancer<mb::FromPlainTopK<mb::GlobalBatchLoss>>("FromPlainTopK<GlobalBatchLoss>", tiers);
}
