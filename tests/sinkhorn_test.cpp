// Sinkhorn's scales, on the CPU.
#include "engine_host.hpp"

#include "bodies/sinkhorn.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(sinkhorn_values, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_balance, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_bits, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_types, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_padding, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_corners, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_sizes, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_iterations, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_errors, HostEngine);

TEST_CASE("sinkhorn: the same bits from any vector instructions, and from threads of the program's own") {
  const SinkhornCase given = sinkhorn_case(179, 900, 150, 2, 1);
  const Scales want = scales_of(HostEngine{}, given);
  for (const mb::InstructionSet set :
       {mb::InstructionSet::baseline, mb::InstructionSet::x86_64_v3, mb::InstructionSet::x86_64_v4}) {
    CHECK(scales_of(HostEngine{.instructions = set}, given) == want);
  }
  const auto backwards = [](int parts, const mb::ExecutorPart& part) {
    for (int i = parts - 1; i >= 0; --i) part(i);
  };
  CHECK(scales_of(HostEngine{.threads = 4, .executor = mb::executor_of(backwards)}, given) == want);
}

// What docs/dispatch.md says of them.
TEST_CASE("sinkhorn: normal logits take some tens of iterations, experts of very different means no end, for little") {
  struct Size {
    std::int64_t tokens, experts;
  };
  const auto after = [](const Size& size, double deviation, double of_experts, int most) {
    SinkhornCase given = sinkhorn_case(183, size.tokens, size.experts, deviation, of_experts);
    given.max_iterations = most;
    return scales_of(HostEngine{.threads = 2}, given);
  };
  for (const Size& size : {Size{64, 8}, {1024, 32}, {256, 256}}) {
    CAPTURE(size.tokens);
    for (const double of_experts : {0.0, 1.0}) {
      CAPTURE(of_experts);
      CHECK(after(size, 0.1, of_experts, 100).iterations <= 3);
      CHECK(after(size, 1.0, of_experts, 100).iterations <= 7);
      CHECK(after(size, 3.0, of_experts, 100).iterations <= 23);
    }
    CHECK(after(size, 6.0, 1.0, 100).iterations <= 79);
  }
  constexpr Size far{200, 32};
  const Scales some = after(far, 1.0, 3.0, 50), many = after(far, 1.0, 3.0, 2000);
  CHECK(some.iterations == 50);
  CHECK(many.iterations == 2000);
  const SinkhornCase given = sinkhorn_case(183, far.tokens, far.experts, 1.0, 3.0);
  const auto best = [&](const Scales& scales, std::int64_t t) {
    std::int64_t result = 0;
    const auto scaled = [&](std::int64_t e) {
      return given.logits[static_cast<std::size_t>(t * far.experts + e)] +
             static_cast<double>(scales.log_scale[static_cast<std::size_t>(e)]);
    };
    for (std::int64_t e = 1; e < far.experts; ++e) result = scaled(e) > scaled(result) ? e : result;
    return result;
  };
  int others = 0;
  for (std::int64_t t = 0; t < far.tokens; ++t) others += best(some, t) != best(many, t) ? 1 : 0;
  CHECK(others * 50 <= far.tokens);
}

TEST_CASE("sinkhorn: a router that ranks by logits beside log_scale chooses the K best of d1 C d0") {
  constexpr std::int64_t tokens = 50, experts = 24, k = 3;
  const SinkhornCase given = sinkhorn_case(180, tokens, experts, 1.5, 1);
  const SinkhornOracle want(given);
  Scales scales = scales_of(HostEngine{}, given);
  const std::vector<float> logits(given.logits.begin(), given.logits.end());
  std::vector<std::int32_t> ids(tokens * k);
  std::vector<float> weights(tokens * k);
  mb::Router{mb::Identity{}, mb::TopK<k>{}, mb::LossFreeBias{}}.route(
      {.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
       .experts = {ids.data(), tokens, k},
       .weights = mb::MatrixView<float>(weights.data(), tokens, k),
       .bias = {scales.log_scale.data(), static_cast<int>(experts)}},
      {}, mb::Host{});
  for (std::size_t t = 0; t < tokens; ++t) {
    const auto value = [&](std::size_t e) {
      return want.d1[e] * std::exp(static_cast<long double>(given.logits[t * experts + e])) * want.d0[t];
    };
    std::vector<std::size_t> order(experts);
    for (std::size_t e = 0; e < experts; ++e) order[e] = e;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return value(a) > value(b); });
    for (std::size_t slot = 0; slot < k; ++slot) CHECK(static_cast<std::size_t>(ids[t * k + slot]) == order[slot]);
  }
}

}  // namespace testing
