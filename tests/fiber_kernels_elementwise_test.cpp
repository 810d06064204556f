// The CUDA kernels' bodies, executed on fibers, give the bits of the CPU engine: routers with elementwise scores. Every tier.
#include "tile/same_as_host.hpp"

#include <limits>

namespace testing {

TEST_CASE("fibers = CPU: DeepSeek-V3's router with every kind of part") {
  mb::Router router{
      mb::Sigmoid{}, mb::GroupLimitedTopK<4>{.groups = 8, .groups_kept = 4, .group_score_top = 1, .scaling_factor = 2.5f},
      mb::Combine{mb::LossFreeBias{.centring = mb::Centring::bias}, mb::SequenceLoss{.coefficient = 0.1f}, mb::ZLoss{}}};
  check_same_as_host(router, {8, 16, 40, 64, 128, 160, 256, 512, 1024, 2048});
  router.top_k.group_score_top = 2;
  check_same_as_host(router, {32, 64, 128, 160, 256, 1024});
  router.top_k.group_score_top = 3;
  check_same_as_host(router, {32, 256});
}

TEST_CASE("fibers = CPU: square root of softplus, not renormalised, micro-batch loss") {
  check_same_as_host(mb::Router{mb::SqrtSoftplus{}, mb::TopK<2>{.renormalise = false}, mb::AuxLoss{}}, {2, 5, 64, 129, 300});
}

TEST_CASE("update of layers with different numbers of experts on fibers gives the CPU's bits") {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{},
                          mb::LossFreeBias{.update_rate = 0.3f, .centring = mb::Centring::step}};
  const std::int32_t experts[] = {40, 33, 1, 7};
  const auto updated = [&](const auto& place) {
    std::vector<std::int64_t> load(160);
    for (std::size_t i = 0; i < load.size(); ++i) load[i] = static_cast<std::int64_t>(i * i % 23);
    std::vector<float> bias(160, 0.125f);
    bias[5] = -std::numeric_limits<float>::infinity();
    mb::LoadRef block{load.data(), 40, 4};
    block.experts_of_layer = experts;
    router.update(mb::BiasRef{bias.data(), 40, 4}, block, {}, place);
    CHECK(load == std::vector<std::int64_t>(160, 0));
    return bias;
  };
  const std::vector<float> on_host = updated(mb::Host{});
  CHECK(updated(Fibers{7}) == on_host);
  CHECK(on_host[72] != 0.125f);
  CHECK(on_host[73] == 0.125f);
}

}  // namespace testing
