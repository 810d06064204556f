// What a file runs that is compiled for some numbers of experts only (MOE_BALANCE_CUDA_MIN_EXPERTS): tiers that are larger than they need to be, which
// give the CPU's bits all the same.
#include "tile/same_as_host.hpp"

namespace testing {

namespace {

/// The tiers of 128 experts, of 16 lanes, and of 2048, whose lanes read logits again.
using TwoTiers = FibersOfTiers<2, 6>;

template <class Router>
void check_in_two_tiers(const Router& router) {
  for (const int experts : {4, 9, 32, 33, 64, 100, 127, 129, 256, 600}) {
    for (const bool awkward : {false, true}) {
      CAPTURE(experts);
      CAPTURE(awkward);
      StepInputs inputs(static_cast<std::uint64_t>(experts), 13, experts, Router::k, awkward);
      for (const bool usual : {false, true}) {
        CAPTURE(usual);
        inputs.usual = usual;
        const int usual_before = usual_kernels;
        check_same(run_step(router, inputs, mb::Host{.threads = 1}),
                   run_step(router, inputs, TwoTiers{.seed = static_cast<std::uint64_t>(experts), .multiprocessors = 2}));
        CHECK((usual_kernels > usual_before) == (usual && experts % 4 == 0 && experts <= 128));
      }
    }
  }
}

}  // namespace

TEST_CASE("larger tiers than experts need have the CPU's bits: Softmax with losses") {
  check_in_two_tiers(mb::Router{mb::Softmax{}, mb::TopK<4>{}, mb::Combine{mb::AuxLoss{}, mb::ZLoss{}}});
}
TEST_CASE("larger tiers than experts need have the CPU's bits: Sigmoid with a bias and a loss") {
  check_in_two_tiers(mb::Router{mb::Sigmoid{}, mb::TopK<4>{}, mb::Combine{mb::LossFreeBias{}, mb::SequenceLoss{}}});
}

}  // namespace testing
