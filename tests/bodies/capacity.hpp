// The promises of limit_to_capacity and of a Router WithCapacity, on any engine.
#pragma once

#include "../elements.hpp"
#include "../philox_oracle.hpp"
#include "../random.hpp"

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace testing {

struct CapacityProblem {
  std::int64_t tokens = 0;
  std::int64_t k = 1;
  int experts = 1;
  std::int64_t capacity = 1;
  mb::DropBy drop = mb::DropBy::score;
  bool renormalise = false;
  float scaling_factor = 1.0f;
  mb::DataType type = mb::DataType::float32;
  std::vector<std::int32_t> chosen{};
  std::vector<double> weights{};
  mb::RandomPriority priority{};
  std::uint64_t offset_on_device = 0;
};

struct CapacityResult {
  std::vector<std::int32_t> experts;
  std::vector<double> weights{};
  std::vector<std::int64_t> kept_counts;
  std::int64_t dropped = 0;
};

template <class Engine>
CapacityResult limit(const Engine& engine, const CapacityProblem& p) {
  typename Engine::template Array<std::int32_t> chosen(engine, p.chosen);
  typename Engine::template Array<std::int32_t> experts(engine, std::vector<std::int32_t>(p.chosen.size(), 77));
  typename Engine::template Array<std::uint8_t> weights(engine, encoded(p.type, p.weights));
  typename Engine::template Array<std::int64_t> kept(engine,
                                                     std::vector<std::int64_t>(static_cast<std::size_t>(p.experts), 77));
  typename Engine::template Array<mb::Status> status(engine, {mb::Status{.dropped_slots = 100}});
  typename Engine::template Array<std::uint64_t> offset(engine, {p.offset_on_device});
  mb::RandomPriority priority = p.priority;
  if (p.offset_on_device != 0) priority.offset_on_device = offset.data();
  const std::size_t bytes = mb::capacity_workspace_bytes(p.tokens, p.k, std::max<std::int64_t>(p.experts, 1));
  typename Engine::template Array<std::max_align_t> scratch(engine, std::vector<std::max_align_t>((bytes + 15) / 16));
  mb::limit_to_capacity({.chosen = {chosen.data(), p.tokens, p.k},
                         .experts = {experts.data(), p.tokens, p.k},
                         .weights = mb::AnyMatrix(weights.data(), p.type, p.tokens, p.k, p.k),
                         .expert_count = p.experts,
                         .capacity = p.capacity,
                         .drop = p.drop,
                         .renormalise = p.renormalise,
                         .scaling_factor = p.scaling_factor,
                         .kept_counts = kept.data(),
                         .status = status.data(),
                         .priority = priority},
                        {scratch.data(), bytes}, engine.place());
  engine.wait();
  return {experts.values(), decoded(p.type, weights.values()), kept.values(), status.values()[0].dropped_slots - 100};
}

/// The number that a slot has where slots are dropped at random: the larger one stays.
inline std::uint32_t priority_of(const CapacityProblem& p, std::size_t slot) {
  const auto k = static_cast<std::size_t>(p.k);
  const std::uint64_t token = static_cast<std::uint64_t>(p.priority.first_token) + slot / k;
  const std::uint64_t offset = p.priority.offset + p.offset_on_device;
  const auto counter = static_cast<std::uint32_t>(slot % k / 4);
  return Philox::words(
      {Philox::low(token), Philox::high(token) * 65536u + 0x8000u + counter, Philox::low(offset), Philox::high(offset)},
      Philox::low(p.priority.seed), Philox::high(p.priority.seed))[slot % k % 4];
}

/// Expert by expert: its slots in order of what it would keep first.
inline CapacityResult limit_oracle(const CapacityProblem& p) {
  CapacityResult result{p.chosen, p.weights, {}, 0};
  for (int e = 0; e < p.experts; ++e) {
    std::vector<std::size_t> slots;
    for (std::size_t i = 0; i < p.chosen.size(); ++i) {
      if (p.chosen[i] == e) slots.push_back(i);
    }
    if (p.drop == mb::DropBy::score) {
      std::stable_sort(slots.begin(), slots.end(),
                       [&](std::size_t a, std::size_t b) { return p.weights[a] > p.weights[b]; });
    }
    if (p.drop == mb::DropBy::random) {
      std::stable_sort(slots.begin(), slots.end(),
                       [&](std::size_t a, std::size_t b) { return priority_of(p, a) > priority_of(p, b); });
    }
    for (std::size_t i = 0; i < slots.size(); ++i) {
      if (static_cast<std::int64_t>(i) < p.capacity) continue;
      result.experts[slots[i]] = -1;
      result.weights[slots[i]] = 0;
      ++result.dropped;
    }
    result.kept_counts.push_back(std::min<std::int64_t>(static_cast<std::int64_t>(slots.size()), p.capacity));
  }
  for (std::int64_t t = 0; p.renormalise && t < p.tokens; ++t) {
    double sum = 0;
    bool lost = false;
    for (std::int64_t i = t * p.k; i < (t + 1) * p.k; ++i) {
      const auto at = static_cast<std::size_t>(i);
      sum += result.weights[at];
      lost = lost || result.experts[at] != p.chosen[at];
    }
    for (std::int64_t i = t * p.k; lost && i < (t + 1) * p.k; ++i) {
      double& weight = result.weights[static_cast<std::size_t>(i)];
      weight = sum == 0 ? 0 : weight / sum * p.scaling_factor;
    }
  }
  return result;
}

/// `distinct_weights`: few values, so that ties at the boundary are common.
inline CapacityProblem capacity_problem(std::uint64_t seed, std::int64_t tokens, std::int64_t k, int experts,
                                        std::int64_t capacity, int distinct_weights) {
  Random random(seed);
  CapacityProblem p{.tokens = tokens, .k = k, .experts = experts, .capacity = capacity};
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (const int id : random.distinct_ids(static_cast<int>(k), experts)) {
      p.chosen.push_back(random.chance(0.1) ? -1 : id / (random.chance(0.5) ? 2 : 1));
      const double weight = distinct_weights > 0 ? random.integer(1, distinct_weights) / 16.0 : random.uniform() + 0x1p-10;
      p.weights.push_back(p.chosen.back() < 0 ? 0.0 : static_cast<float>(weight));
    }
  }
  return p;
}

