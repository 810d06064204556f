// The promises of a Router WithCapacity, on any engine: its selection, then limit_to_capacity, then the gradient of what was kept; against plain loops in
// double.
#pragma once

#include "../agreement.hpp"
#include "../engine_host.hpp"
#include "../make_inputs.hpp"
#include "capacity.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

namespace testing {

/// All that forward, loss and backward wrote.
struct Limited {
  Outcome outcome;
  std::vector<std::int32_t> chosen;
  std::vector<std::int64_t> kept_counts;
};

template <class Engine, class Router>
Limited limited(const Engine& engine, const Router& router, const Inputs& inputs) {
  constexpr int k = Router::k;
  const auto columns = static_cast<std::size_t>(k + inputs.row_padding);
  Memory<Engine> memory = memory_for(engine, router, inputs);
  typename Engine::template Array<std::int32_t> chosen(
      engine, std::vector<std::int32_t>(static_cast<std::size_t>(inputs.tokens) * columns, 77));
  typename Engine::template Array<std::int64_t> kept(
      engine, std::vector<std::int64_t>(static_cast<std::size_t>(inputs.experts), 77));
  mb::ForwardArgs forward = memory.forward_args();
  forward.chosen = {chosen.data(), inputs.tokens, k, k + inputs.row_padding};
  forward.kept_counts = kept.data();
  router.forward(forward, memory.workspace(), engine.place());
  if constexpr (Router::loss_count > 0) router.loss(memory.loss_args(), memory.workspace(), engine.place());
  mb::BackwardArgs backward = memory.backward_args();
  backward.chosen = forward.chosen;
  router.backward(backward, memory.workspace(), engine.place());
  Limited result{memory.outcome(), {}, kept.values()};
  const std::vector<std::int32_t> rows = chosen.values();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i % columns < static_cast<std::size_t>(k)) result.chosen.push_back(rows[i]);
  }
  return result;
}

inline bool same_bits(const Limited& a, const Limited& b) {
  return same_bits(a.outcome, b.outcome) && a.outcome.saved == b.outcome.saved &&
         a.outcome.status.dropped_slots == b.outcome.status.dropped_slots && a.chosen == b.chosen &&
         a.kept_counts == b.kept_counts;
}

/// What dropping did to tokens, by kinds that a test wants to have seen.
struct Losers {
  int some = 0;        ///< lost a slot and kept another
  int all = 0;         ///< lost every slot
  int hidden = 0;      ///< lost every slot with a logit that is not finite, and kept another
  int non_finite = 0;  ///< chose a logit that is not finite
};

inline Losers losers_of(const oracle::Problem& problem, const Limited& got) {
  Losers result;
  const auto k = static_cast<std::size_t>(problem.k);
  for (std::size_t t = 0; t < static_cast<std::size_t>(problem.tokens); ++t) {
    int lost = 0, kept = 0, bad = 0, bad_kept = 0;
    for (std::size_t i = t * k; i < (t + 1) * k; ++i) {
      if (got.chosen[i] < 0) continue;
      const bool is_kept = got.outcome.experts[i] >= 0;
      const bool is_bad = !std::isfinite(problem.logit(static_cast<std::int64_t>(t), got.chosen[i]));
      lost += is_kept ? 0 : 1;
      kept += is_kept ? 1 : 0;
      bad += is_bad ? 1 : 0;
      bad_kept += is_bad && is_kept ? 1 : 0;
    }
    result.some += lost > 0 && kept > 0 ? 1 : 0;
    result.all += lost > 0 && kept == 0 ? 1 : 0;
    result.hidden += bad > 0 && bad_kept == 0 && kept > 0 ? 1 : 0;
    result.non_finite += bad > 0 ? 1 : 0;
  }
  return result;
}

inline oracle::Surroundings surroundings_of(const Inputs& inputs, const std::vector<std::int64_t>& demand) {
  oracle::Surroundings around;
  around.sequences = inputs.sequences;
  around.sequence_of_token = sequence_of_tokens(inputs);
  around.accumulated = inputs.load.empty() ? std::vector<std::int64_t>(demand.size(), 0) : inputs.load;
  for (std::size_t e = 0; inputs.accumulate && e < demand.size(); ++e) around.accumulated[e] += demand[e];
  return around;
}

