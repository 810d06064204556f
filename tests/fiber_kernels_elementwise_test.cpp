// The CUDA kernels' bodies, executed on fibers, give the bits of the CPU engine: routers with elementwise scores. Every tier.
#include "tile/same_as_host.hpp"

namespace testing {

TEST_CASE("fibers = CPU: DeepSeek-V3's router with every kind of part") {
  const mb::Router router{mb::Sigmoid{}, mb::GroupLimitedTopK<4>{.groups = 8, .groups_kept = 4, .group_score_top = 1, .scaling_factor = 2.5f},
                          mb::Combine{mb::LossFreeBias{.centring = mb::Centring::bias}, mb::SequenceLoss{.coefficient = 0.1f}, mb::ZLoss{}}};
  check_same_as_host(router, {8, 16, 40, 64, 128, 160, 256, 512, 1024, 2048});
}

TEST_CASE("fibers = CPU: square root of softplus, not renormalised, micro-batch loss") {
  check_same_as_host(mb::Router{mb::SqrtSoftplus{}, mb::TopK<2>{.renormalise = false}, mb::AuxLoss{}}, {2, 5, 64, 129, 300});
}

}  // namespace testing
