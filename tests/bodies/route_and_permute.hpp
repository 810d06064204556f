// route_and_permute gives what route and permutation give, bit for bit, on any engine.
#pragma once

#include "../engine_host.hpp"
#include "../random.hpp"

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <limits>
#include <vector>

namespace testing {

/// All that a call wrote.
struct RoutedAndPermuted {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> row_of_slot;
  std::vector<std::int64_t> slot_of_row;
  std::vector<std::int32_t> expert_of_block;
  std::int64_t non_finite_tokens;

  bool operator==(const RoutedAndPermuted&) const = default;
};

template <class Engine>
RoutedAndPermuted routed_and_permuted(const Engine& engine, bool fused, std::int64_t tokens, int experts, std::int64_t align,
                                      mb::ExpertRange zero_experts) {
  constexpr int k = 4;
  using Longs = typename Engine::template Array<std::int64_t>;
  using Ids = typename Engine::template Array<std::int32_t>;
  using Floats = typename Engine::template Array<float>;
  Random random(static_cast<std::uint64_t>(1000 * experts + tokens));
  std::vector<float> values = random.normals<float>(static_cast<std::size_t>(tokens * experts));
  for (std::size_t i = 0; i < values.size(); i += 97)
    values[i] = i % 2 == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  const std::int64_t rows = mb::permutation_rows(tokens, k, experts - zero_experts.count, align);
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  Floats logits(engine, values), weights(engine, std::vector<float>(size(tokens * k), 7));
  Floats bias(engine, random.normals<float>(size(experts), 0.1));
  typename Engine::template Array<std::uint8_t> active(engine, random.flags(size(tokens), 0.2));
  typename Engine::template Array<mb::Status> status(engine, {mb::Status{}});
  Ids ids(engine, std::vector<std::int32_t>(size(tokens * k), 77)),
      blocks(engine, std::vector<std::int32_t>(size(rows / align), 77));
  Longs counts(engine, std::vector<std::int64_t>(size(experts), 77)),
      offsets(engine, std::vector<std::int64_t>(size(experts + 1), 77));
  Longs row_of_slot(engine, std::vector<std::int64_t>(size(tokens * k), 77)),
      slot_of_row(engine, std::vector<std::int64_t>(size(rows), 77));
  const mb::Router router{mb::Sigmoid{}, mb::TopK<k>{}};
  const std::size_t bytes = mb::route_and_permute_workspace_bytes(router, {tokens, experts});
  typename Engine::template Array<std::max_align_t> scratch(engine, std::vector<std::max_align_t>((bytes + 15) / 16));
  const mb::Workspace workspace{scratch.data(), bytes};
  const mb::RouteArgs route{.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
                            .experts = {ids.data(), tokens, k},
                            .weights = mb::MatrixView<float>(weights.data(), tokens, k),
                            .bias = {bias.data(), experts},
                            .active = active.data(),
                            .status = status.data()};
  const mb::PermutationArgs order{.experts = mb::MatrixView<const std::int32_t>(ids.data(), tokens, k),
                                  .offsets = {offsets.data(), experts + 1},
                                  .row_of_slot = {row_of_slot.data(), tokens, k},
                                  .slot_of_row = {slot_of_row.data(), rows},
                                  .align = align,
                                  .zero_experts = zero_experts,
                                  .counts = counts.data(),
                                  .block_size = align,
                                  .expert_of_block = {blocks.data(), rows / align}};
  if (fused) {
    mb::route_and_permute(router, route, order, workspace, engine.place());
  } else {
    router.route(route, {}, engine.place());
    mb::permutation(order, workspace, engine.place());
  }
  engine.wait();
  return {ids.values(),         weights.values(),     counts.values(), offsets.values(),
          row_of_slot.values(), slot_of_row.values(), blocks.values(), status.values()[0].non_finite_tokens};
}

TEST_CASE_TEMPLATE_DEFINE("route_and_permute = route, then permutation", Engine, route_and_permute_same) {
  for (const std::int64_t tokens : {0, 1, 75, 700}) {
    for (const int experts : {5, 64, 200}) {
      if (tokens == 700 && experts != 64) continue;
      CAPTURE(tokens);
      CAPTURE(experts);
      const std::int64_t align = tokens % 2 == 0 ? 1 : 16;
      for (const mb::ExpertRange zero_experts : {mb::ExpertRange{}, mb::ExpertRange{experts / 2, experts / 3}}) {
        CHECK(routed_and_permuted(Engine{}, true, tokens, experts, align, zero_experts) ==
              routed_and_permuted(HostEngine{}, false, tokens, experts, align, zero_experts));
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("route_and_permute refuses offsets of another number of experts", Engine,
                          route_and_permute_errors) {
  const Engine engine;
  std::vector<std::int64_t> offsets(5), rows(4);
  std::vector<std::int32_t> ids(4);
  std::vector<float> x(6), w(4);
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}};
  CHECK_THROWS_WITH_AS(
      mb::route_and_permute(
          router,
          {.logits = mb::MatrixView<const float>(x.data(), 1, 6),
           .experts = {ids.data(), 1, 4},
           .weights = mb::MatrixView<float>(w.data(), 1, 4)},
          {.experts = {}, .offsets = {offsets.data(), 5}, .row_of_slot = {rows.data(), 1, 4}, .slot_of_row = {}}, {},
          engine.place()),
      doctest::Contains("route_and_permute: offsets.size is 5; allowed: 7"), mb::InvalidArgument);
}

}  // namespace testing