/// The gradient in double: of the losses, which see the demand, and of the weights, among what was chosen with no gradient for dropped slots, or
/// among what was kept. Non-finite tokens have none, whatever they kept.
inline oracle::Gradient limited_gradient(const oracle::Problem& problem, const Inputs& inputs, const Losses& losses,
                                         const Limited& got, bool renormalise, const oracle::Surroundings& around) {
  const std::vector<int> chosen(got.chosen.begin(), got.chosen.end());
  const oracle::Evaluation demand = oracle::evaluate(problem, chosen);
  std::vector<int> ids = chosen;
  std::vector<double> grads = rounded_to(inputs.weights_type, inputs.grad_weights);
  const auto k = static_cast<std::size_t>(problem.k);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (got.outcome.experts[i] >= 0) continue;
    if (!grads.empty()) grads[i] = 0;
    if (renormalise && demand.takes_part[i / k] != 0) ids[i] = -1;
  }
  oracle::Gradient sum = oracle::gradient_and_magnitude(problem, ids, grads, {}, around, 0);
  const double upstream = static_cast<double>(inputs.loss_scale) * static_cast<double>(inputs.grad_loss.value_or(1.0f));
  const oracle::Gradient of_losses = oracle::gradient_and_magnitude(problem, chosen, {}, losses, around, upstream);
  for (std::size_t i = 0; i < sum.value.size(); ++i) {
    sum.value[i] += of_losses.value[i];
    sum.magnitude[i] += of_losses.magnitude[i];
  }
  return sum;
}

/// One forward, loss and backward on this engine: the bits of the CPU, and step by step what plain loops say.
template <class Engine, class Scoring, class Selection, class Balancer = mb::NoBalancer>
Losers check_limited(const Scoring& scoring, const mb::WithCapacity<Selection>& limit, const Inputs& inputs,
                     const Balancer& balancer = {}) {
  const mb::Router router{scoring, limit, balancer};
  const Limited got = limited(Engine{}, router, inputs);
  CHECK(same_bits(got, limited(HostEngine{}, router, inputs)));
  CHECK(got.outcome.padding_untouched);

  // The plain selection.
  const oracle::Problem problem = problem_of(scoring, limit.selection, inputs);
  const Losses losses = losses_of(balancer, inputs.experts, problem.k);
  const Closeness closeness = closeness_for(inputs, !losses.empty());
  const std::vector<int> chosen(got.chosen.begin(), got.chosen.end());
  const oracle::SelectionReport selected = oracle::check_selection(problem, chosen, closeness.resolution);
  CHECK_MESSAGE(selected.first_difference.empty(), selected.first_difference);
  Inputs forward_only = inputs;
  forward_only.backward = false;
  const Outcome plain = train(HostEngine{}, mb::Router{scoring, limit.selection, balancer}, forward_only);
  CHECK(got.chosen == plain.experts);
  CHECK(got.outcome.counts == plain.counts);
  CHECK(got.outcome.load == plain.load);
  CHECK(got.outcome.loss == plain.loss);
  CHECK(got.outcome.status.non_finite_tokens == plain.status.non_finite_tokens);

  // limit_to_capacity of that.
  const std::int64_t capacity = router.top_k.capacity(shape_of(inputs));
  const CapacityProblem dropping{.tokens = inputs.tokens,
                                 .k = problem.k,
                                 .experts = inputs.experts,
                                 .capacity = capacity,
                                 .drop = limit.drop,
                                 .renormalise = limit.renormalise,
                                 .scaling_factor = limit.weighting().scaling_factor,
                                 .type = inputs.weights_type,
                                 .chosen = plain.experts,
                                 .weights = plain.weights,
                                 .priority = limit.priority};
  check_limit(dropping, {got.outcome.experts, got.outcome.weights, got.kept_counts, got.outcome.status.dropped_slots});

  const oracle::Surroundings around = surroundings_of(inputs, oracle::evaluate(problem, chosen).counts);
  const oracle::Gradient want = limited_gradient(problem, inputs, losses, got, limit.renormalise, around);
  std::vector<double> allowed;
  for (std::size_t i = 0; i < want.value.size(); ++i) {
    allowed.push_back(closeness.gradient * want.magnitude[i] + half_ulp(inputs.grad_type) * std::abs(want.value[i]) +
                      smallest_step(inputs.grad_type));
  }
  const std::string gradient =
      first_far(got.outcome.grad_logits, want.value, allowed, static_cast<std::size_t>(inputs.experts));
  CHECK_MESSAGE(gradient.empty(), "gradient, " << gradient);
  return losers_of(problem, got);
}

