// BalancedTokens, on the CPU.
#include "engine_host.hpp"

#include "bodies/balanced_tokens.hpp"
#include "bodies/gradient.hpp"
#include "side_by_side.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(balanced_agreement, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_edges, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_two_calls, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_infinities, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_margins, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_capacity, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(balanced_and_permuted, HostEngine);

TEST_CASE("BalancedTokens: float64") {
  const Inputs inputs = in_float64(marked_inputs(1870, 43, 24, 4));
  agrees(HostEngine(), mb::Sigmoid{}, mb::TopK<4>{}, inputs, mb::Combine{everything(), mb::BalancedTokens{}});
}

/// Runs of tokens of one kind, as prompts and answers are, and tokens of both kinds mixed.
TEST_CASE(
    "BalancedTokens: tokens side by side, any instructions and any number of threads have the bits of rows one by one") {
  const auto check = [](const auto& router, int experts) {
    CAPTURE(experts);
    for (const auto kind : {side_by_side::Kind::normal, side_by_side::Kind::negative, side_by_side::Kind::rare_faults}) {
      Inputs inputs = side_by_side::make_inputs(kind, experts, router.k, static_cast<std::uint64_t>(1880 + experts));
      inputs.bias = normal_bias(1881, experts);
      inputs.load = zero_load(experts);
      inputs.sequences = 13;
      inputs.balanced = Random(1882).flags(static_cast<std::size_t>(inputs.tokens), 0.4);
      side_by_side::check(router, inputs);
      for (std::size_t t = 0; t < inputs.balanced.size(); ++t) inputs.balanced[t] = t / 48 % 2 == 0 ? 1 : 0;
      side_by_side::check(router, inputs);
    }
  };
  const mb::Combine losses{mb::AuxLoss{.coefficient = 0.5f},
                           mb::CommunicationLoss{mb::SequenceLoss{.coefficient = 0.3f}, 4, 1},
                           mb::ZLoss{.coefficient = 0.1f},
                           mb::EntropyLoss{.coefficient = -0.3f},
                           mb::LossFreeBias{},
                           mb::BalancedTokens{}};
  const mb::Combine plain{mb::FromPlainTopK{mb::AuxLoss{.coefficient = 0.5f}}, mb::LossFreeBias{}, mb::BalancedTokens{}};
  for (const int experts : {8, 32, 64, 100}) {
    check(mb::Router{mb::Softmax{}, mb::TopK<2>{}, losses}, experts);
    check(mb::Router{mb::Sigmoid{}, mb::TopK<3>{}, losses}, experts);
    check(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<2>{}, losses}, experts);
    check(mb::Router{mb::Identity{}, mb::TopK<2>{}, losses}, experts);
    check(mb::Router{mb::Softmax{}, mb::TopK<3>{}, plain}, experts);
  }
}

TEST_CASE("BalancedTokens: a balancer that does not mark tokens refuses the marks") {
  Inputs inputs = marked_inputs(1890, 6, 8, 2);
  Memory<HostEngine> memory = memory_for(HostEngine(), mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{}}, inputs);
  const mb::Router without{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{}};
  CHECK_THROWS_WITH_AS(
      without.forward(memory.forward_args(), {}, mb::Host{}),
      doctest::Contains("forward: balanced is given; allowed: null, unless BalancedTokens is a part of the balancer"),
      mb::InvalidArgument);
  CHECK_THROWS_WITH_AS(without.backward(memory.backward_args(), {}, mb::Host{}),
                       doctest::Contains("backward: balanced is given"), mb::InvalidArgument);
  const Outcome untouched = memory.outcome();
  CHECK(untouched.counts == std::vector<std::int64_t>(8, 0x5a5a5a5a5a));
}

}  // namespace testing