inline void check_limit(const CapacityProblem& p, const CapacityResult& got) {
  const CapacityResult want = limit_oracle(p);
  CHECK(got.experts == want.experts);
  CHECK(got.kept_counts == want.kept_counts);
  CHECK(got.dropped == want.dropped);
  REQUIRE(got.weights.size() == want.weights.size());
  for (std::size_t i = 0; i < want.weights.size(); ++i) {
    const double allowed = p.renormalise ? (0x1p-21 + 2 * half_ulp(p.type)) * std::abs(want.weights[i]) : 0.0;
    REQUIRE(std::abs(got.weights[i] - want.weights[i]) <= allowed);
  }
}

TEST_CASE_TEMPLATE_DEFINE("capacity: the best weights stay, the first positions, or any; ties go to the earlier token",
                          Engine, capacity_random) {
  const Engine engine;
  Random random(61);
  for (int round = 0; round < 40; ++round) {
    const int experts = random.integer(1, 40);
    CapacityProblem p = capacity_problem(static_cast<std::uint64_t>(round), random.integer(0, 150),
                                         random.integer(1, experts < 9 ? experts : 9), experts, random.integer(1, 12),
                                         round % 3 == 0 ? 3 : 0);
    const mb::DropBy drops[] = {mb::DropBy::score, mb::DropBy::random, mb::DropBy::score, mb::DropBy::position};
    p.drop = drops[round % 4];
    p.priority.seed = 0xfedcba9876543210ull / static_cast<std::uint64_t>(round + 1);
    p.priority.offset = round % 8 == 1 ? 0xffffffffffffffffull : static_cast<std::uint64_t>(round);
    p.priority.first_token = round % 3 == 0 ? (std::int64_t{1} << 48) - p.tokens : round;
    p.offset_on_device = round % 16 == 5 ? 3 : 0;
    p.renormalise = round / 4 % 2 == 1;
    p.scaling_factor = round % 5 == 1 ? 2.5f : 1.0f;
    const mb::DataType types[] = {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16};
    p.type = types[round % 3];
    p.weights = rounded_to(p.type, p.weights);
    CAPTURE(round);
    check_limit(p, limit(engine, p));
  }
}