/// Skewed logits, of which some are not finite: mostly of the first experts, which are full first.
inline Inputs inputs_with_non_finite(std::uint64_t seed, std::int64_t tokens, int experts, int k) {
  Inputs inputs = normal_inputs(seed, tokens, experts, k, 2.0);
  Random random(seed + 1);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (!random.chance(0.4)) continue;
    const double values[] = {infinity, infinity, -infinity, std::numeric_limits<double>::quiet_NaN()};
    const int expert = random.integer(0, random.chance(0.7) ? 1 : experts - 1);
    inputs.logits[static_cast<std::size_t>(t * experts + expert)] = values[random.integer(0, 3)];
  }
  inputs.row_padding = 3;
  inputs.active = random.flags(static_cast<std::size_t>(tokens), 0.15);
  return inputs;
}

TEST_CASE_TEMPLATE_DEFINE(
    "capacity: a token with a chosen logit that is not finite has weights 0 and gradient 0, dropped or not", Engine,
    capacity_non_finite) {
  using mb::DataType;
  const auto check = [](const auto& scoring, std::uint64_t seed, const auto& spoil) {
    int hidden = 0;
    for (const mb::DropBy drop : {mb::DropBy::position, mb::DropBy::score, mb::DropBy::random}) {
      for (const bool renormalise : {true, false}) {
        CAPTURE(seed);
        CAPTURE(renormalise);
        Inputs inputs = inputs_with_non_finite(seed, 60, 6, 3);
        spoil(inputs);
        const mb::WithCapacity<mb::TopK<3>> limit{
            .capacity_factor = 0.7, .drop = drop, .renormalise = renormalise, .priority = {.seed = seed, .offset = 3}};
        const Losers seen = check_limited<Engine>(scoring, limit, inputs);
        CHECK(seen.some > seen.hidden);
        hidden += seen.hidden;
      }
    }
    CHECK(hidden > 0);
  };
  check(mb::Sigmoid{}, 81, [](Inputs&) {});
  check(mb::Softmax{}, 82, [](Inputs& inputs) { inputs.tokens_on_device = 52; });
  check(mb::SoftmaxOverSelected{}, 83,
        [](Inputs& inputs) { inputs = with_types(inputs, DataType::bfloat16, DataType::float32, DataType::bfloat16); });
  check(mb::Sigmoid{}, 84,
        [](Inputs& inputs) { inputs = with_types(inputs, DataType::float16, DataType::float16, DataType::float32); });
  if constexpr (Engine::has_float64) check(mb::Sigmoid{}, 85, [](Inputs& inputs) { inputs = in_float64(inputs); });
}

TEST_CASE_TEMPLATE_DEFINE("capacity: finite scores whose sum is not make a token's gradient 0, whatever it kept", Engine,
                          capacity_overflow) {
  Inputs inputs = normal_inputs(86, 2, 5, 3);
  inputs.logits = {3, 2, 1, -1, -1, 3.3e38, -1, -1, 4e37, 3e37};  // token 1 loses expert 0, and what it keeps has a sum
  inputs.grad_weights = {1, 2, 3, 4, 5, -5};
  const mb::WithCapacity<mb::TopK<3>> limit{.capacity_factor = 0.8, .drop = mb::DropBy::position, .renormalise = true};
  CHECK(limit.capacity(shape_of(inputs)) == 1);
  const Limited got = limited(Engine{}, mb::Router{mb::Identity{}, limit}, inputs);
  CHECK(got.chosen == std::vector<std::int32_t>{0, 1, 2, 0, 3, 4});
  CHECK(got.outcome.experts == std::vector<std::int32_t>{0, 1, 2, -1, 3, 4});
  CHECK(got.outcome.status.non_finite_tokens == 1);
  for (std::size_t k = 3; k < 6; ++k) CHECK(got.outcome.weights[k] == 0);
  for (std::size_t e = 5; e < 10; ++e) CHECK(got.outcome.grad_logits[e] == 0);
  CHECK(got.outcome.grad_logits[0] != 0);
}

