// Capacity on the CPU: against plain loops, and exact gradients.
#include "engine_host.hpp"

#include "bodies/capacity.hpp"
#include "bodies/capacity_router.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(capacity_random, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_corners, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_empty_slots, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_overlap, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_non_finite, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_overflow, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_selections, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_losses, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_route, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_backward_ids, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_router_overlap, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(capacity_pad, HostEngine);

TEST_CASE("capacity: margins are those of the demand, whatever is dropped") {
  const mb::QuantileBias rule{.bins = 25};
  const mb::Router limited{mb::Sigmoid{}, mb::WithCapacity<mb::TopK<3>>{.capacity_factor = 0.6}, rule};
  Inputs inputs = normal_inputs(75, 90, 20, 3, 1.5);
  inputs.bias = normal_bias(76, 20);
  inputs.load = std::vector<std::int64_t>(20 * 26, 0);
  inputs.backward = false;
  const Outcome demand = train(HostEngine(), mb::Router{mb::Sigmoid{}, mb::TopK<3>{}, rule}, inputs);
  Memory<HostEngine> memory = memory_for(HostEngine(), limited, inputs);
  std::vector<std::int32_t> chosen(90 * 3);
  mb::ForwardArgs args = memory.forward_args();
  args.chosen = {chosen.data(), 90, 3};
  limited.forward(args, memory.workspace(), mb::Host{});
  const Outcome outcome = memory.outcome();
  CHECK(outcome.load == demand.load);
  CHECK(outcome.experts != demand.experts);
  CHECK(chosen == demand.experts);
}

TEST_CASE("capacity: any number of threads gives the same result") {
  for (const mb::DropBy drop : {mb::DropBy::score, mb::DropBy::position, mb::DropBy::random}) {
    CapacityProblem p = capacity_problem(71, 20000, 4, 8, 5000, 20);
    p.drop = drop;
    p.renormalise = true;
    const CapacityResult one = limit(HostEngine{.threads = 1}, p);
    check_limit(p, one);
    for (const int threads : {2, 5}) {
      const CapacityResult many = limit(HostEngine{.threads = threads}, p);
      CHECK(many.experts == one.experts);
      CHECK(many.weights == one.weights);
      CHECK(many.kept_counts == one.kept_counts);
      CHECK(many.dropped == one.dropped);
    }
  }
}

TEST_CASE(
    "capacity: at random each slot stays as often as its expert has room, in each offset anew, and whoever shares its "
    "batch") {
  constexpr std::int64_t tokens = 40;
  constexpr int draws = 4000;
  CapacityProblem p{.tokens = tokens, .k = 3, .experts = 3, .capacity = 10, .drop = mb::DropBy::random};
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int32_t id : {0, 1, 2}) p.chosen.push_back(id);
  }
  p.weights.assign(p.chosen.size(), 0.5);
  std::vector<int> stayed(p.chosen.size()), with_first(p.chosen.size());
  for (int draw = 0; draw < draws; ++draw) {
    p.priority = {.seed = 7, .offset = static_cast<std::uint64_t>(draw)};
    const CapacityResult got = limit(HostEngine{.threads = 1}, p);
    for (std::size_t i = 0; i < stayed.size(); ++i) {
      stayed[i] += got.experts[i] >= 0 ? 1 : 0;
      with_first[i] += got.experts[0] >= 0 && got.experts[i] >= 0 ? 1 : 0;
    }
  }
  // A quarter stays; of a token's slots one tells nothing of another. Five standard deviations.
  for (std::size_t i = 0; i < stayed.size(); ++i) {
    CHECK(std::abs(stayed[i] - draws / 4) < 5 * std::sqrt(draws * 0.25 * 0.75));
    if (i % 3 != 0) CHECK(std::abs(with_first[i] - draws / 16) < 5 * std::sqrt(draws / 16.0));
  }
  // Tokens 10 to 19 by themselves, with room for all that had stayed of them.
  p.priority = {.seed = 7, .offset = 1};
  const CapacityResult all = limit(HostEngine{}, p);
  CapacityProblem part = p;
  part.tokens = 10;
  part.chosen.resize(30);
  part.weights.resize(30);
  part.priority.first_token = 10;
  for (int e = 0; e < 3; ++e) {
    std::int64_t room = 0;
    for (std::size_t i = 30; i < 60; ++i) room += all.experts[i] == e ? 1 : 0;
    if (room == 0) continue;
    part.capacity = room;
    const CapacityResult own = limit(HostEngine{}, part);
    for (std::size_t i = static_cast<std::size_t>(e); i < 30; i += 3) CHECK(own.experts[i] == all.experts[i + 30]);
  }
}