TEST_CASE_TEMPLATE_DEFINE("capacity: corners: no tokens, room for all, one slot each, all weights equal", Engine,
                          capacity_corners) {
  const Engine engine;
  for (const mb::DropBy drop : {mb::DropBy::score, mb::DropBy::position, mb::DropBy::random}) {
    CapacityProblem p = capacity_problem(62, 0, 2, 4, 1, 0);
    p.drop = drop;
    check_limit(p, limit(engine, p));
    p = capacity_problem(63, 70, 2, 4, 140, 0);
    p.drop = drop;
    check_limit(p, limit(engine, p));
    p = capacity_problem(64, 70, 2, 4, 1, 1);
    p.drop = drop;
    check_limit(p, limit(engine, p));
    p = capacity_problem(65, 90, 1, 1, 33, 1);
    p.drop = drop;
    check_limit(p, limit(engine, p));
    // Neighbouring floats: only the last bits of the weights tell slots apart.
    Random random(68);
    for (double& weight : p.weights) weight = weight == 0 ? 0 : 1 + random.integer(0, 200) * 0x1p-23;
    check_limit(p, limit(engine, p));
  }
}

TEST_CASE_TEMPLATE_DEFINE("capacity: a slot without an expert ends with weight 0 and is none that a token lost", Engine,
                          capacity_empty_slots) {
  const Engine engine;
  for (const bool wrong_ids : {true, false}) {
    if (wrong_ids && mb::DispatchEngine<decltype(engine.place())>::reads_arguments) continue;  // refused there
    CAPTURE(wrong_ids);
    Random random(69);
    CapacityProblem p = capacity_problem(70, 60, 3, 5, 20, 0);
    CapacityProblem as_empty = p;
    for (std::size_t i = 0; i < p.chosen.size(); ++i) {
      if (!random.chance(0.2)) continue;
      const std::int32_t wrong[] = {5, -2, 1 << 30, INT32_MIN};
      p.chosen[i] = wrong_ids ? wrong[random.integer(0, 3)] : -1;
      p.weights[i] = 0.75;
      as_empty.chosen[i] = -1;
      as_empty.weights[i] = 0;
    }
    for (const bool renormalise : {false, true}) {
      p.renormalise = as_empty.renormalise = renormalise;
      const CapacityResult got = limit(engine, p);
      check_limit(as_empty, got);
      CHECK(got.weights == limit(engine, as_empty).weights);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("capacity: overlapping buffers are refused", Engine, capacity_overlap) {
  const Engine engine;
  using Longs = typename Engine::template Array<std::int64_t>;
  Longs chosen(engine, std::vector<std::int64_t>(8)), experts(engine, std::vector<std::int64_t>(8, 77));
  Longs weights(engine, std::vector<std::int64_t>(8, 77)), kept(engine, std::vector<std::int64_t>(8, 77));
  typename Engine::template Array<std::max_align_t> scratch(
      engine, std::vector<std::max_align_t>(mb::capacity_workspace_bytes(4, 2, 4) / 16 + 1));
  const auto refuses = [&](const std::string& message, const auto& spoil) {
    mb::Workspace workspace{scratch.data(), mb::capacity_workspace_bytes(4, 2, 4)};
    mb::CapacityArgs args{
        .chosen = {reinterpret_cast<std::int32_t*>(chosen.data()), 4, 2},
        .experts = {reinterpret_cast<std::int32_t*>(experts.data()), 4, 2},
        .weights = mb::MatrixView<float>(reinterpret_cast<float*>(weights.data()), 4, 2),
        .expert_count = 4,
        .capacity = 1,
        .kept_counts = kept.data(),
    };
    spoil(args, workspace);
    CHECK_THROWS_WITH_AS(mb::limit_to_capacity(args, workspace, engine.place()),
                         doctest::Contains(("limit_to_capacity: " + message).c_str()), mb::InvalidArgument);
  };
  using Args = mb::CapacityArgs;
  const auto status_at = [](auto* data) { return reinterpret_cast<mb::Status*>(data); };
  refuses("experts is memory that status shares",
          [&](Args& args, mb::Workspace&) { args.status = status_at(experts.data()); });
  refuses("weights is memory that status shares",
          [&](Args& args, mb::Workspace&) { args.status = status_at(weights.data() + 3); });
  refuses("chosen is memory that status shares",
          [&](Args& args, mb::Workspace&) { args.status = status_at(chosen.data()); });
  refuses("kept_counts is memory that status shares",
          [&](Args& args, mb::Workspace&) { args.status = status_at(kept.data() + 3); });
  refuses("status is memory that workspace shares",
          [&](Args& args, mb::Workspace& workspace) { args.status = status_at(workspace.data); });
  refuses("experts is memory that chosen shares",
          [&](Args& args, mb::Workspace&) { args.experts.data = reinterpret_cast<std::int32_t*>(chosen.data()); });
  refuses("kept_counts is memory that priority.offset_on_device shares", [&](Args& args, mb::Workspace&) {
    args.drop = mb::DropBy::random;
    args.priority.offset_on_device = reinterpret_cast<const std::uint64_t*>(kept.data() + 3);
  });
  CHECK(experts.values() == std::vector<std::int64_t>(8, 77));
  CHECK(weights.values() == std::vector<std::int64_t>(8, 77));
  CHECK(kept.values() == std::vector<std::int64_t>(8, 77));
}

TEST_CASE_TEMPLATE_DEFINE("capacity: a router drops after it has counted, and says what it chose", Engine, capacity_router) {
  using Array = typename Engine::template Array<float>;
  using Ids = typename Engine::template Array<std::int32_t>;
  using Longs = typename Engine::template Array<std::int64_t>;
  constexpr std::int64_t tokens = 50;
  constexpr int experts = 16;
  constexpr int k = 2;
  const Engine engine;
  Random random(66);
  const std::vector<float> logits = random.normals<float>(tokens * experts);
  const std::vector<float> grads = random.normals<float>(tokens * k);
  const mb::Shape shape{tokens, experts};
  for (const bool renormalise : {false, true}) {
    const mb::Router plain{mb::Softmax{}, mb::TopK<k>{}};
    const mb::Router router{mb::Softmax{},
                            mb::WithCapacity<mb::TopK<k>>{.capacity_factor = 0.75, .renormalise = renormalise, .pad = true}};
    CHECK(router.top_k.capacity(shape) == 5);  // ceil(50 * 2 / 16 * 0.75)
    CHECK(router.top_k.rows_per_expert(shape, 4) == 8);
    const std::size_t bytes = router.workspace_bytes(shape);
    typename Engine::template Array<std::max_align_t> scratch(engine, std::vector<std::max_align_t>((bytes + 15) / 16));
    const mb::Workspace workspace{scratch.data(), bytes};
    Array x(engine, logits), w(engine, std::vector<float>(tokens * k)), plain_w(engine, std::vector<float>(tokens * k));
    Array dw(engine, grads), dx(engine, std::vector<float>(tokens * experts)),
        want_dx(engine, std::vector<float>(tokens * experts));
    Ids ids(engine, std::vector<std::int32_t>(tokens * k)), chosen(engine, std::vector<std::int32_t>(tokens * k));
    Ids plain_ids(engine, std::vector<std::int32_t>(tokens * k));
    Longs counts(engine, std::vector<std::int64_t>(experts)), kept(engine, std::vector<std::int64_t>(experts));
    const mb::MatrixView<const float> logits_view(x.data(), tokens, experts);
    const auto place = engine.place();
    plain.forward({.logits = logits_view,
                   .experts = {plain_ids.data(), tokens, k},
                   .weights = mb::MatrixView(plain_w.data(), tokens, std::int64_t{k})},
                  {}, place);
    router.forward({.logits = logits_view,
                    .experts = {ids.data(), tokens, k},
                    .weights = mb::MatrixView(w.data(), tokens, std::int64_t{k}),
                    .counts = counts.data(),
                    .chosen = {chosen.data(), tokens, k},
                    .kept_counts = kept.data()},
                   workspace, place);
    engine.wait();
    CHECK(chosen.values() == plain_ids.values());
    CapacityProblem p{.tokens = tokens, .k = k, .experts = experts, .capacity = 5, .renormalise = renormalise};
    p.chosen = chosen.values();
    const std::vector<float> all_weights = plain_w.values();
    p.weights.assign(all_weights.begin(), all_weights.end());
    const std::vector<float> limited = w.values();
    const CapacityResult want = limit_oracle(p);
    check_limit(p, {ids.values(), {limited.begin(), limited.end()}, kept.values(), want.dropped});
    CHECK(want.dropped > 0);
    std::vector<std::int64_t> demand(experts, 0);
    for (const std::int32_t id : p.chosen) ++demand[static_cast<std::size_t>(id)];
    CHECK(counts.values() == demand);

    // The same gradient by hand: weights among what was chosen, and dropped slots without gradient; or weights among what was kept.
    std::vector<float> masked = grads;
    for (std::size_t i = 0; i < masked.size(); ++i) masked[i] = want.experts[i] < 0 ? 0.0f : masked[i];
    Array masked_dw(engine, masked);
    Ids want_ids(engine, renormalise ? want.experts : p.chosen);
    plain.backward({.logits = logits_view,
                    .experts = mb::MatrixView<const std::int32_t>(want_ids.data(), tokens, k),
                    .grad_weights = mb::MatrixView<const float>(masked_dw.data(), tokens, k),
                    .grad_logits = mb::MatrixView(want_dx.data(), tokens, std::int64_t{experts})},
                   {}, place);
    router.backward({.logits = logits_view,
                     .experts = mb::MatrixView<const std::int32_t>(ids.data(), tokens, k),
                     .grad_weights = mb::MatrixView<const float>(dw.data(), tokens, k),
                     .grad_logits = mb::MatrixView(dx.data(), tokens, std::int64_t{experts}),
                     .chosen = mb::MatrixView<const std::int32_t>(chosen.data(), tokens, k)},
                    workspace, place);
    Ids routed(engine, std::vector<std::int32_t>(tokens * k));
    Array routed_w(engine, std::vector<float>(tokens * k));
    router.route({.logits = logits_view,
                  .experts = {routed.data(), tokens, k},
                  .weights = mb::MatrixView(routed_w.data(), tokens, std::int64_t{k})},
                 workspace, place);
    engine.wait();
    CHECK(dx.values() == want_dx.values());
    CHECK(routed.values() == ids.values());
    CHECK(routed_w.values() == w.values());
  }
}

template <class Engine, class Spoil>
void refuses_capacity(const Engine& engine, const std::string& message, const Spoil& spoil) {
  typename Engine::template Array<std::int32_t> chosen(engine, {0, 1, 2, 3}), experts(engine, {7, 7, 7, 7});
  typename Engine::template Array<float> weights(engine, {1, 2, 3, 4});
  typename Engine::template Array<std::max_align_t> scratch(
      engine, std::vector<std::max_align_t>(mb::capacity_workspace_bytes(2, 2, 4) / 16 + 1));
  mb::CapacityArgs args{.chosen = {chosen.data(), 2, 2},
                        .experts = {experts.data(), 2, 2},
                        .weights = mb::MatrixView<float>(weights.data(), 2, 2),
                        .expert_count = 4,
                        .capacity = 1};
  spoil(args);
  CHECK_THROWS_WITH_AS(mb::limit_to_capacity(args, {scratch.data(), mb::capacity_workspace_bytes(2, 2, 4)}, engine.place()),
                       doctest::Contains(("limit_to_capacity: " + message).c_str()), mb::InvalidArgument);
  CHECK(experts.values() == std::vector<std::int32_t>{7, 7, 7, 7});
}

TEST_CASE_TEMPLATE_DEFINE("capacity: bad arguments are refused", Engine, capacity_errors) {
  const Engine engine;
  CapacityProblem p = capacity_problem(67, 5, 2, 4, 2, 0);
  p.capacity = 0;
  CHECK_THROWS_WITH_AS(limit(engine, p), doctest::Contains("limit_to_capacity: capacity is 0; allowed: 1 to"),
                       mb::InvalidArgument);
  p.capacity = 1;
  p.experts = 0;
  CHECK_THROWS_WITH_AS(limit(engine, p), doctest::Contains("limit_to_capacity: expert_count is 0"), mb::InvalidArgument);
  refuses_capacity(engine, "weights.type is 9", [](mb::CapacityArgs& args) { args.weights.type = mb::DataType(9); });
  refuses_capacity(engine, "drop is 3; allowed: score, position, random",
                   [](mb::CapacityArgs& args) { args.drop = mb::DropBy(3); });
  for (const std::int64_t wrong : {std::int64_t{-1}, (std::int64_t{1} << 48) - 1}) {
    refuses_capacity(engine, "priority.first_token is " + std::to_string(wrong) + "; allowed: 0 to 281474976710654",
                     [&](mb::CapacityArgs& args) {
                       args.drop = mb::DropBy::random;
                       args.priority.first_token = wrong;
                     });
  }
  refuses_capacity(engine, "priority.offset_on_device is ", [&](mb::CapacityArgs& args) {
    args.drop = mb::DropBy::random;
    args.priority.offset_on_device = reinterpret_cast<const std::uint64_t*>(std::uintptr_t{4});
  });
  refuses_capacity(engine, "scaling_factor is nan", [](mb::CapacityArgs& args) {
    args.renormalise = true;
    args.scaling_factor = std::numeric_limits<float>::quiet_NaN();
  });
  const mb::WithCapacity<mb::TopK<2>> nothing{.capacity_factor = 0};
  CHECK_THROWS_WITH_AS(nothing.check("forward", 8), doctest::Contains("forward: top_k.capacity_factor is 0"),
                       mb::InvalidArgument);
  const mb::WithCapacity<mb::TopK<2>> any{.drop = mb::DropBy(9)};
  CHECK_THROWS_WITH_AS(any.check("forward", 8), doctest::Contains("forward: top_k.drop is 9"), mb::InvalidArgument);
  const mb::WithCapacity<mb::TopK<1>> one{.renormalise = true};
  CHECK_THROWS_WITH_AS(one.check("forward", 8), doctest::Contains("forward: top_k.renormalise is true"),
                       mb::InvalidArgument);
  using Router = mb::Router<mb::Softmax, mb::WithCapacity<mb::TopK<2>>>;
  std::vector<float> x(8), w(4);
  std::vector<std::int32_t> ids(4);
  CHECK_THROWS_WITH_AS(Router{}.forward({.logits = mb::MatrixView<const float>(x.data(), 2, 4),
                                         .experts = {ids.data(), 2, 2},
                                         .weights = mb::MatrixView<float>(w.data(), 2, 2)},
                                        {}, engine.place()),
                       doctest::Contains("forward: chosen.rows is 0; allowed: 2"), mb::InvalidArgument);
  const std::vector<std::int32_t> before = ids;
  CHECK_THROWS_WITH_AS(Router{}.forward({.logits = mb::MatrixView<const float>(x.data(), 2, 4),
                                         .experts = {ids.data(), 2, 2},
                                         .weights = mb::MatrixView<float>(w.data(), 2, 2),
                                         .chosen = {ids.data(), 2, 2}},
                                        {}, engine.place()),
                       doctest::Contains("forward: chosen is memory that experts shares"), mb::InvalidArgument);
  CHECK(ids == before);
}

}  // namespace testing
