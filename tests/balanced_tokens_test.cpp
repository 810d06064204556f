// BalancedTokens, on the CPU.
#include "engine_host.hpp"

#include "bodies/balanced_tokens.hpp"
#include "bodies/gradient.hpp"
#include "side_by_side.hpp"

#include <moe_balance/sync/thread.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

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
    for (const auto kind : {side_by_side::Kind::normal, side_by_side::Kind::rare_faults}) {
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
  for (const int experts : {8, 32, 64}) {
    check(mb::Router{mb::Softmax{}, mb::TopK<2>{}, losses}, experts);
    check(mb::Router{mb::Sigmoid{}, mb::TopK<3>{}, losses}, experts);
    check(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<2>{}, losses}, experts);
    check(mb::Router{mb::Identity{}, mb::TopK<2>{}, losses}, experts);
    check(mb::Router{mb::Softmax{}, mb::TopK<3>{}, plain}, experts);
  }
}

TEST_CASE("BalancedTokens: ranks sum what their balanced tokens chose, and losses weigh by how many those are") {
  const std::vector<mb::ThreadSync> ranks = mb::ThreadSync::group(2);
  const mb::Router router{
      mb::Softmax{}, mb::TopK<2>{},
      mb::Combine{mb::GlobalBatchLoss{.coefficient = 0.5f}, mb::LossFreeBias{.update_rate = 0.25f}, mb::BalancedTokens{}}};
  constexpr std::int64_t tokens = 40, experts = 8;
  Inputs whole = normal_inputs(1895, tokens, experts, 2, 1.0);
  whole.balanced = Random(1896).flags(tokens, 0.5);
  whole.bias = normal_bias(1897, experts);
  whole.load = zero_load(experts);
  whole.backward = false;
  const auto updated = [](const auto& its_router, Memory<HostEngine>& memory) {
    const mb::ForwardArgs args = memory.forward_args();
    its_router.finish_update(args.bias, args.load, {}, mb::Host{});
    return memory.outcome();
  };
  Memory<HostEngine> all = memory_for(HostEngine(), router, whole);
  router.forward(all.forward_args(), {}, mb::Host{});
  router.loss(all.loss_args(), {}, mb::Host{});
  const Outcome expected = updated(router, all);

  std::vector<Memory<HostEngine>> halves;
  std::vector<std::int64_t> balanced;
  for (std::ptrdiff_t r = 0; r < 2; ++r) {
    Inputs half = whole;
    half.tokens = tokens / 2;
    const auto part = [r](const auto& of) {
      const auto size = static_cast<std::ptrdiff_t>(of.size()) / 2;
      return std::decay_t<decltype(of)>(of.begin() + r * size, of.begin() + (r + 1) * size);
    };
    half.logits = part(whole.logits);
    half.balanced = part(whole.balanced);
    balanced.push_back(std::count(half.balanced.begin(), half.balanced.end(), 1));
    halves.push_back(memory_for(HostEngine(), router, half));
    router.with_sync(ranks[static_cast<std::size_t>(r)]).forward(halves.back().forward_args(), {}, mb::Host{});
  }
  CHECK(balanced[0] != balanced[1]);
  for (std::size_t r = 0; r < 2; ++r) router.with_sync(ranks[r]).loss(halves[r].loss_args(), {}, mb::Host{});
  for (std::size_t r = 0; r < 2; ++r) router.with_sync(ranks[r]).start_update(halves[r].forward_args().load, {}, mb::Host{});
  double loss = 0;
  for (std::size_t r = 0; r < 2; ++r) {
    const Outcome outcome = updated(router.with_sync(ranks[r]), halves[r]);
    CHECK(outcome.bias == expected.bias);
    loss += static_cast<double>(outcome.loss) * static_cast<double>(balanced[r]);
  }
  CHECK(expected.bias != whole.bias);
  CHECK(loss / static_cast<double>(balanced[0] + balanced[1]) == doctest::Approx(expected.loss).epsilon(1e-6));
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