TEST_CASE("capacity: any number of threads renormalises to the same bits") {
  CapacityProblem p = capacity_problem(73, 50000, 2, 8, 9000, 0);  // a thread takes 16384 tokens or more
  p.renormalise = true;
  p.scaling_factor = 2.5f;
  const CapacityResult one = limit(HostEngine{.threads = 1}, p);
  check_limit(p, one);
  for (const int threads : {2, 3}) {
    CHECK(mb::DispatchEngine<mb::Host>::for_items(p.tokens, mb::Host{.threads = threads}).blocks == threads);
    const CapacityResult many = limit(HostEngine{.threads = threads}, p);
    CHECK(many.experts == one.experts);
    CHECK(many.weights == one.weights);
  }
}

TEST_CASE(
    "capacity: an id that no expert has is refused by the call's and the argument's own names, before anything is written") {
  for (const int experts : {4, 5000}) {  // counted, sorted
    std::vector<std::int32_t> chosen{0, 1, 9, -1, 3, experts};
    std::vector<std::int32_t> ids(6, 77);
    std::vector<float> weights(6, 0.5f);
    std::vector<std::int64_t> kept(static_cast<std::size_t>(experts), 77);
    std::vector<std::max_align_t> scratch(mb::capacity_workspace_bytes(3, 2, experts) / 16 + 1);
    mb::Status status{};
    const mb::CapacityArgs args{.chosen = {chosen.data(), 3, 2},
                                .experts = {ids.data(), 3, 2},
                                .weights = mb::MatrixView<float>(weights.data(), 3, 2),
                                .expert_count = experts,
                                .capacity = 1,
                                .kept_counts = kept.data(),
                                .status = &status};
    const std::string want = experts == 4 ? "limit_to_capacity: chosen[2] is 9; allowed: -1 to 3"
                                          : "limit_to_capacity: chosen[5] is 5000; allowed: -1 to 4999";
    CHECK_THROWS_WITH_AS(mb::limit_to_capacity(args, {scratch.data(), scratch.size() * 16}, mb::Host{}),
                         doctest::Contains(want.c_str()), mb::InvalidArgument);
    CHECK(ids == std::vector<std::int32_t>(6, 77));
    CHECK(weights == std::vector<float>(6, 0.5f));
    CHECK(kept == std::vector<std::int64_t>(static_cast<std::size_t>(experts), 77));
    CHECK(status.invalid_experts == 0);
    CHECK(status.dropped_slots == 0);
  }
}

TEST_CASE("capacity: a router gives the same for any number of threads, its gradient among it") {
  const Inputs inputs = inputs_with_non_finite(101, 100000, 8, 3);  // enough for five threads (tuning.hpp)
  const mb::Router router{mb::Sigmoid{}, mb::WithCapacity<mb::TopK<3>>{.capacity_factor = 0.8, .renormalise = true}};
  const Limited one = limited(HostEngine{.threads = 1}, router, inputs);
  for (const int threads : {2, 5}) CHECK(same_bits(limited(HostEngine{.threads = threads}, router, inputs), one));
}

