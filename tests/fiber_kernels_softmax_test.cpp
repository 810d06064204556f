// The CUDA kernels' bodies, executed on fibers, give the bits of the CPU engine: routers whose scores are a softmax. Every tier.
#include "tile/same_as_host.hpp"

namespace testing {

TEST_CASE("fibers = CPU: softmax, global-batch loss") {
  check_same_as_host(mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::GlobalBatchLoss{}},
                     {8, 16, 32, 60, 64, 128, 160, 256, 257, 384, 512, 896, 1024, 2048});
}

TEST_CASE("fibers = CPU: softmax over the selected, micro-batch and z-loss, replay") {
  check_same_as_host(
      mb::Router{mb::SoftmaxOverSelected{}, mb::Replay{mb::TopK<6>{}}, mb::Combine{mb::AuxLoss{}, mb::ZLoss{}}},
      {6, 33, 64, 100, 256, 500});
}

TEST_CASE("fibers = CPU: softmax, replay, no losses, so that tokens without experts have no gradient") {
  check_same_as_host(mb::Router{mb::Softmax{}, mb::Replay{mb::TopK<3>{}}}, {32, 64, 100, 256, 512});
}

TEST_CASE("fibers = CPU: losses over devices, a bias in proportion") {
  check_same_as_host(
      mb::Router{mb::Softmax{}, mb::TopK<4>{},
                 mb::Combine{mb::ProportionalBias{.centring = mb::Centring::step}, mb::DeviceLoss{mb::AuxLoss{}, 4},
                             mb::DeviceLoss{mb::SequenceLoss{.coefficient = 0.1f}, 2}}},
      {4, 60, 256, 1024});
}

TEST_CASE("fibers = CPU: losses that count tokens which reach a device") {
  check_same_as_host(mb::Router{mb::Softmax{}, mb::TopK<4>{},
                                mb::Combine{mb::LossFreeBias{}, mb::AuxLoss{}, mb::CommunicationLoss{mb::AuxLoss{}, 4, 2}}},
                     {4, 60, 128, 256, 1024});
  check_same_as_host(mb::Router{mb::Softmax{}, mb::Replay{mb::GroupLimitedTopK<4>{.groups = 4, .groups_kept = 2}},
                                mb::Combine{mb::CommunicationLoss{mb::SequenceLoss{.coefficient = 0.1f}, 2, 2},
                                            mb::FromPlainTopK{mb::SequenceLoss{}}, mb::ZLoss{}}},
                     {32, 60, 256, 512});
}

TEST_CASE("fibers = CPU: biases whose rules keep something") {
  check_same_as_host(mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::SmebuBias{}}, {4, 60, 256});
  check_same_as_host(
      mb::Router{mb::Softmax{}, mb::TopP<4>{}, mb::Combine{mb::MultiplicativeBias{mb::SmebuBias{}}, mb::ZLoss{}}},
      {60, 128, 256, 512});
  check_same_as_host(mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::PidBias{.integral = 1e-3f, .derivative = 1e-2f}}, {33});
}

TEST_CASE("fibers = CPU: losses that count a plain top-k") {
  check_same_as_host(
      mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::Combine{mb::LossFreeBias{}, mb::FromPlainTopK{mb::AuxLoss{}}}},
      {4, 60, 256, 1024});
}

}  // namespace testing