TEST_CASE_TEMPLATE_DEFINE("capacity: with any selection the same as the selection, then limit_to_capacity", Engine,
                          capacity_selections) {
  for (const bool renormalise : {false, true}) {
    CAPTURE(renormalise);
    Inputs inputs = normal_inputs(87, 70, 16, 4, 1.5);
    inputs.bias = normal_bias(88, 16);
    inputs.active = Random(89).flags(70, 0.2);
    inputs.tokens_on_device = 61;
    const mb::WithCapacity<mb::GroupLimitedTopK<4>> grouped{
        .capacity_factor = 0.7,
        .renormalise = renormalise,
        .selection = {.groups = 4, .groups_kept = 2, .scaling_factor = 2.5f}};
    CHECK(check_limited<Engine>(mb::Sigmoid{}, grouped, inputs).some > 0);
    inputs.active.clear();  // then the CPU takes sixteen tokens side by side
    CHECK(check_limited<Engine>(mb::Sigmoid{}, grouped, inputs).some > 0);

    inputs = normal_inputs(90, 70, 16, 4, 1.5);
    inputs.active = Random(91).flags(70, 0.1);
    inputs.row_padding = 1;
    Random random(92);
    for (std::int32_t id : replayed_ids(93, 70, 16, 4)) {
      inputs.replay_experts.push_back(random.chance(0.2) ? -1 : id / (random.chance(0.5) ? 1 : 2));
    }
    inputs.replay_tokens = random.flags(70, 0.5);
    const mb::WithCapacity<mb::Replay<mb::TopK<4>>> replayed{.capacity_factor = 0.6, .renormalise = renormalise};
    CHECK(check_limited<Engine>(mb::Softmax{}, replayed, inputs).some > 0);
  }
}

TEST_CASE_TEMPLATE_DEFINE("capacity: losses see the demand, also of tokens that lose every slot", Engine, capacity_losses) {
  for (const bool renormalise : {false, true}) {
    CAPTURE(renormalise);
    const mb::WithCapacity<mb::TopK<2>> limit{.capacity_factor = 0.5, .renormalise = renormalise};
    Inputs inputs = inputs_with_non_finite(94, 60, 8, 2);
    inputs.logits_type = mb::DataType::float32;
    inputs.loss_scale = 0.5f;
    inputs.grad_loss = 3.0f;
    const Losers seen = check_limited<Engine>(mb::Softmax{}, limit, inputs,
                                              mb::Combine{mb::AuxLoss{.coefficient = 0.3f}, mb::ZLoss{.coefficient = 0.1f}});
    CHECK(seen.all > 0);
    CHECK(seen.non_finite > 0);
    inputs.sequences = 4;
    inputs.grad_weights.clear();
    CHECK(check_limited<Engine>(mb::Sigmoid{}, limit, inputs, mb::SequenceLoss{.coefficient = 0.2f}).all > 0);
  }
}

TEST_CASE_TEMPLATE_DEFINE("capacity: route says what forward says, kept_counts and dropped slots among it", Engine,
                          capacity_route) {
  const Engine engine;
  Inputs inputs = normal_inputs(95, 50, 12, 3, 1.5);
  inputs.active = Random(96).flags(50, 0.2);
  inputs.tokens_on_device = 44;
  const mb::Router router{mb::Softmax{}, mb::WithCapacity<mb::TopK<3>>{.capacity_factor = 0.8, .renormalise = true}};
  const Limited trained = limited(engine, router, inputs);
  Memory<Engine> memory = memory_for(engine, router, inputs);
  typename Engine::template Array<std::int64_t> kept(engine, std::vector<std::int64_t>(12, 77));
  mb::RouteArgs args = memory.route_args();
  args.kept_counts = kept.data();
  router.route(args, memory.workspace(), engine.place());
  const Outcome routed = memory.outcome();
  CHECK(routed.experts == trained.outcome.experts);
  CHECK(routed.weights_bytes == trained.outcome.weights_bytes);
  CHECK(routed.counts == trained.outcome.counts);
  CHECK(kept.values() == trained.kept_counts);
  CHECK(routed.status.dropped_slots == trained.outcome.status.dropped_slots);
  std::int64_t dropped = 0, held = 0;
  for (std::size_t i = 0; i < routed.experts.size(); ++i) dropped += trained.chosen[i] >= 0 && routed.experts[i] < 0 ? 1 : 0;
  for (const std::int64_t count : trained.kept_counts) held += count;
  CHECK(dropped > 0);
  CHECK(routed.status.dropped_slots == dropped);
  CHECK(held == std::count_if(routed.experts.begin(), routed.experts.end(), [](int id) { return id >= 0; }));
}

