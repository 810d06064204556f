// Whole kernel bodies on fibers under AddressSanitizer and UndefinedBehaviorSanitizer, which this program is always compiled with. Its results
// must not depend on the order of lanes and blocks; that they are the CPU's is for fiber_kernels_*_test.
// The cases named "planted" do what must not be done, and ctest expects each to be stopped (tests/CMakeLists.txt).
#include "tile/same_as_host.hpp"

#include <limits>

namespace testing {

namespace {

/// Sub-warp tiles, whole warps, and whole warps with sums in shared memory that read logits again.
using FewTiers = FibersOfTiers<0, 3, 6>;

/// Awkward logits, sequences, several blocks and rows of blocks; without tokens, with one, with many.
template <class Router>
void check_orders(const Router& router, int experts, bool usual, bool masked) {
  for (const std::int64_t tokens : {0, 1, 36}) {
    CAPTURE(experts);
    CAPTURE(tokens);
    StepInputs inputs(static_cast<std::uint64_t>(experts), tokens, experts, Router::k, true);
    inputs.usual = usual;
    inputs.masked = masked;
    const StepOutputs first = run_step(router, inputs, FewTiers{.seed = 1, .multiprocessors = 1});
    CHECK(same_bits(first, run_step(router, inputs, FewTiers{.seed = 2, .multiprocessors = 2})));
  }
}

/// By calls of any kind and by usual ones, whose kernels read ahead.
template <class Router>
void check_orders(const Router& router) {
  for (const int experts : {24, 33, 200, 1030}) check_orders(router, experts, false, true);
  for (const int experts : {24, 32, 200, 256}) {
    StepInputs inputs(1, 1, experts, Router::k, false);
    inputs.usual = true;
    for (const bool masked : {false, true}) {
      inputs.masked = masked;
      const int usual_before = usual_kernels;
      check_orders(router, experts, true, masked);
      const int kernels = usual_kernels_of<Router>(inputs);
      CHECK((kernels >= 1 || masked));
      CHECK(usual_kernels - usual_before >= 2 * 2 * kernels);  // of two numbers of tokens, in two orders
    }
  }
}

}  // namespace

TEST_CASE("sanitized: elementwise scores, groups, replay and every balancer") {
  check_orders(
      mb::Router{mb::SqrtSoftplus{}, mb::Replay{mb::GroupLimitedTopK<3>{.groups = 1, .groups_kept = 1}},
                 mb::Combine{mb::AuxLoss{}, mb::SequenceLoss{}, mb::GlobalBatchLoss{}, mb::ZLoss{}, mb::LossFreeBias{}}});
}

TEST_CASE("sanitized: softmax, losses that count a plain top-k") {
  check_orders(mb::Router{mb::Softmax{}, mb::TopK<5>{}, mb::Combine{mb::FromPlainTopK{mb::SequenceLoss{}}, mb::ZLoss{}}});
}

TEST_CASE("planted: one step past the end of shared memory" * doctest::skip()) {
  launch_fibers(Fibers{}, 1, 1, 32, 32 * sizeof(float), [](const FiberBlock& block) {
    auto* values = reinterpret_cast<float*>(block.shared());
    values[block.thread()] = 1.0f;
    block.barrier();
    values[block.thread()] += values[block.thread() + 1];
  });
}

TEST_CASE("planted: one step past the end of global memory" * doctest::skip()) {
  const std::vector<float> values(100, 1.0f);
  std::int64_t total = 0;
  launch_fibers(Fibers{}, 2, 1, 32, 0, [&](const FiberBlock& block) {
    for (std::int64_t i = block.index() * 32 + block.thread(); i <= 100; i += 64) {
      block.add_global(&total, static_cast<std::int64_t>(values.data()[i]));
    }
  });
  CHECK(total == 101);
}

TEST_CASE("planted: a kernel with less shared memory than it asks for" * doctest::skip()) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<2>{}, mb::AuxLoss{}};
  const StepInputs inputs(1, 5, 300, 2, false);  // of a tier where sums, which all blocks clear, are what lies last
  (void)run_step(router, inputs, FewTiers{.faults = {.less_shared_bytes = 16}});
}

TEST_CASE("planted: a lane whose integers overflow" * doctest::skip()) {
  launch_fibers(Fibers{}, 1, 1, 8, 0, [](const FiberBlock& block) {
    const FiberTile<8> tile{block.group, block.thread()};
    const std::int32_t largest = tile.maximum(std::numeric_limits<std::int32_t>::max() - block.thread());
    CHECK(largest + block.thread() >= 0);
  });
}

}  // namespace testing
