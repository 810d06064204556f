// A token goes once to each rank that has some of its experts, on any engine: which ranks, what rows bring along, and the way there and back with its
// gradients, against plain loops over all experts. Numbers are small multiples of powers of two, so that float32 adds them up exactly in any order.
#pragma once

#include "../elements.hpp"
#include "../random.hpp"
#include "overlaps.hpp"

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace testing {

/// R ranks of L experts each, K slots a token, hidden states of H numbers.
struct RanksOfExperts {
  int ranks;
  int local;
  std::int64_t k;
  static constexpr std::int64_t hidden = 4;
  [[nodiscard]] int experts() const { return ranks * local; }
};

inline std::size_t index_of(std::int64_t value) {
  return static_cast<std::size_t>(value);
}

/// One rank's tokens, and what it has computed of them.
template <class Engine>
struct Tokens {
  using Ids = typename Engine::template Array<std::int32_t>;
  using Longs = typename Engine::template Array<std::int64_t>;
  using Floats = typename Engine::template Array<float>;

  Engine engine;
  RanksOfExperts shape;
  std::int64_t tokens;
  std::vector<std::int32_t> ids;
  std::vector<float> values, factors, slopes;  ///< hidden states, weights, gradients of the layer's output
  Ids experts, ranks;
  Floats hidden, weights;
  Longs offsets, row_of_slot, slot_of_row;
  typename Engine::template Array<mb::Status> status{engine, {mb::Status{}}};

  Tokens(Random& random, const RanksOfExperts& of, std::int64_t count) : shape(of), tokens(count) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (const int id : random.distinct_ids(static_cast<int>(shape.k), shape.experts())) {
        ids.push_back(random.chance(0.15) ? -1 : id);
        factors.push_back(ids.back() < 0 ? 77.0f
                                         : static_cast<float>(random.integer(1, 16)) / 16);  // an empty slot's is not read
      }
      if (random.chance(0.1) && shape.k > 1)
        ids[ids.size() - 1] = ids[ids.size() - 2];  // an expert twice, as a replay may have
      for (std::int64_t h = 0; h < RanksOfExperts::hidden; ++h) {
        values.push_back(static_cast<float>(random.integer(-8, 8)) / 4);
        slopes.push_back(static_cast<float>(random.integer(-4, 4)));
      }
    }
    experts = Ids(engine, ids);
    ranks = Ids(engine, std::vector<std::int32_t>(ids.size(), 77));
    hidden = Floats(engine, values);
    weights = Floats(engine, factors);
    offsets = Longs(engine, std::vector<std::int64_t>(index_of(shape.ranks + 1)));
    row_of_slot = Longs(engine, std::vector<std::int64_t>(ids.size()));
    slot_of_row = Longs(engine, std::vector<std::int64_t>(index_of(mb::permutation_rows(tokens, shape.k, shape.ranks))));
  }

  [[nodiscard]] mb::MatrixView<const std::int32_t> experts_view() { return {experts.data(), tokens, shape.k}; }
  [[nodiscard]] std::int64_t row_count() const { return static_cast<std::int64_t>(slot_of_row.values().size()); }

  void find_rows() {
    mb::once_per_rank({.experts = experts_view(),
                       .ranks = {ranks.data(), tokens, shape.k},
                       .experts_per_rank = shape.local,
                       .rank_count = shape.ranks,
                       .status = status.data()},
                      {}, engine.place());
    const std::size_t bytes = mb::permutation_workspace_bytes(tokens, shape.k, shape.ranks);
    typename Engine::template Array<std::max_align_t> scratch(engine, std::vector<std::max_align_t>(bytes / 16 + 1));
    mb::permutation({.experts = {ranks.data(), tokens, shape.k},
                     .offsets = {offsets.data(), shape.ranks + 1},
                     .row_of_slot = {row_of_slot.data(), tokens, shape.k},
                     .slot_of_row = {slot_of_row.data(), row_count()}},
                    {scratch.data(), bytes}, engine.place());
    engine.wait();
  }
};

