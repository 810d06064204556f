// Which calls a kernel for usual ones may serve (engine/usual_call.hpp): each way to deviate makes a call one for the kernel that serves any.
#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/moe_balance.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace mb = moe_balance;

namespace {

constexpr int experts = 64;
constexpr std::int64_t tokens = 12;

template <class Problem>
struct Deviation {
  std::string name;
  std::function<void(Problem&)> make;
};

template <class Balancer>
using Forward = mb::ForwardProblem<mb::Sigmoid, mb::TopK<2>, Balancer>;
template <class Balancer>
using Backward = mb::BackwardProblem<mb::Sigmoid, mb::TopK<2>, Balancer>;

/// Memory that is never read.
struct Addresses {
  alignas(16) float logits[8];
  alignas(16) float grad_logits[8];
  std::int32_t ids[2];
  float weights[2];
  float bias[1];
  std::uint8_t active[1];
  std::int64_t count[1];
} addresses;

mb::Segments segments_of(mb::Sequences::Layout layout) {
  return {mb::Sequences{4, layout, addresses.count}, tokens};
}

template <class Balancer>
Forward<Balancer> usual_forward(bool has_bias) {
  return {mb::Sigmoid{},
          mb::TopK<2>{},
          Balancer{},
          mb::MatrixView<const float>(addresses.logits, tokens, experts),
          {addresses.ids, tokens, 2},
          mb::MatrixView<float>(addresses.weights, tokens, 2),
          has_bias ? addresses.bias : nullptr,
          nullptr,
          nullptr,
          {},
          segments_of(mb::Sequences::Layout::sequence_major),
          true};
}

Backward<mb::AuxLoss> usual_backward() {
  return {mb::Sigmoid{},
          mb::TopK<2>{},
          mb::AuxLoss{},
          mb::MatrixView<const float>(addresses.logits, tokens, experts),
          mb::MatrixView<const std::int32_t>(addresses.ids, tokens, 2),
          mb::MatrixView<const float>(addresses.weights, tokens, 2),
          mb::MatrixView<float>(addresses.grad_logits, tokens, experts),
          {},
          nullptr,
          nullptr,
          nullptr,
          1.0f,
          1,
          segments_of(mb::Sequences::Layout::sequence_major),
          true,
          true};
}

/// What forward and backward have in common.
template <class Problem>
std::vector<Deviation<Problem>> deviations_of_both() {
  using Layout = mb::Sequences::Layout;
  return {{"a quad that is not whole", [](Problem& p) { p.logits.columns = p.logits.stride = experts - 2; }},
          {"fewer experts in rows as long", [](Problem& p) { p.logits.columns = experts - 4; }},
          {"space between the rows of logits", [](Problem& p) { p.logits.stride = experts + 4; }},
          {"space between the rows of ids", [](Problem& p) { p.experts.stride = 3; }},
          {"tokens in turn", [](Problem& p) { p.segments = segments_of(Layout::token_major); }},
          {"sequences of any length", [](Problem& p) { p.segments = segments_of(Layout::offsets); }},
          {"rows that 32 bits do not count", [](Problem& p) { p.logits.rows = (std::int64_t{1} << 30) + 1; }}};
}

template <class Balancer>
std::vector<Deviation<Forward<Balancer>>> deviations_of_forward() {
  using Problem = Forward<Balancer>;
  auto deviations = deviations_of_both<Problem>();
  deviations.push_back({"unaligned logits", [](Problem& p) { p.rows_hold_quads = false; }});
  deviations.push_back({"weights in bfloat16", [](Problem& p) { p.weights.type = mb::DataType::bfloat16; }});
  deviations.push_back({"weights in float16", [](Problem& p) { p.weights.type = mb::DataType::float16; }});
  deviations.push_back({"space between the rows of weights", [](Problem& p) { p.weights.stride = 3; }});
  deviations.push_back({"a bias where the balancer has none, or none where it has one",
                        [](Problem& p) { p.bias = p.bias == nullptr ? addresses.bias : nullptr; }});
  return deviations;
}

std::vector<Deviation<Backward<mb::AuxLoss>>> deviations_of_backward() {
  using Problem = Backward<mb::AuxLoss>;
  auto deviations = deviations_of_both<Problem>();
  deviations.push_back({"unaligned logits", [](Problem& p) { p.logits_hold_quads = false; }});
  deviations.push_back({"an unaligned gradient", [](Problem& p) { p.grad_holds_quads = false; }});
  deviations.push_back({"weights without gradients", [](Problem& p) { p.grad_weights.data = nullptr; }});
  deviations.push_back({"their gradients in bfloat16", [](Problem& p) { p.grad_weights.type = mb::DataType::bfloat16; }});
  deviations.push_back({"space between their rows", [](Problem& p) { p.grad_weights.stride = 3; }});
  deviations.push_back({"a gradient of another type", [](Problem& p) { p.grad_logits.type = mb::DataType::bfloat16; }});
  deviations.push_back({"logits of another type", [](Problem& p) { p.logits.type = mb::DataType::bfloat16; }});
  deviations.push_back({"space between the gradient's rows", [](Problem& p) { p.grad_logits.stride = experts + 4; }});
  return deviations;
}

/// Whether the kernel that serves a problem is one for usual calls.
template <class Problem>
bool is_served_as_usual(const Problem& problem) {
  bool usual = false;
  mb::with_config(problem, [&](auto config) { usual = decltype(config)::usual; });
  return usual;
}

template <class Problem>
void check_deviations(const Problem& usual, const std::vector<Deviation<Problem>>& deviations) {
  REQUIRE(mb::is_usual(usual));
  CHECK(is_served_as_usual(usual));
  for (const Deviation<Problem>& deviation : deviations) {
    CAPTURE(deviation.name);
    Problem problem = usual;
    deviation.make(problem);
    CHECK(!mb::is_usual(problem));
  }
}

}  // namespace