TEST_CASE("capacity: the capacity of an expert") {
  CHECK(mb::expert_capacity(40, 4, 60, 1.25) == 4);
  CHECK(mb::expert_capacity(48, 2, 16, 1.0) == 6);
  CHECK(mb::expert_capacity(0, 2, 16, 1.0) == 1);
  CHECK(mb::expert_capacity(std::int64_t{1} << 40, 8, 256, 1.5) == (std::int64_t{1} << 35) * 3 / 2);
  CHECK(mb::expert_capacity(std::int64_t{1} << 34, 8, 1, 1.5) == (std::int64_t{1} << 37) * 3 / 2);
}

/// sum of weights * grad in float64 after dropping; what is dropped must not change between the differences.
template <class Router>
struct LimitedLoss {
  Router router;
  std::vector<double> logits;
  std::vector<double> grads;
  std::int64_t tokens;
  std::int64_t experts;
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(grads.size());
  std::vector<std::int32_t> chosen = std::vector<std::int32_t>(grads.size());
  std::vector<double> weights = std::vector<double>(grads.size());
  std::vector<double> scratch = std::vector<double>(router.workspace_bytes({tokens, static_cast<int>(experts)}) / 8 + 2);

  [[nodiscard]] mb::Workspace workspace() { return {scratch.data(), scratch.size() * 8}; }
  double value() {
    router.forward({.logits = mb::MatrixView<const double>(logits.data(), tokens, experts),
                    .experts = {ids.data(), tokens, Router::k},
                    .weights = mb::MatrixView<double>(weights.data(), tokens, Router::k),
                    .chosen = {chosen.data(), tokens, Router::k}},
                   workspace(), mb::Host{});
    double sum = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) sum += weights[i] * grads[i];
    return sum;
  }
  std::vector<double> gradient() {
    value();
    std::vector<double> result(logits.size());
    router.backward({.logits = mb::MatrixView<const double>(logits.data(), tokens, experts),
                     .experts = mb::MatrixView<const std::int32_t>(ids.data(), tokens, Router::k),
                     .grad_weights = mb::MatrixView<const double>(grads.data(), tokens, Router::k),
                     .grad_logits = mb::MatrixView<double>(result.data(), tokens, experts),
                     .chosen = mb::MatrixView<const std::int32_t>(chosen.data(), tokens, Router::k)},
                    workspace(), mb::Host{});
    return result;
  }
};

template <class Router>
void check_gradient(const Router& router) {
  Random random(72);
  LimitedLoss<Router> loss{router, random.normals<double>(12 * 5), random.normals<double>(12 * Router::k), 12, 5};
  const std::vector<double> gradient = loss.gradient();
  const std::vector<std::int32_t> kept = loss.ids;
  CHECK(std::count(kept.begin(), kept.end(), -1) > 0);
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    const double at = loss.logits[i];
    const double step = 1e-6;
    loss.logits[i] = at + step;
    const double above = loss.value();
    REQUIRE(loss.ids == kept);
    loss.logits[i] = at - step;
    const double below = loss.value();
    REQUIRE(loss.ids == kept);
    loss.logits[i] = at;
    CHECK(std::abs((above - below) / (2 * step) - gradient[i]) <= 1e-8 * (1 + std::abs(gradient[i])));
  }
}

TEST_CASE("capacity: a router's gradient is exact, renormalised after dropping or not") {
  for (const bool renormalise : {false, true}) {
    check_gradient(mb::Router{
        mb::Softmax{}, mb::WithCapacity<mb::TopK<3>>{
                           .capacity_factor = 0.8, .renormalise = renormalise, .selection = {.scaling_factor = 2.5f}}});
    check_gradient(mb::Router{mb::SoftmaxOverSelected{},
                              mb::WithCapacity<mb::TopK<3>>{.capacity_factor = 0.8, .renormalise = renormalise}});
  }
  check_gradient(mb::Router{mb::Sigmoid{},
                            mb::WithCapacity<mb::TopK<2>>{
                                .capacity_factor = 0.7, .drop = mb::DropBy::position, .selection = {.renormalise = false}}});
}

}  // namespace testing