/// Rows of `width` from every source's [first, last), one source behind the other.
template <class T, class Rows>
std::vector<T> gathered(const std::vector<std::vector<T>>& of_sources, const Rows& range, std::int64_t width) {
  std::vector<T> result;
  for (std::size_t source = 0; source < of_sources.size(); ++source) {
    const auto [first, last] = range(source);
    result.insert(result.end(), of_sources[source].begin() + first * width, of_sources[source].begin() + last * width);
  }
  return result;
}

TEST_CASE_TEMPLATE_DEFINE("once per rank: each of a token's ranks has its first slot there", Engine, once_per_rank_slots) {
  Random random(301);
  for (const RanksOfExperts& shape : {RanksOfExperts{1, 1, 1}, RanksOfExperts{4, 2, 3}, RanksOfExperts{3, 8, 8},
                                      RanksOfExperts{64, 1, 5}, RanksOfExperts{5, 300, 32}}) {
    for (const std::int64_t count : {0, 1, 70}) {
      Tokens<Engine> tokens(random, shape, count);
      tokens.find_rows();
      const std::vector<std::int32_t> got = tokens.ranks.values();
      std::int64_t pairs = 0;
      for (std::int64_t t = 0; t < count; ++t) {
        std::set<std::int32_t> seen;
        for (std::int64_t k = 0; k < shape.k; ++k) {
          const std::int32_t id = tokens.ids[index_of(t * shape.k + k)];
          const bool is_first = id >= 0 && seen.insert(id / shape.local).second;
          REQUIRE(got[index_of(t * shape.k + k)] == (is_first ? id / shape.local : -1));
        }
        pairs += static_cast<std::int64_t>(seen.size());
      }
      CHECK(tokens.offsets.values().back() == pairs);
      CHECK(tokens.status.values()[0].invalid_experts == 0);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("once per rank: rows of empty slots bring nothing, and neither do no tokens", Engine,
                          once_per_rank_empty) {
  using Ids = typename Engine::template Array<std::int32_t>;
  using Longs = typename Engine::template Array<std::int64_t>;
  using Floats = typename Engine::template Array<float>;
  const Engine engine;
  Ids experts(engine, {-1, 0, 1, -1}), of_rows(engine, std::vector<std::int32_t>(8, 77));
  Floats weights(engine, {77, 0.5f, 0.25f, 77}), row_weights(engine, std::vector<float>(8, 88)),
      back(engine, std::vector<float>(4, 88));
  Longs slots(engine, {0, 1, 3, 2}), rows(engine, {-1, 1, 3, 2});  // slots 0 and 3 are empty; expert 0 and 1 are rank 0's
  const auto routing = [&](std::int64_t tokens, std::int64_t row_count) {
    mb::routing_of_rows({.experts = {experts.data(), tokens, 2},
                         .weights = mb::MatrixView<const float>(weights.data(), tokens, 2),
                         .slot_of_row = {slots.data(), row_count},
                         .row_experts = {of_rows.data(), row_count, 2},
                         .row_weights = mb::MatrixView<float>(row_weights.data(), row_count, 2),
                         .experts_per_rank = 2},
                        {}, engine.place());
  };
  routing(2, 4);
  engine.wait();
  CHECK(of_rows.values() == std::vector<std::int32_t>{-1, -1, -1, 0, -1, -1, 1, -1});
  CHECK(row_weights.values() == std::vector<float>{0, 0, 0, 0.5f, 0, 0, 0.25f, 0});
  mb::routing_of_rows_backward({.experts = {experts.data(), 2, 2},
                                .row_of_slot = {rows.data(), 2, 2},
                                .grad_row_weights = mb::MatrixView<const float>(row_weights.data(), 4, 2),
                                .grad_weights = mb::MatrixView<float>(back.data(), 2, 2),
                                .experts_per_rank = 2},
                               {}, engine.place());
  engine.wait();
  CHECK(back.values() == std::vector<float>{0, 0.5f, 0.25f, 0});
  slots = Longs(engine, {-1, -1, -1, -1});
  routing(0, 4);  // rows of padding alone
  engine.wait();
  CHECK(of_rows.values() == std::vector<std::int32_t>(8, -1));
  CHECK(row_weights.values() == std::vector<float>(8, 0.0f));
  routing(2, 0);
  routing(0, 0);
  engine.wait();
  CHECK(of_rows.values() == std::vector<std::int32_t>(8, -1));
}

/// Everything that ranks compute between the two exchanges, of one rank's experts, whose outputs are (id + 1) times their inputs.
template <class Engine>
struct ExpertsOfRank {
  using Ids = typename Engine::template Array<std::int32_t>;
  using Longs = typename Engine::template Array<std::int64_t>;
  using Floats = typename Engine::template Array<float>;
  static constexpr std::int64_t hidden = RanksOfExperts::hidden;

  Engine engine;
  RanksOfExperts shape;
  int rank;
  std::int64_t rows;      ///< that have come
  std::int64_t expanded;  ///< of the rank's own permutation
  Ids experts;
  Floats weights, outputs;
  Longs offsets, row_of_slot, slot_of_row;

  ExpertsOfRank(const RanksOfExperts& of, int own, const std::vector<std::int32_t>& ids, const std::vector<float>& factors)
      : shape(of),
        rank(own),
        rows(static_cast<std::int64_t>(ids.size()) / of.k),
        expanded(mb::permutation_rows(rows, of.k, of.local)),
        experts(engine, ids),
        weights(engine, factors),
        outputs(engine, std::vector<float>(index_of(expanded * hidden))),
        offsets(engine, std::vector<std::int64_t>(index_of(of.local + 1))),
        row_of_slot(engine, std::vector<std::int64_t>(ids.size())),
        slot_of_row(engine, std::vector<std::int64_t>(index_of(expanded))) {
    const std::size_t bytes = mb::permutation_workspace_bytes(rows, shape.k, shape.local);
    typename Engine::template Array<std::max_align_t> scratch(engine, std::vector<std::max_align_t>(bytes / 16 + 1));
    mb::permutation({.experts = {experts.data(), rows, shape.k},
                     .offsets = {offsets.data(), shape.local + 1},
                     .row_of_slot = {row_of_slot.data(), rows, shape.k},
                     .slot_of_row = {slot_of_row.data(), expanded}},
                    {scratch.data(), bytes}, engine.place());
    engine.wait();
  }

  /// Of each expanded row (id + 1), 0 for padding.
  [[nodiscard]] std::vector<float> times_factor(const std::vector<float>& inputs) const {
    std::vector<float> result(inputs.size());
    const std::vector<std::int64_t> bounds = offsets.values();
    for (int e = 0; e < shape.local; ++e) {
      for (std::int64_t i = bounds[index_of(e)] * hidden; i < bounds[index_of(e + 1)] * hidden; ++i) {
        result[index_of(i)] = inputs[index_of(i)] * static_cast<float>(rank * shape.local + e + 1);
      }
    }
    return result;
  }

  [[nodiscard]] std::vector<float> forward(const std::vector<float>& arrived) {
    Floats inputs(engine, arrived), spread(engine, std::vector<float>(index_of(expanded * hidden)));
    mb::permute({.hidden = mb::MatrixView<const float>(inputs.data(), rows, hidden),
                 .slot_of_row = {slot_of_row.data(), expanded},
                 .permuted = mb::MatrixView<float>(spread.data(), expanded, hidden),
                 .top_k = static_cast<int>(shape.k)},
                {}, engine.place());
    engine.wait();
    outputs = Floats(engine, times_factor(spread.values()));
    Floats sums(engine, std::vector<float>(arrived.size(), 77.0f));
    mb::combine({.permuted = mb::MatrixView<const float>(outputs.data(), expanded, hidden),
                 .row_of_slot = {row_of_slot.data(), rows, shape.k},
                 .combined = mb::MatrixView<float>(sums.data(), rows, hidden),
                 .weights = mb::MatrixView<const float>(weights.data(), rows, shape.k)},
                {}, engine.place());
    engine.wait();
    return sums.values();
  }

  /// Gradients of what had come: hidden states, weights.
  [[nodiscard]] std::tuple<std::vector<float>, std::vector<float>> backward(const std::vector<float>& slopes) {
    Floats given(engine, slopes), of_outputs(engine, std::vector<float>(index_of(expanded * hidden)));
    Floats of_weights(engine, std::vector<float>(index_of(rows * shape.k), 77.0f));
    mb::combine_backward({.grad_combined = mb::MatrixView<const float>(given.data(), rows, hidden),
                          .row_of_slot = {row_of_slot.data(), rows, shape.k},
                          .slot_of_row = {slot_of_row.data(), expanded},
                          .grad_permuted = mb::MatrixView<float>(of_outputs.data(), expanded, hidden),
                          .weights = mb::MatrixView<const float>(weights.data(), rows, shape.k),
                          .permuted = mb::MatrixView<const float>(outputs.data(), expanded, hidden),
                          .grad_weights = mb::MatrixView<float>(of_weights.data(), rows, shape.k)},
                         {}, engine.place());
    engine.wait();
    Floats of_inputs(engine, times_factor(of_outputs.values())), result(engine, std::vector<float>(slopes.size(), 77.0f));
    mb::permute_backward({.grad_permuted = mb::MatrixView<const float>(of_inputs.data(), expanded, hidden),
                          .row_of_slot = {row_of_slot.data(), rows, shape.k},
                          .grad_hidden = mb::MatrixView<float>(result.data(), rows, hidden)},
                         {}, engine.place());
    engine.wait();
    return {result.values(), of_weights.values()};
  }
};

template <class Engine>
void check_once_per_rank_trip(Random& random, const RanksOfExperts& shape) {
  using Floats = typename Engine::template Array<float>;
  constexpr std::int64_t hidden = RanksOfExperts::hidden;
  const Engine engine;
  std::vector<Tokens<Engine>> sources;
  std::vector<std::vector<float>> rows, row_weights, slope_rows;
  std::vector<std::vector<std::int32_t>> row_experts;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    sources.emplace_back(random, shape, random.integer(0, 40));
    Tokens<Engine>& own = sources.back();
    own.find_rows();
    const std::int64_t count = own.row_count();
    Floats sent(engine, std::vector<float>(index_of(count * hidden))),
        weights(engine, std::vector<float>(index_of(count * shape.k), 77.0f));
    Floats slopes(engine, own.slopes), sent_slopes(engine, sent.values());
    typename Engine::template Array<std::int32_t> experts(engine, std::vector<std::int32_t>(index_of(count * shape.k), 77));
    mb::permute({.hidden = mb::MatrixView<const float>(own.hidden.data(), own.tokens, hidden),
                 .slot_of_row = {own.slot_of_row.data(), count},
                 .permuted = mb::MatrixView<float>(sent.data(), count, hidden),
                 .top_k = static_cast<int>(shape.k)},
                {}, engine.place());
    mb::routing_of_rows({.experts = own.experts_view(),
                         .weights = mb::MatrixView<const float>(own.weights.data(), own.tokens, shape.k),
                         .slot_of_row = {own.slot_of_row.data(), count},
                         .row_experts = {experts.data(), count, shape.k},
                         .row_weights = mb::MatrixView<float>(weights.data(), count, shape.k),
                         .experts_per_rank = shape.local},
                        {}, engine.place());
    mb::combine_backward({.grad_combined = mb::MatrixView<const float>(slopes.data(), own.tokens, hidden),
                          .row_of_slot = {own.row_of_slot.data(), own.tokens, shape.k},
                          .slot_of_row = {own.slot_of_row.data(), count},
                          .grad_permuted = mb::MatrixView<float>(sent_slopes.data(), count, hidden)},
                         {}, engine.place());
    engine.wait();
    rows.push_back(sent.values());
    row_weights.push_back(weights.values());
    row_experts.push_back(experts.values());
    slope_rows.push_back(sent_slopes.values());
    for (std::int64_t i = own.offsets.values().back() * shape.k; i < count * shape.k; ++i) {  // rows of nothing
      REQUIRE(row_experts.back()[index_of(i)] == -1);
      REQUIRE(row_weights.back()[index_of(i)] == 0);
    }
  }
  std::vector<std::vector<float>> back = rows, back_slopes = rows, back_weights = row_weights;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    const auto range = [&](std::size_t source) {
      const std::vector<std::int64_t> offsets = sources[source].offsets.values();
      return std::pair(offsets[index_of(rank)], offsets[index_of(rank + 1)]);
    };
    ExpertsOfRank<Engine> own(shape, rank, gathered(row_experts, range, shape.k), gathered(row_weights, range, shape.k));
    const std::vector<float> sums = own.forward(gathered(rows, range, hidden));
    const auto [grads, grad_weights] = own.backward(gathered(slope_rows, range, hidden));
    std::int64_t at = 0;
    for (std::size_t source = 0; source < sources.size(); ++source) {
      const auto [first, last] = range(source);
      std::copy_n(sums.begin() + at * hidden, (last - first) * hidden, back[source].begin() + first * hidden);
      std::copy_n(grads.begin() + at * hidden, (last - first) * hidden, back_slopes[source].begin() + first * hidden);
      std::copy_n(grad_weights.begin() + at * shape.k, (last - first) * shape.k,
                  back_weights[source].begin() + first * shape.k);
      at += last - first;
    }
  }
  for (std::size_t source = 0; source < sources.size(); ++source) {
    Tokens<Engine>& own = sources[source];
    const std::int64_t count = own.row_count();
    Floats returned(engine, back[source]), returned_slopes(engine, back_slopes[source]),
        returned_weights(engine, back_weights[source]);
    Floats output(engine, std::vector<float>(own.values.size(), 77.0f)), grad_hidden(engine, output.values());
    Floats grad_weights(engine, std::vector<float>(own.ids.size(), 77.0f));
    mb::combine({.permuted = mb::MatrixView<const float>(returned.data(), count, hidden),
                 .row_of_slot = {own.row_of_slot.data(), own.tokens, shape.k},
                 .combined = mb::MatrixView<float>(output.data(), own.tokens, hidden)},
                {}, engine.place());
    mb::permute_backward({.grad_permuted = mb::MatrixView<const float>(returned_slopes.data(), count, hidden),
                          .row_of_slot = {own.row_of_slot.data(), own.tokens, shape.k},
                          .grad_hidden = mb::MatrixView<float>(grad_hidden.data(), own.tokens, hidden)},
                         {}, engine.place());
    mb::routing_of_rows_backward({.experts = own.experts_view(),
                                  .row_of_slot = {own.row_of_slot.data(), own.tokens, shape.k},
                                  .grad_row_weights = mb::MatrixView<const float>(returned_weights.data(), count, shape.k),
                                  .grad_weights = mb::MatrixView<float>(grad_weights.data(), own.tokens, shape.k),
                                  .experts_per_rank = shape.local},
                                 {}, engine.place());
    engine.wait();
    std::vector<float> want(own.values.size()), want_hidden(own.values.size()), want_weights(own.ids.size());
    for (std::int64_t t = 0; t < own.tokens; ++t) {
      for (std::int64_t k = 0; k < shape.k; ++k) {
        const std::size_t slot = index_of(t * shape.k + k);
        const auto factor = static_cast<float>(own.ids[slot] + 1);  // 0 for an empty slot
        for (std::size_t i = index_of(t * hidden); i < index_of((t + 1) * hidden); ++i) {
          want[i] += own.factors[slot] * factor * own.values[i];
          want_hidden[i] += own.factors[slot] * factor * own.slopes[i];
          want_weights[slot] += factor * own.values[i] * own.slopes[i];
        }
      }
    }
    CHECK(output.values() == want);
    CHECK(grad_hidden.values() == want_hidden);
    CHECK(grad_weights.values() == want_weights);
  }
}

TEST_CASE_TEMPLATE_DEFINE("once per rank: outputs and gradients are those of experts on one rank", Engine,
                          once_per_rank_trip) {
  Random random(302);
  for (const RanksOfExperts& shape : {RanksOfExperts{1, 3, 2}, RanksOfExperts{4, 2, 3}, RanksOfExperts{2, 8, 8},
                                      RanksOfExperts{6, 1, 4}, RanksOfExperts{3, 5, 1}}) {
    for (int round = 0; round < 3; ++round) check_once_per_rank_trip<Engine>(random, shape);
  }
}

/// Arguments of all three calls: two tokens, two slots, two ranks of two experts.
template <class Engine>
struct OncePerRankMemory {
  using Ids = typename Engine::template Array<std::int32_t>;
  using Longs = typename Engine::template Array<std::int64_t>;
  using Floats = typename Engine::template Array<float>;
  Engine engine;
  Ids experts{engine, {0, 3, 55, 2, 3, 55}}, ranks{engine, std::vector<std::int32_t>(6, 77)},
      row_experts{engine, std::vector<std::int32_t>(6, 77)};
  Longs slot_of_row{engine, {0, 1, 2}}, row_of_slot{engine, {0, 1, 55, 2, -1, 55}};
  Floats weights{engine, {1, 2, 3, 4}}, row_weights{engine, std::vector<float>(6, 77)};
  Floats grad_rows{engine, {1, 2, 3, 4, 5, 6}}, grad_weights{engine, std::vector<float>(4, 77)};
  typename Engine::template Array<mb::Status> status{engine, {mb::Status{}}};

  mb::OncePerRankArgs ranks_args() {
    return {.experts = {experts.data(), 2, 2, 3},
            .ranks = {ranks.data(), 2, 2, 3},
            .experts_per_rank = 2,
            .rank_count = 2,
            .status = status.data()};
  }
  mb::RoutingOfRowsArgs rows_args() {
    return {.experts = {experts.data(), 2, 2, 3},
            .weights = mb::MatrixView<const float>(weights.data(), 2, 2),
            .slot_of_row = {slot_of_row.data(), 3},
            .row_experts = {row_experts.data(), 3, 2},
            .row_weights = mb::MatrixView<float>(row_weights.data(), 3, 2),
            .experts_per_rank = 2,
            .status = status.data()};
  }
  mb::RoutingOfRowsBackwardArgs backward_args() {
    return {.experts = {experts.data(), 2, 2, 3},
            .row_of_slot = {row_of_slot.data(), 2, 2, 3},
            .grad_row_weights = mb::MatrixView<const float>(grad_rows.data(), 3, 2),
            .grad_weights = mb::MatrixView<float>(grad_weights.data(), 2, 2),
            .experts_per_rank = 2,
            .status = status.data()};
  }
  [[nodiscard]] auto contents() const {
    return std::tuple(experts.values(), ranks.values(), row_experts.values(), slot_of_row.values(), row_of_slot.values(),
                      weights.values(), row_weights.values(), grad_rows.values(), grad_weights.values());
  }
};
TEST_CASE_TEMPLATE_DEFINE("once per rank: weights and their gradients have any type, and rows may lie apart", Engine,
                          once_per_rank_types) {
  using Memory = OncePerRankMemory<Engine>;
  std::vector<mb::DataType> types{mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16};
  if (Engine::has_float64) types.push_back(mb::DataType::float64);
  for (const mb::DataType type : types) {
    CAPTURE(static_cast<int>(type));
    Memory memory;  // tokens {0, 3} and {2, 3}, rows of slots 0, 1, 2
    typename Engine::template Array<std::uint8_t> weights(memory.engine, encoded(type, {0.5, 0.25, 77, 0.75, 1.5, 77}));
    typename Engine::template Array<std::uint8_t> of_rows(memory.engine, encoded(type, std::vector<double>(12, 99)));
    mb::RoutingOfRowsArgs args = memory.rows_args();
    args.weights = {weights.data(), type, 2, 2, 3};
    args.row_weights = {of_rows.data(), type, 3, 2, 4};
    mb::routing_of_rows(args, {}, memory.engine.place());
    typename Engine::template Array<std::uint8_t> back(memory.engine, encoded(type, std::vector<double>(6, 99)));
    mb::RoutingOfRowsBackwardArgs backward = memory.backward_args();
    backward.grad_row_weights = args.row_weights;
    backward.grad_weights = {back.data(), type, 2, 2, 3};
    mb::routing_of_rows_backward(backward, {}, memory.engine.place());
    mb::once_per_rank(memory.ranks_args(), {}, memory.engine.place());
    memory.engine.wait();
    CHECK(memory.ranks.values() == std::vector<std::int32_t>{0, 1, 77, 1, -1, 77});
    CHECK(memory.row_experts.values() == std::vector<std::int32_t>{0, -1, -1, 1, 0, 1});
    CHECK(decoded(type, of_rows.values()) == std::vector<double>{0.5, 0, 99, 99, 0, 0.25, 99, 99, 0.75, 1.5, 99, 99});
    CHECK(decoded(type, back.values()) == std::vector<double>{0.5, 0.25, 99, 0.75, 1.5, 99});
  }
}

template <class Engine>
struct OncePerRankCall : OncePerRankMemory<Engine> {
  mb::OncePerRankArgs args() { return this->ranks_args(); }
  void run(const mb::OncePerRankArgs& args) { mb::once_per_rank(args, {}, this->engine.place()); }
};
template <class Engine>
struct RoutingOfRowsCall : OncePerRankMemory<Engine> {
  mb::RoutingOfRowsArgs args() { return this->rows_args(); }
  void run(const mb::RoutingOfRowsArgs& args) { mb::routing_of_rows(args, {}, this->engine.place()); }
};
template <class Engine>
struct RoutingOfRowsBackwardCall : OncePerRankMemory<Engine> {
  mb::RoutingOfRowsBackwardArgs args() { return this->backward_args(); }
  void run(const mb::RoutingOfRowsBackwardArgs& args) { mb::routing_of_rows_backward(args, {}, this->engine.place()); }
};

template <class Call, class Spoil>
void refuses_once_per_rank(const std::string& message, const Spoil& spoil) {
  CAPTURE(message);
  Call call;
  auto args = call.args();
  spoil(call, args);
  const auto before = call.contents();
  CHECK_THROWS_WITH_AS(call.run(args), doctest::Contains(message.c_str()), mb::InvalidArgument);
  CHECK(call.contents() == before);
}

TEST_CASE_TEMPLATE_DEFINE("once per rank: bad arguments are refused by name", Engine, once_per_rank_errors) {
  using A = OncePerRankCall<Engine>;
  refuses_once_per_rank<A>("once_per_rank: experts_per_rank is 0; allowed: 1 to",
                           [](auto&, auto& args) { args.experts_per_rank = 0; });
  refuses_once_per_rank<A>("once_per_rank: rank_count is 0; allowed: 1 to", [](auto&, auto& args) { args.rank_count = 0; });
  refuses_once_per_rank<A>("once_per_rank: ranks.columns is 1; allowed: 2",
                           [](auto&, auto& args) { args.ranks.columns = 1; });
  refuses_once_per_rank<A>("once_per_rank: experts.data is null", [](auto&, auto& args) { args.experts.data = nullptr; });
  using B = RoutingOfRowsCall<Engine>;
  refuses_once_per_rank<B>("routing_of_rows: experts_per_rank is -1; allowed: 1 to",
                           [](auto&, auto& args) { args.experts_per_rank = -1; });
  refuses_once_per_rank<B>("routing_of_rows: row_experts.rows is 2; allowed: 3",
                           [](auto&, auto& args) { args.row_experts.rows = 2; });
  refuses_once_per_rank<B>("routing_of_rows: weights.columns is 1; allowed: 2",
                           [](auto&, auto& args) { args.weights.columns = 1; });
  refuses_once_per_rank<B>("routing_of_rows: row_weights.type is bfloat16",
                           [](auto&, auto& args) { args.row_weights.type = mb::DataType::bfloat16; });
  using C = RoutingOfRowsBackwardCall<Engine>;
  refuses_once_per_rank<C>("routing_of_rows_backward: experts_per_rank is 0; allowed: 1 to",
                           [](auto&, auto& args) { args.experts_per_rank = 0; });
  refuses_once_per_rank<C>("routing_of_rows_backward: grad_row_weights.columns is 1; allowed: 2",
                           [](auto&, auto& args) { args.grad_row_weights.columns = 1; });
  refuses_once_per_rank<C>("routing_of_rows_backward: grad_weights.rows is 1; allowed: 2",
                           [](auto&, auto& args) { args.grad_weights.rows = 1; });
  refuses_once_per_rank<C>("routing_of_rows_backward: grad_weights.type is float16",
                           [](auto&, auto& args) { args.grad_weights.type = mb::DataType::float16; });

  // What a place cannot read before the call it counts, and takes as -1.
  if constexpr (mb::DispatchEngine<decltype(Engine{}.place())>::reads_arguments) {
    for (const std::int32_t wrong : {4, -2}) {
      refuses_once_per_rank<A>("once_per_rank: experts[1] is " + std::to_string(wrong) + "; allowed: -1 to 3",
                               [&](auto& call, auto& args) {
                                 call.experts = typename A::Ids(call.engine, {0, wrong, 55, 2, 3, 55});
                                 args = call.args();
                               });
    }
    refuses_once_per_rank<B>("routing_of_rows: experts[2] is -2; allowed: -1 to", [](auto& call, auto& args) {
      call.experts = typename B::Ids(call.engine, {0, 3, 55, -2, 3, 55});
      args = call.args();
    });
    refuses_once_per_rank<C>("routing_of_rows_backward: experts[2] is -2; allowed: -1 to", [](auto& call, auto& args) {
      call.experts = typename C::Ids(call.engine, {0, 3, 55, -2, 3, 55});
      args = call.args();
    });
    refuses_once_per_rank<B>("routing_of_rows: slot_of_row[1] is 4; allowed: -1 to 3", [](auto& call, auto& args) {
      call.slot_of_row = typename B::Longs(call.engine, {0, 4, 2});
      args = call.args();
    });
    refuses_once_per_rank<C>("routing_of_rows_backward: row_of_slot[2] is 3; allowed: -1 to 2", [](auto& call, auto& args) {
      call.row_of_slot = typename C::Longs(call.engine, {0, 1, 55, 3, -1, 55});
      args = call.args();
    });
  } else {
    A ranks;
    ranks.experts = typename A::Ids(ranks.engine, {4, 3, 55, -2, 3, 55});
    ranks.run(ranks.args());
    B rows;
    rows.slot_of_row = typename B::Longs(rows.engine, {0, 4, -2});
    rows.run(rows.args());
    C slots;
    slots.row_of_slot = typename C::Longs(slots.engine, {0, 3, 55, 2, -5, 55});
    slots.run(slots.args());
    slots.engine.wait();
    CHECK(ranks.ranks.values() == std::vector<std::int32_t>{-1, 1, 77, -1, 1, 77});
    CHECK(ranks.status.values()[0].invalid_experts == 2);
    CHECK(rows.row_experts.values() == std::vector<std::int32_t>{0, -1, -1, -1, -1, -1});
    CHECK(rows.status.values()[0].invalid_rows == 2);
    CHECK(slots.grad_weights.values() == std::vector<float>{1, 0, 5, 6});
    CHECK(slots.status.values()[0].invalid_rows == 2);
  }
}

TEST_CASE_TEMPLATE_DEFINE("once per rank: every argument over another that is written is refused", Engine,
                          once_per_rank_overlaps) {
  using A = mb::OncePerRankArgs;
  refuses_overlaps<A>("once_per_rank",
                      {reads("experts", &A::experts), writes("ranks", &A::ranks), writes("status", &A::status)},
                      [] { return OncePerRankCall<Engine>(); });
  using B = mb::RoutingOfRowsArgs;
  refuses_overlaps<B>(
      "routing_of_rows",
      {reads("experts", &B::experts), reads("weights", &B::weights), reads("slot_of_row", &B::slot_of_row),
       writes("row_experts", &B::row_experts), writes("row_weights", &B::row_weights), writes("status", &B::status)},
      [] { return RoutingOfRowsCall<Engine>(); });
  using C = mb::RoutingOfRowsBackwardArgs;
  refuses_overlaps<C>(
      "routing_of_rows_backward",
      {reads("experts", &C::experts), reads("row_of_slot", &C::row_of_slot), reads("grad_row_weights", &C::grad_row_weights),
       writes("grad_weights", &C::grad_weights), writes("status", &C::status)},
      [] { return RoutingOfRowsBackwardCall<Engine>(); });
}

}  // namespace testing