TEST_CASE_TEMPLATE_DEFINE("capacity: backward takes ids that no expert has for slots that were dropped", Engine,
                          capacity_backward_ids) {
  const Engine engine;
  const Inputs inputs = normal_inputs(101, 20, 8, 2);
  for (const bool renormalise : {false, true}) {
    const mb::Router router{mb::Sigmoid{}, mb::WithCapacity<mb::TopK<2>>{.capacity_factor = 10, .renormalise = renormalise},
                            mb::AuxLoss{.coefficient = 0.1f}};
    const auto gradient_with = [&](std::int32_t id) {
      Memory<Engine> memory = memory_for(engine, router, inputs);
      typename Engine::template Array<std::int32_t> chosen(engine, std::vector<std::int32_t>(40));
      mb::ForwardArgs forward = memory.forward_args();
      forward.chosen = {chosen.data(), 20, 2};
      router.forward(forward, memory.workspace(), engine.place());
      std::vector<std::int32_t> ids = memory.outcome().experts;
      for (std::size_t slot = 1; slot < ids.size(); slot += 3) ids[slot] = id;
      typename Engine::template Array<std::int32_t> experts(engine, ids);
      mb::BackwardArgs backward = memory.backward_args();
      backward.experts = {experts.data(), 20, 2};
      backward.chosen = forward.chosen;
      router.backward(backward, memory.workspace(), engine.place());
      return memory.outcome().grad_bytes;
    };
    const auto dropped = gradient_with(-1);
    for (const std::int32_t id : {-2, 8, 1000, std::numeric_limits<std::int32_t>::max()})
      CHECK(gradient_with(id) == dropped);
    CHECK(gradient_with(0) != dropped);
  }
}