TEST_CASE("forward: a usual call deviates in no way") {
  check_deviations(usual_forward<mb::AuxLoss>(false), deviations_of_forward<mb::AuxLoss>());
  check_deviations(usual_forward<mb::LossFreeBias>(true), deviations_of_forward<mb::LossFreeBias>());
}

TEST_CASE("backward: a usual call deviates in no way") {
  check_deviations(usual_backward(), deviations_of_backward());
}

TEST_CASE("a usual call has whole quads of experts, in a tier that has a kernel for it") {
  for (int e = 1; e <= mb::max_experts; ++e) {
    Forward<mb::AuxLoss> problem = usual_forward<mb::AuxLoss>(false);
    problem.logits.columns = problem.logits.stride = e;
    CAPTURE(e);
    CHECK(is_served_as_usual(problem) == (e <= 256 && e % 4 == 0));
  }
}

TEST_CASE(
    "of the tiers that are compiled the first that holds the experts serves them; fewer than the first was made for, too") {
  constexpr mb::TierRange compiled{mb::tier_of(40), mb::tier_of(100)};
  const auto serving = [](int e) {
    int tier = -1;
    mb::with_tier<compiled>(e, [&](auto index) { tier = decltype(index)::value; });
    return tier < 0 ? 0 : mb::cuda_tiers[tier].max_experts;
  };
  for (int e = 1; e <= mb::max_experts; ++e) {
    CAPTURE(e);
    CHECK(serving(e) == (e <= 64 ? 64 : e <= 128 ? 128 : 0));
    CHECK(mb::cuda_tiers[mb::tier_of(e)].max_experts >= e);
    CHECK((mb::tier_of(e) == 0 || mb::cuda_tiers[mb::tier_of(e) - 1].max_experts < e));
  }
}

TEST_CASE("a usual call may have masks, logits in 16 bits, as many tokens as 30 bits count, or none") {
  Forward<mb::AuxLoss> forward = usual_forward<mb::AuxLoss>(false);
  Backward<mb::AuxLoss> backward = usual_backward();
  forward.active = backward.active = addresses.active;
  CHECK(mb::is_usual(forward));
  CHECK(mb::is_usual(backward));
  forward.tokens_on_device = backward.tokens_on_device = addresses.count;
  CHECK(mb::is_usual(forward));
  CHECK(mb::is_usual(backward));
  for (const mb::DataType type : {mb::DataType::bfloat16, mb::DataType::float16}) {
    forward.logits.type = backward.logits.type = backward.grad_logits.type = type;
    CHECK(mb::is_usual(forward));
    CHECK(mb::is_usual(backward));
  }
  for (const std::int64_t rows : {std::int64_t{0}, std::int64_t{1} << 30}) {
    forward.logits.rows = backward.logits.rows = rows;
    CHECK(mb::is_usual(forward));
    CHECK(mb::is_usual(backward));
  }
}
