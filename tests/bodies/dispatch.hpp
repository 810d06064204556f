// The promises of permutation, permute and combine, on any engine.
#pragma once

#include "../dispatch_oracle.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace testing {

TEST_CASE_TEMPLATE_DEFINE("dispatch: random shapes agree with plain loops", Engine, dispatch_random) {
  const Engine engine;
  Random random(1701);
  for (int round = 0; round < 40; ++round) {
    const auto seed = static_cast<std::uint64_t>(round);
    const int aligns[] = {1, 2, 3, 8, 16, 128};
    const std::int64_t experts = random.integer(1, round % 3 == 0 ? 300 : 20);
    const int kind = random.integer(0, 3);
    const std::int64_t k = random.integer(1, kind == 2 ? static_cast<int>(experts < 9 ? experts : 9) : 9);
    DispatchProblem p = dispatch_problem(seed, random.integer(0, 60), k, experts, random.integer(1, 150),
                                         aligns[random.integer(0, 5)], kind);
    p.stride_excess = random.integer(0, 2) == 0 ? random.integer(1, 5) : 0;
    p.padding = random.chance(0.5) ? mb::Padding::zero : mb::Padding::untouched;
    p.spare_rows = random.chance(0.3) ? p.align * random.integer(1, 3) : 0;
    const mb::DataType types[] = {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16};
    p.type = types[random.integer(0, 2)];
    p.factor_type = random.chance(0.5) ? p.type : mb::DataType::float32;
    // Experts that compute nothing, all or some of which return what they are given; and such that have rows all the same.
    const auto some = [&](int most) -> mb::ExpertRange {
      const int count = random.integer(0, most);
      return {random.integer(0, static_cast<int>(experts) - count), count};
    };
    if (random.chance(0.5)) p.zero_experts = some(static_cast<int>(experts) - 1);
    if (random.chance(0.6)) p.identity = random.chance(0.5) ? p.zero_experts : some(static_cast<int>(experts));
    if (p.align > 1 && random.chance(0.2)) p.rows_per_expert = p.align;
    fill_values(p, random);
    CAPTURE(p.zero_experts.first);
    CAPTURE(p.zero_experts.count);
    CAPTURE(p.identity.first);
    CAPTURE(p.identity.count);
    CAPTURE(round);
    CAPTURE(p.tokens);
    CAPTURE(p.k);
    CAPTURE(p.experts);
    CAPTURE(p.align);
    CAPTURE(kind);
    check_dispatch(p, run_dispatch(engine, p));
  }
}