TEST_CASE_TEMPLATE_DEFINE("capacity: a router refuses memory that kept_counts or the workspace shares", Engine,
                          capacity_router_overlap) {
  const Engine engine;
  Inputs inputs = normal_inputs(98, 20, 8, 2, 1.0);
  inputs.bias = normal_bias(99, 8);
  inputs.load = zero_load(8);
  inputs.active = Random(100).flags(20, 0.2);
  inputs.tokens_on_device = 20;
  inputs.grad_loss = 1.0f;
  const mb::Router router{mb::Softmax{}, mb::WithCapacity<mb::TopK<2>>{.capacity_factor = 0.5},
                          mb::Combine{mb::AuxLoss{}, mb::LossFreeBias{}, mb::BalancedTokens{}}};
  Memory<Engine> memory = memory_for(engine, router, inputs);
  typename Engine::template Array<std::int32_t> chosen(engine, std::vector<std::int32_t>(40));
  mb::ForwardArgs forward = memory.forward_args();
  forward.chosen = {chosen.data(), 20, 2};
  const Outcome before = memory.outcome();

  // Each argument in turn lies where kept_counts does, which has room for the largest.
  typename Engine::template Array<std::int64_t> kept(engine, std::vector<std::int64_t>(80));
  const auto refuses_kept = [&](const std::string& other, const auto& spoil) {
    CAPTURE(other);
    const std::string message = ": kept_counts is memory that " + other + " shares; allowed: memory of its own";
    mb::ForwardArgs args = forward;
    args.kept_counts = kept.data();
    spoil(args);
    CHECK_THROWS_WITH_AS(router.forward(args, memory.workspace(), engine.place()),
                         doctest::Contains(("forward" + message).c_str()), mb::InvalidArgument);
    if constexpr (requires(mb::RouteArgs routing) { spoil(routing); }) {
      mb::RouteArgs routing = memory.route_args();
      routing.kept_counts = kept.data();
      spoil(routing);
      CHECK_THROWS_WITH_AS(router.route(routing, memory.workspace(), engine.place()),
                           doctest::Contains(("route" + message).c_str()), mb::InvalidArgument);
    }
  };
  void* const shared = kept.data();
  refuses_kept("counts", [&](auto& args) { args.counts = kept.data(); });
  refuses_kept("counts", [&](auto& args) { args.counts = kept.data() + 7; });
  refuses_kept("logits", [&](auto& args) { args.logits.data = shared; });
  refuses_kept("bias", [&](auto& args) { args.bias.data = static_cast<float*>(shared); });
  refuses_kept("load", [&](mb::ForwardArgs& args) { args.load.counts = kept.data() + 7; });
  refuses_kept("saved", [&](mb::ForwardArgs& args) { args.saved.data = shared; });
  refuses_kept("active", [&](auto& args) { args.active = static_cast<std::uint8_t*>(shared) + 63; });
  refuses_kept("status", [&](auto& args) { args.status = static_cast<mb::Status*>(shared) + 1; });
  refuses_kept("tokens_on_device", [&](auto& args) { args.tokens_on_device = kept.data() + 7; });

  const auto refuses_workspace = [&](const std::string& other, const auto& args, const auto& spoil) {
    CAPTURE(other);
    auto spoiled = args;
    spoil(spoiled, memory.workspace().data);
    const auto call = [&] {
      if constexpr (std::is_same_v<decltype(spoiled), mb::ForwardArgs>)
        router.forward(spoiled, memory.workspace(), engine.place());
      else
        router.backward(spoiled, memory.workspace(), engine.place());
    };
    CHECK_THROWS_WITH_AS(call(), doctest::Contains(("workspace is memory that " + other + " shares").c_str()),
                         mb::InvalidArgument);
  };
  // status over what the pass after the routing kernel refuses, too: before the kernel has written anything
  mb::ForwardArgs over_weights = forward;
  over_weights.status = reinterpret_cast<mb::Status*>(forward.weights.data);
  CHECK_THROWS_WITH_AS(router.forward(over_weights, memory.workspace(), engine.place()),
                       doctest::Contains("forward: weights is memory that status shares"), mb::InvalidArgument);
  refuses_kept("balanced", [&](mb::ForwardArgs& args) { args.balanced = static_cast<std::uint8_t*>(shared) + 63; });
  refuses_kept("sequences.offsets", [&](mb::ForwardArgs& args) { args.sequences.offsets = kept.data(); });

  // The offset of a random order over what the routing kernel writes, or the pass behind it: before either has begun.
  typename Engine::template Array<std::uint64_t> offset(engine, std::vector<std::uint64_t>(80, 5));
  auto at_random = router;
  at_random.top_k.drop = mb::DropBy::random;
  at_random.top_k.priority.offset_on_device = offset.data() + 3;
  const auto refuses_offset = [&](const std::string& other, const auto& spoil) {
    CAPTURE(other);
    mb::ForwardArgs args = forward;
    spoil(args);
    CHECK_THROWS_WITH_AS(
        at_random.forward(args, memory.workspace(), engine.place()),
        doctest::Contains(("forward: " + other + " is memory that top_k.priority.offset_on_device shares").c_str()),
        mb::InvalidArgument);
  };
  refuses_offset("counts", [&](auto& args) { args.counts = reinterpret_cast<std::int64_t*>(offset.data()); });
  refuses_offset("load", [&](auto& args) { args.load.counts = reinterpret_cast<std::int64_t*>(offset.data()); });
  refuses_offset("saved", [&](auto& args) { args.saved.data = offset.data(); });
  refuses_offset("weights", [&](auto& args) { args.weights.data = offset.data(); });
  refuses_offset("kept_counts", [&](auto& args) { args.kept_counts = reinterpret_cast<std::int64_t*>(offset.data()); });
  typename Engine::template Array<std::int64_t> order(engine, std::vector<std::int64_t>(100));
  const std::size_t order_bytes = mb::route_and_permute_workspace_bytes(at_random, {20, 8});
  typename Engine::template Array<std::max_align_t> scratch(engine, std::vector<std::max_align_t>(order_bytes / 16 + 1));
  CHECK_THROWS_WITH_AS(
      mb::forward_and_permute(at_random, forward,
                              {.offsets = {reinterpret_cast<std::int64_t*>(offset.data()), 9},
                               .row_of_slot = {order.data(), 20, 2},
                               .slot_of_row = {order.data() + 40, 40}},
                              {scratch.data(), order_bytes}, engine.place()),
      doctest::Contains("forward_and_permute: offsets is memory that top_k.priority.offset_on_device shares"),
      mb::InvalidArgument);
  CHECK(offset.values() == std::vector<std::uint64_t>(80, 5));
  at_random.top_k.priority = {.first_token = -1};
  CHECK_THROWS_WITH_AS(at_random.forward(forward, memory.workspace(), engine.place()),
                       doctest::Contains("forward: top_k.priority.first_token is -1; allowed: 0 to"), mb::InvalidArgument);

  refuses_workspace("logits", forward, [](auto& args, void* data) { args.logits.data = data; });
  refuses_workspace("counts", forward, [](auto& args, void* data) { args.counts = static_cast<std::int64_t*>(data); });
  mb::BackwardArgs backward = memory.backward_args();
  backward.chosen = forward.chosen;
  using Ids = mb::MatrixView<const std::int32_t>;
  refuses_workspace("logits", backward, [](auto& args, void* data) { args.logits.data = data; });
  refuses_workspace("experts", backward,
                    [](auto& args, void* data) { args.experts = Ids(static_cast<std::int32_t*>(data), 20, 2); });
  refuses_workspace("chosen", backward,
                    [](auto& args, void* data) { args.chosen = Ids(static_cast<std::int32_t*>(data), 20, 2); });
  refuses_workspace("grad_weights", backward, [](auto& args, void* data) { args.grad_weights.data = data; });
  refuses_workspace("grad_logits", backward, [](auto& args, void* data) { args.grad_logits.data = data; });
  refuses_workspace("balanced", backward, [](auto& args, void* data) { args.balanced = static_cast<std::uint8_t*>(data); });
  refuses_workspace("grad_loss", backward, [](auto& args, void* data) { args.grad_loss = static_cast<float*>(data); });
  refuses_workspace("sequences.offsets", backward,
                    [](auto& args, void* data) { args.sequences.offsets = static_cast<std::int64_t*>(data); });

  const Outcome after = memory.outcome();
  CHECK(same_bits(before, after));
  CHECK(before.saved == after.saved);
}

