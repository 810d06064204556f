// Prints what tuning.hpp and the kernels' shared-memory layouts say of every tier, for resources.sh, kernel_table.py and instructions.py:
//   tier INDEX EXPERTS WIDTH THREADS BLOCKS_PER_SM REGISTERS
//   shared INDEX KERNEL BALANCER BYTES BLOCKS...    (dynamic shared memory; BALANCER as a demangler prints it, without spaces; blocks launched for
//                                                    each multiprocessor of sm_80, sm_90 and sm_100)
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
  const auto print = [&](const char* kernel, std::size_t bytes) {
    std::printf("shared %d %s %s %zu", Tier, kernel, balancer, bytes);
    for (const int capability : {80, 90, 100}) {
      std::printf(" %d", mb::resident_blocks(mb::cuda_tiers[Tier], bytes, mb::cuda_architecture(capability)));
    }
    std::printf("\n");
  };
  print("forward", mb::forward_shared_bytes<Balancer, Tier>());
  print("backward", mb::backward_shared_bytes<Balancer, Tier>());
}

template <int... Tier>
void print_tiers(std::integer_sequence<int, Tier...>) {
  (print_tier<Tier>(), ...);
}

template <class Balancer, int... Tier>
void print_balancer(const char* name, std::integer_sequence<int, Tier...>) {
  (print_shared<Balancer, Tier>(name), ...);
}

}  // namespace

int main() {
  print_tiers(tiers);
  print_balancer<mb::NoBalancer>("NoBalancer", tiers);
  print_balancer<mb::Combine<mb::LossFreeBias, mb::SequenceLoss>>("Combine<LossFreeBias,SequenceLoss>", tiers);
  print_balancer<mb::Combine<mb::AuxLoss, mb::ZLoss>>("Combine<AuxLoss,ZLoss>", tiers);
  print_balancer<mb::FromPlainTopK<mb::GlobalBatchLoss>>("FromPlainTopK<GlobalBatchLoss>", tiers);
}
