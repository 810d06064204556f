// Prints what tuning.hpp and the kernels' shared-memory layouts say of every tier, for resources.sh, kernel_table.py and instructions.py:
//   tier INDEX EXPERTS WIDTH THREADS
//   registers INDEX KERNEL USUAL MOST                (KERNEL is forward or backward; USUAL, whether it is that of usual calls, true or false)
//   shared INDEX KERNEL USUAL BALANCER BYTES BLOCKS...    (dynamic shared memory; BALANCER as a demangler prints it, without spaces; blocks launched
//                                                          for each multiprocessor of sm_80, sm_90 and sm_100)
#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/moe_balance.hpp>

#include <cstdio>
#include <utility>

namespace mb = moe_balance;

namespace {

constexpr auto tiers = std::make_integer_sequence<int, mb::cuda_tier_count>{};
constexpr auto usual_tiers = std::make_integer_sequence<int, mb::usual_tier_count>{};

template <int Tier>
void print_tier() {
  constexpr mb::CudaTier tier = mb::cuda_tiers[Tier];
  std::printf("tier %d %d %d %d\n", Tier, tier.max_experts, tier.width, tier.threads);
}

template <int Tier, bool Usual>
void print_registers() {
  using Config = mb::KernelConfig<Tier, Usual>;
  const auto print = [](const char* kernel, mb::KernelKind kind) {
    std::printf("registers %d %s %s %d\n", Tier, kernel, Usual ? "true" : "false", mb::register_budget(Config::tier, kind));
  };
  print("forward", Config::forward);
  print("backward", Config::backward);
}

template <class Balancer, int Tier, bool Usual>
void print_shared(const char* balancer) {
  using Config = mb::KernelConfig<Tier, Usual>;
  const auto print = [&](const char* kernel, mb::KernelKind kind, std::size_t bytes) {
    std::printf("shared %d %s %s %s %zu", Tier, kernel, Usual ? "true" : "false", balancer, bytes);
    for (const int capability : {80, 90, 100}) {
      std::printf(" %d",
                  mb::resident_blocks(Config::tier, kind, Config::tier.threads, bytes, mb::cuda_architecture(capability)));
    }
    std::printf("\n");
  };
  print("forward", Config::forward, mb::forward_shared_bytes<Balancer, mb::cuda_tiers[Tier]>());
  print("backward", Config::backward, mb::backward_shared_bytes<Balancer, Tier>());
}

template <int... Tier>
void print_tiers(std::integer_sequence<int, Tier...>) {
  (print_tier<Tier>(), ...);
  (print_registers<Tier, false>(), ...);
}
template <int... Tier>
void print_usual_tiers(std::integer_sequence<int, Tier...>) {
  (print_registers<Tier, true>(), ...);
}

template <class Balancer, bool Usual, int... Tier>
void print_balancer_of(const char* name, std::integer_sequence<int, Tier...>) {
  (print_shared<Balancer, Tier, Usual>(name), ...);
}
template <class Balancer>
void print_balancer(const char* name) {
  print_balancer_of<Balancer, false>(name, tiers);
  print_balancer_of<Balancer, true>(name, usual_tiers);
}

}  // namespace

int main() {
  print_tiers(tiers);
  print_usual_tiers(usual_tiers);
  print_balancer<mb::NoBalancer>("NoBalancer");
  print_balancer<mb::Combine<mb::LossFreeBias, mb::SequenceLoss>>("Combine<LossFreeBias,SequenceLoss>");
  print_balancer<mb::Combine<mb::AuxLoss, mb::ZLoss>>("Combine<AuxLoss,ZLoss>");
  print_balancer<mb::FromPlainTopK<mb::GlobalBatchLoss>>("FromPlainTopK<GlobalBatchLoss>");
}
