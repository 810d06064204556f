// Prints what tuning.hpp and the kernels' shared-memory layouts say of every tier, for resources.sh, kernel_table.py and instructions.py:
//   tier INDEX EXPERTS WIDTH
//   registers INDEX KERNEL USUAL MOST       (KERNEL is forward or backward; USUAL, whether it is that of usual calls, true or false; the most of any router)
//   launch INDEX KERNEL USUAL ROUTER THREADS BYTES MOST BLOCKS...
//                                           (of resources.cu's routers, as a demangler prints policies, without spaces: threads of the largest block,
//                                            its dynamic shared memory, the most registers, and the blocks launched for each multiprocessor of sm_80,
//                                            sm_90 and sm_100)
#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/moe_balance.hpp>

#include <cstdio>
#include <utility>

namespace mb = moe_balance;

namespace {

constexpr auto tiers = std::make_integer_sequence<int, mb::cuda_tier_count>{};

template <int Tier, bool Usual>
void print_registers() {
  using Config = mb::KernelConfig<Tier, Usual>;
  const auto print = [](const char* kernel, mb::KernelKind kind) {
    std::printf("registers %d %s %s %d\n", Tier, kernel, Usual ? "true" : "false", mb::register_budget(Config::tier, kind));
  };
  print("forward", Config::forward);
  print("backward", Config::backward);
}

template <int Tier>
void print_tier() {
  constexpr mb::CudaTier tier = mb::cuda_tiers[Tier];
  std::printf("tier %d %d %d\n", Tier, tier.max_experts, tier.width);
  print_registers<Tier, false>();
  if constexpr (Tier < mb::usual_tier_count) print_registers<Tier, true>();
}

template <class Config>
void print_launch(const char* kernel, const char* router, mb::KernelKind kind, int threads, std::size_t bytes) {
  std::printf("launch %d %s %s %s %d %zu %d", Config::index, kernel, Config::usual ? "true" : "false", router, threads,
              bytes, mb::register_budget(Config::tier, kind));
  for (const int capability : {80, 90, 100}) {
    std::printf(" %d", mb::resident_blocks(Config::tier, kind, threads, bytes, mb::cuda_architecture(capability)));
  }
  std::printf("\n");
}

template <class Scoring, class Selection, class Balancer, int Tier, bool Usual>
void print_launches(const char* router) {
  using Config = mb::KernelConfig<Tier, Usual>;
  using Forward = mb::ForwardProblem<Scoring, Selection, Balancer>;
  using Backward = mb::BackwardProblem<Scoring, Selection, Balancer>;
  if constexpr (!Usual || mb::has_usual_kernel<Tier, Forward>) {
    constexpr int threads = mb::most_forward_threads<Config, Forward>;
    print_launch<Config>("forward", router, mb::forward_kind<Config, Forward>, threads,
                         mb::forward_shared_bytes<Balancer, Config::tier>(threads));
  }
  if constexpr (!Usual || mb::has_usual_kernel<Tier, Backward>) {
    print_launch<Config>("backward", router, Config::backward, Config::tier.threads,
                         mb::backward_shared_bytes<Balancer, Tier>());
  }
}

template <class Scoring, class Selection, class Balancer, int... Tier>
void print_router(const char* name, std::integer_sequence<int, Tier...>) {
  (print_launches<Scoring, Selection, Balancer, Tier, false>(name), ...);
  (print_launches<Scoring, Selection, Balancer, Tier, true>(name), ...);
}

template <int... Tier>
void print_tiers(std::integer_sequence<int, Tier...>) {
  (print_tier<Tier>(), ...);
}

}  // namespace

int main() {
  using Bias = mb::Combine<mb::LossFreeBias, mb::SequenceLoss>;
  using BiasAndPlain = mb::Combine<mb::LossFreeBias, mb::FromPlainTopK<mb::SequenceLoss>>;
  using Losses = mb::Combine<mb::AuxLoss, mb::ZLoss>;
  print_tiers(tiers);
  print_router<mb::Sigmoid, mb::GroupLimitedTopK<8>, BiasAndPlain>(
      "Sigmoid,GroupLimitedTopK<8>,Combine<LossFreeBias,FromPlainTopK<SequenceLoss>>", tiers);
  print_router<mb::Sigmoid, mb::GroupLimitedTopK<8>, mb::LossFreeBias>("Sigmoid,GroupLimitedTopK<8>,LossFreeBias", tiers);
  print_router<mb::Softmax, mb::TopK<8>, Losses>("Softmax,TopK<8>,Combine<AuxLoss,ZLoss>", tiers);
  print_router<mb::Softmax, mb::TopK<8>, mb::NoBalancer>("Softmax,TopK<8>,NoBalancer", tiers);
  print_router<mb::SqrtSoftplus, mb::Replay<mb::TopK<6>>, Bias>(
      "SqrtSoftplus,Replay<TopK<6>>,Combine<LossFreeBias,SequenceLoss>", tiers);
  print_router<mb::SqrtSoftplus, mb::Replay<mb::TopK<6>>, mb::LossFreeBias>("SqrtSoftplus,Replay<TopK<6>>,LossFreeBias",
                                                                            tiers);
  print_router<mb::SoftmaxOverSelected, mb::TopK<32>, mb::FromPlainTopK<mb::GlobalBatchLoss>>(
      "SoftmaxOverSelected,TopK<32>,FromPlainTopK<GlobalBatchLoss>", tiers);
  print_router<mb::SoftmaxOverSelected, mb::TopK<32>, mb::NoBalancer>("SoftmaxOverSelected,TopK<32>,NoBalancer", tiers);
}