/// A routing call in one with its permutation, whose rows the selection pads.
template <class Engine>
struct PaddedCall {
  static constexpr int k = 2, experts = 6;
  static constexpr std::int64_t tokens = 25, align = 4, rows_per_expert = 8;  // C = ceil(25 * 2 / 6 * 0.75) = 7
  using Longs = typename Engine::template Array<std::int64_t>;
  Engine engine;
  mb::Router<mb::Softmax, mb::WithCapacity<mb::TopK<k>>> router{mb::Softmax{}, {.capacity_factor = 0.75, .pad = true}};
  std::int64_t rows = 70;  // more than 6 * 8, and than permutation_rows, which it takes without pad
  std::size_t bytes = mb::route_and_permute_workspace_bytes(router, {tokens, experts});
  static constexpr std::size_t slots = 50;
  typename Engine::template Array<float> logits{engine, skewed_logits()}, weights{engine, std::vector<float>(slots, 77)};
  typename Engine::template Array<std::int32_t> ids{engine, std::vector<std::int32_t>(slots, 77)},
      chosen{engine, std::vector<std::int32_t>(slots, 77)}, blocks{engine, std::vector<std::int32_t>(17, 77)};
  Longs counts{engine, std::vector<std::int64_t>(experts, 77)}, offsets{engine, std::vector<std::int64_t>(experts + 1, 77)};
  Longs row_of_slot{engine, std::vector<std::int64_t>(slots, 77)}, slot_of_row{engine, std::vector<std::int64_t>(70, 77)};
  typename Engine::template Array<std::max_align_t> scratch{engine, std::vector<std::max_align_t>(bytes / 16 + 1)};

  /// The last experts are chosen by few.
  static std::vector<float> skewed_logits() {
    std::vector<float> values = Random(97).normals<float>(tokens * experts);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] -= static_cast<float>(i % experts);
    return values;
  }
  mb::RouteArgs route() {
    return {.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
            .experts = {ids.data(), tokens, k},
            .weights = mb::MatrixView<float>(weights.data(), tokens, k)};
  }
  mb::ForwardArgs forward() {
    return {.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
            .experts = {ids.data(), tokens, k},
            .weights = mb::MatrixView<float>(weights.data(), tokens, k),
            .chosen = {chosen.data(), tokens, k}};
  }
  mb::PermutationArgs order() {
    return {.experts = {},
            .offsets = {offsets.data(), experts + 1},
            .row_of_slot = {row_of_slot.data(), tokens, k},
            .slot_of_row = {slot_of_row.data(), rows},
            .align = align,
            .counts = counts.data(),
            .block_size = align,
            .expert_of_block = {blocks.data(), rows / align}};
  }
  void run(bool trains, const mb::PermutationArgs& args) {
    const mb::Workspace workspace{scratch.data(), bytes};
    if (trains)
      mb::forward_and_permute(router, forward(), args, workspace, engine.place());
    else
      mb::route_and_permute(router, route(), args, workspace, engine.place());
    engine.wait();
  }
  [[nodiscard]] bool is_untouched() const {
    return ids.values() == std::vector<std::int32_t>(slots, 77) &&
           offsets.values() == std::vector<std::int64_t>(experts + 1, 77) &&
           slot_of_row.values() == std::vector<std::int64_t>(70, 77);
  }
};