TEST_CASE_TEMPLATE_DEFINE(
    "dispatch: experts that return what they are given, by hand: first added up, then one term; nobody else's NaN", Engine,
    dispatch_identity) {
  const Engine engine;
  using Typed = TypedMatrix<Engine>;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  // Experts 0 and 1 compute, 2 and 3 return what they are given, 4 returns 0.
  typename Engine::template Array<std::int32_t> ids(engine, {0, 2, 3, 4, 1, 4, 3, 3, -1});
  typename Engine::template Array<std::int64_t> row_of_slot(engine, {0, -1, -1, -1, 1, -1, -1, -1, -1});
  Typed rows(engine, mb::DataType::float32, 2, 1, 0, {10, 20});
  Typed hidden(engine, mb::DataType::float32, 3, 1, 0, {5, nan, 7});
  Typed weights(engine, mb::DataType::float32, 3, 3, 0, {0.5, 0.25, 0.125, 8, 2, 8, 0x1p-24, 1, 8});
  Typed combined(engine, mb::DataType::float32, 3, 1, 0);
  Typed grad(engine, mb::DataType::float32, 3, 1, 0, {1, 3, -2});
  Typed grad_weights(engine, mb::DataType::float32, 3, 3, 0);
  Typed grad_rows(engine, mb::DataType::float32, 2, 1, 0);
  Typed grad_hidden(engine, mb::DataType::float32, 3, 1, 0);
  typename Engine::template Array<std::int64_t> slot_of_row(engine, {0, 4});
  const mb::MatrixView<const std::int64_t> rows_of(row_of_slot.data(), 3, 3);
  const mb::IdentityExperts identity{
      .experts = {ids.data(), 3, 3}, .range = {2, 2}, .tokens = hidden.view(), .weights = weights.view()};
  mb::combine({.permuted = rows.view(),
               .row_of_slot = rows_of,
               .combined = combined.view(),
               .weights = weights.view(),
               .identity = identity},
              {}, engine.place());
  mb::combine_backward({.grad_combined = grad.view(),
                        .row_of_slot = rows_of,
                        .slot_of_row = {slot_of_row.data(), 2},
                        .grad_permuted = grad_rows.view(),
                        .weights = weights.view(),
                        .permuted = rows.view(),
                        .grad_weights = grad_weights.view(),
                        .identity = identity},
                       {}, engine.place());
  mb::IdentityExperts of_gradients = identity;
  of_gradients.tokens = grad.view();
  mb::permute_backward({.grad_permuted = grad_rows.view(),
                        .row_of_slot = rows_of,
                        .grad_hidden = grad_hidden.view(),
                        .identity = of_gradients},
                       {}, engine.place());
  engine.wait();
  // 2^-24 + 1 is 1 in float32, before it is multiplied.
  CHECK(decoded(mb::DataType::float32, combined.bytes()) == std::vector<double>{5 + 0.375 * 5, 40, 7});
  CHECK(decoded(mb::DataType::float32, grad_weights.bytes()) == std::vector<double>{10, 5, 5, 0, 60, 0, -14, -14, 0});
  CHECK(decoded(mb::DataType::float32, grad_hidden.bytes()) == std::vector<double>{0.5 + 0.375, 6, -2});
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: what experts return as they are given it may begin anywhere", Engine,
                          dispatch_identity_anywhere) {
  const Engine engine;
  Random random(20);
  constexpr std::int64_t tokens = 5, hidden = 136;
  const std::vector<float> states = random.normals<float>(tokens * hidden);
  const std::vector<float> grads = random.normals<float>(tokens * hidden);
  using Floats = typename Engine::template Array<float>;
  typename Engine::template Array<std::int32_t> ids(engine, {1, 0, 1, 1, 0});
  typename Engine::template Array<std::int64_t> row_of_slot(engine, {-1, 0, -1, -1, 1});
  typename Engine::template Array<std::int64_t> slot_of_row(engine, {1, 4});
  const mb::MatrixView<const std::int64_t> rows_of(row_of_slot.data(), tokens, 1);
  Floats rows(engine, random.normals<float>(2 * hidden)), grad(engine, grads), grad_rows(engine, rows.values());
  for (const std::size_t shift : {0, 1, 3, 4}) {
    CAPTURE(shift);
    std::vector<float> shifted(shift, 0.0f);
    shifted.insert(shifted.end(), states.begin(), states.end());
    Floats own(engine, shifted), combined(engine, std::vector<float>(tokens * hidden)),
        dots(engine, std::vector<float>(tokens));
    const mb::IdentityExperts identity{.experts = {ids.data(), tokens, 1},
                                       .range = {1, 1},
                                       .tokens = mb::MatrixView<const float>(own.data() + shift, tokens, hidden)};
    mb::combine({.permuted = mb::MatrixView<const float>(rows.data(), 2, hidden),
                 .row_of_slot = rows_of,
                 .combined = mb::MatrixView<float>(combined.data(), tokens, hidden),
                 .identity = identity},
                {}, engine.place());
    mb::combine_backward({.grad_combined = mb::MatrixView<const float>(grad.data(), tokens, hidden),
                          .row_of_slot = rows_of,
                          .slot_of_row = {slot_of_row.data(), 2},
                          .grad_permuted = mb::MatrixView<float>(grad_rows.data(), 2, hidden),
                          .permuted = mb::MatrixView<const float>(rows.data(), 2, hidden),
                          .grad_weights = mb::MatrixView<float>(dots.data(), tokens, 1),
                          .identity = identity},
                         {}, engine.place());
    engine.wait();
    for (const std::size_t t : {0, 2, 3}) {
      double dot = 0;
      for (std::size_t c = 0; c < hidden; ++c) {
        CHECK(combined.values()[t * hidden + c] == states[t * hidden + c]);
        dot += static_cast<double>(states[t * hidden + c]) * static_cast<double>(grads[t * hidden + c]);
      }
      CHECK(static_cast<double>(dots.values()[t]) == doctest::Approx(dot).epsilon(1e-5).scale(1));
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: no tokens, one expert, one expert takes all, K = E, more experts than slots", Engine,
                          dispatch_corners) {
  const Engine engine;
  const auto check = [&](std::int64_t tokens, std::int64_t k, std::int64_t experts, std::int64_t align, int kind) {
    CAPTURE(tokens);
    CAPTURE(k);
    CAPTURE(experts);
    CAPTURE(align);
    const DispatchProblem p = dispatch_problem(5, tokens, k, experts, 16, align, kind);
    check_dispatch(p, run_dispatch(engine, p));
  };
  for (const std::int64_t align : {1, 7, 64, 256}) {
    check(0, 2, 5, align, 0);
    check(9, 1, 1, align, 2);
    check(40, 4, 12, align, 1);
    check(11, 6, 6, align, 2);
    check(2, 2, 100, align, 0);
    check(6, 3, 4, align, 3);
  }
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: many slots, so that every part and tile has some", Engine, dispatch_many) {
  const Engine engine;
  check_dispatch(dispatch_problem(8, 1200, 4, 37, 3, 16), run_dispatch(engine, dispatch_problem(8, 1200, 4, 37, 3, 16)));
  check_dispatch(dispatch_problem(9, 1300, 2, 3, 2, 1), run_dispatch(engine, dispatch_problem(9, 1300, 2, 3, 2, 1)));
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: the most experts that are counted", Engine, dispatch_most_experts) {
  const Engine engine;
  for (const std::int64_t experts : {2049, 4096}) {
    const DispatchProblem p = dispatch_problem(10, 300, 2, experts, 2, 8);
    check_dispatch(p, run_dispatch(engine, p));
  }
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: sorting gives what counting gives, bit for bit", Engine, dispatch_sorting) {
  const Engine engine;
  Random random(15);
  for (int round = 0; round < 16; ++round) {
    const auto seed = static_cast<std::uint64_t>(100 + round);
    const int aligns[] = {1, 3, 8, 64};
    // Up to a block of CUB's, and more; one digit of a sort, and more.
    const std::int64_t tokens = round % 8 == 7 ? 3000 : random.integer(0, 70);
    // A power of two: slots of no expert are told from others by one more bit.
    const std::int64_t experts = round == 8 ? 2048 : random.integer(1, round % 4 == 0 ? 4096 : 40);
    DispatchProblem p = dispatch_problem(seed, tokens, random.integer(1, 4), experts, 1, aligns[round % 4],
                                         round % 5 == 4 ? random.integer(1, 3) : 0);
    p.stride_excess = round % 3 == 0 ? 2 : 0;
    p.spare_rows = round % 3 == 1 ? p.align : 0;
    if (round % 4 == 3) p.rows_per_expert = p.align * random.integer(1, 2);
    const int third = static_cast<int>(p.experts) / 3;
    if (round % 3 == 2) p.zero_experts = {third, third};
    p.identity = p.zero_experts;
    if (p.k > p.experts) continue;
    fill_values(p, random);
    CAPTURE(round);
    const DispatchResults counted = run_dispatch(engine, p);
    p.sorts = true;
    const DispatchResults sorted = run_dispatch(engine, p);
    CHECK(sorted == counted);
    check_dispatch(p, sorted);
  }
}

/// Beyond max_counted_experts, where the public call sorts by itself.
template <class Engine>
void check_very_many_experts(std::int64_t tokens, std::int64_t experts, std::int64_t align, int kind) {
  CAPTURE(experts);
  DispatchProblem p = dispatch_problem(16, tokens, 3, experts, 1, align, kind);
  if (tokens > 0) p.ids[0] = static_cast<std::int32_t>(experts) - 1;
  check_dispatch(p, run_dispatch(Engine{}, p));
}
TEST_CASE_TEMPLATE_DEFINE("dispatch: more experts than a block can count", Engine, dispatch_very_many_experts) {
  check_very_many_experts<Engine>(200, 4097, 8, 0);
  check_very_many_experts<Engine>(40, 70000, 2, 0);
  check_very_many_experts<Engine>(40, 70000, 1, 1);
  check_very_many_experts<Engine>(0, 5000, 4, 0);
}
TEST_CASE_TEMPLATE_DEFINE("dispatch: the most experts that can be sorted", Engine, dispatch_most_sorted_experts) {
  check_very_many_experts<Engine>(20, mb::max_dispatch_experts, 2, 0);
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: a fixed number of rows per expert leaves later slots without one", Engine,
                          dispatch_fixed_rows) {
  const Engine engine;
  for (const int kind : {0, 1, 3}) {
    DispatchProblem p = dispatch_problem(11, 50, 3, 6, 5, 4, kind);
    p.rows_per_expert = 12;
    p.block_size = 6;
    Random random(12);
    fill_values(p, random);
    check_dispatch(p, run_dispatch(engine, p));
  }
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: hidden sizes around a pack, a warp's packs and a CPU's block", Engine,
                          dispatch_hidden_sizes) {
  const Engine engine;
  for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16}) {
    for (const std::int64_t hidden : {1, 4, 8, 31, 32, 33, 64, 127, 128, 129, 256, 264, 520, 1024, 1032, 1544, 2056}) {
      DispatchProblem p = dispatch_problem(13, 9, 2, 4, hidden, 2);
      p.type = type;
      Random random(14);
      fill_values(p, random);
      CAPTURE(hidden);
      check_dispatch(p, run_dispatch(engine, p));
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: sums run over k in order, each term after the one before", Engine, dispatch_sum_order) {
  const Engine engine;
  for (const std::int64_t hidden : {1, 8, 70}) {
    DispatchProblem p = dispatch_problem(17, 1, 3, 3, hidden, 1, 2);
    p.ids = {1, 0, 2};
    p.weights = {1, 1, 1};
    p.expert_outputs.clear();
    for (const double row : {-1e8, 1e8, 1.0})
      p.expert_outputs.insert(p.expert_outputs.end(), static_cast<std::size_t>(hidden), row);
    const DispatchResults got = run_dispatch(engine, p);
    const std::vector<double> ones(static_cast<std::size_t>(hidden), 1.0);  // (1e8 - 1e8) + 1; any other order loses the 1
    CHECK(decoded(p.type, got.combined) == ones);
    CHECK(decoded(p.type, got.summed) == ones);
    CHECK(decoded(p.type, got.grad_hidden) == ones);
  }
}

TEST_CASE_TEMPLATE_DEFINE("dispatch: combine(permute(x)) is the sum of the weights times x, of any shape and type", Engine,
                          dispatch_round_trip) {
  const Engine engine;
  Random random(19);
  for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16}) {
    for (int round = 0; round < 6; ++round) {
      const std::int64_t experts = random.integer(1, 30);
      const int aligns[] = {1, 4, 16};
      DispatchProblem p = dispatch_problem(static_cast<std::uint64_t>(200 + round), random.integer(1, 40),
                                           random.integer(1, 8), experts, random.integer(1, 140), aligns[round % 3]);
      p.type = type;
      p.factor_type = round % 2 == 0 ? mb::DataType::float32 : type;
      p.stride_excess = round % 3 == 2 ? 3 : 0;
      fill_values(p, random);
      CAPTURE(static_cast<int>(type));
      CAPTURE(round);
      p.expert_outputs = without_excess(decoded(type, run_dispatch(engine, p).permuted), p.hidden, p.stride_excess);
      Sums want(p.tokens * p.hidden);
      for (std::int64_t slot = 0; slot < p.slots(); ++slot) {
        if (p.ids[static_cast<std::size_t>(slot)] < 0) continue;
        for (std::int64_t c = 0; c < p.hidden; ++c) {
          const std::int64_t i = slot / p.k * p.hidden + c;
          want.add(i, at(p.weights, slot) * at(p.hidden_states, i));
        }
      }
      check_close("combined", type, run_dispatch(engine, p).combined, want.values, want.magnitudes, p.hidden,
                  p.stride_excess);
    }
  }
}

}  // namespace testing