TEST_CASE_TEMPLATE_DEFINE(
    "capacity: pad gives every expert C rows, rounded up to align, in the calls that route and permute", Engine,
    capacity_pad) {
  using Call = PaddedCall<Engine>;
  for (const bool trains : {false, true}) {
    CAPTURE(trains);
    Call call;
    call.run(trains, call.order());
    const std::vector<std::int64_t> offsets = call.offsets.values();
    for (int e = 0; e <= Call::experts; ++e) CHECK(offsets[static_cast<std::size_t>(e)] == e * Call::rows_per_expert);
    const std::vector<std::int32_t> ids = call.ids.values();
    const std::vector<std::int64_t> row_of_slot = call.row_of_slot.values(), slot_of_row = call.slot_of_row.values();
    const std::vector<std::int64_t> counts = call.counts.values();
    std::vector<std::int64_t> next(Call::experts, 0);  // each expert's slots in order, none beyond its capacity
    for (std::size_t slot = 0; slot < ids.size(); ++slot) {
      const auto e = static_cast<std::size_t>(ids[slot]);
      CHECK(row_of_slot[slot] == (ids[slot] < 0 ? -1 : ids[slot] * Call::rows_per_expert + next[e]++));
      if (ids[slot] >= 0) CHECK(slot_of_row[static_cast<std::size_t>(row_of_slot[slot])] == static_cast<std::int64_t>(slot));
    }
    CHECK(counts == next);
    CHECK(*std::max_element(counts.begin(), counts.end()) == 7);
    const auto filled = std::count_if(slot_of_row.begin(), slot_of_row.end(), [](std::int64_t slot) { return slot >= 0; });
    CHECK(filled == std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
    const std::vector<std::int32_t> blocks = call.blocks.values();
    for (std::size_t b = 0; b < blocks.size(); ++b) CHECK(blocks[b] == (b < 12 ? static_cast<int>(b) / 2 : -1));

    Call apart;  // the two calls by themselves
    const mb::Workspace workspace{apart.scratch.data(), apart.bytes};
    const auto place = apart.engine.place();
    apart.router.route(apart.route(), workspace, place);
    mb::PermutationArgs by_itself = apart.order();
    by_itself.experts = mb::MatrixView<const std::int32_t>(apart.ids.data(), Call::tokens, Call::k);
    by_itself.rows_per_expert = apart.router.top_k.rows_per_expert({Call::tokens, Call::experts}, Call::align);
    mb::permutation(by_itself, workspace, place);
    apart.engine.wait();
    CHECK(apart.offsets.values() == offsets);
    CHECK(apart.row_of_slot.values() == row_of_slot);
    CHECK(apart.slot_of_row.values() == slot_of_row);

    Call other;  // what the caller asks for goes before
    mb::PermutationArgs args = other.order();
    args.rows_per_expert = 4;
    other.run(trains, args);
    CHECK(other.offsets.values()[1] == 4);
    other.router.top_k.pad = false;
    other.run(trains, other.order());
    CHECK(other.offsets.values() != offsets);

    Call short_of_rows;
    args = short_of_rows.order();
    args.slot_of_row.size = Call::experts * Call::rows_per_expert - 1;
    CHECK_THROWS_WITH_AS(short_of_rows.run(trains, args),
                         doctest::Contains("permutation: slot_of_row.size is 47; allowed: 48"), mb::InvalidArgument);
    CHECK(short_of_rows.is_untouched());
    args = short_of_rows.order();
    args.align = 0;
    CHECK_THROWS_WITH_AS(short_of_rows.run(trains, args), doctest::Contains("permutation: align is 0"), mb::InvalidArgument);
    short_of_rows.router.top_k.capacity_factor = 0;
    CHECK_THROWS_WITH_AS(short_of_rows.run(trains, short_of_rows.order()), doctest::Contains("top_k.capacity_factor is 0"),
                         mb::InvalidArgument);
    CHECK(short_of_rows.is_untouched());
  }
}

}  // namespace testing
