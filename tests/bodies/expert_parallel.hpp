// Experts over ranks, on any engine: replicas, local ranges, tensor-parallel masks, shared experts, splits over ranks, and the way there and back.
#pragma once

#include "../elements.hpp"
#include "../random.hpp"
#include "overlaps.hpp"

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace testing {

/// Ids of tokens for calls that map them, and where the mapped ones go; rows of both lie `excess` elements apart.
template <class Engine>
struct IdMemory {
  using Ids = typename Engine::template Array<std::int32_t>;
  Engine engine;
  std::int64_t tokens;
  std::int64_t k;
  std::int64_t excess;
  std::vector<std::int32_t> given;
  Ids in;
  Ids out;

  IdMemory(std::uint64_t seed, std::int64_t token_count, std::int64_t slots, int experts, std::int64_t apart)
      : tokens(token_count), k(slots), excess(apart) {
    Random random(seed);
    for (std::int64_t i = 0; i < tokens * (k + excess); ++i) given.push_back(random.integer(-1, experts - 1));
    in = Ids(engine, given);
    out = Ids(engine, std::vector<std::int32_t>(given.size(), 77));
  }
  [[nodiscard]] mb::MatrixView<const std::int32_t> experts() { return {in.data(), tokens, k, k + excess}; }
  [[nodiscard]] mb::MatrixView<std::int32_t> mapped() { return {out.data(), tokens, k, k + excess}; }

  /// Every mapped id is want(id, token), -1 for -1; what lies between rows is untouched.
  template <class Function>
  void check(const Function& want) const {
    engine.wait();
    const std::vector<std::int32_t> got = out.values();
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::int64_t token = static_cast<std::int64_t>(i) / (k + excess);
      const bool is_slot = static_cast<std::int64_t>(i) % (k + excess) < k;
      REQUIRE(got[i] == (!is_slot ? 77 : given[i] < 0 ? -1 : want(given[i], token)));
    }
  }
};

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: replicas follow the rule, for any token and rank", Engine, physical_by_rule) {
  constexpr int experts = 5;
  constexpr int most = 3;
  const Engine engine;
  const std::vector<std::int32_t> replicas{1, 3, 2, 1, 3};
  const std::vector<std::int32_t> map{0, -1, -1, 1, 5, 8, 2, 6, -1, 3, -1, -1, 4, 7, 9};
  for (const std::int64_t rank : {0, 1, 6, 2147483647}) {
    for (const std::int64_t first : {std::int64_t{0}, std::int64_t{7}, std::int64_t{1} << 61}) {
      for (const mb::ReplicaRule rule : {mb::ReplicaRule::spread, mb::ReplicaRule::round_robin, mb::ReplicaRule::hashed}) {
        IdMemory<Engine> memory(81, 40, 3, experts, 2);
        typename Engine::template Array<std::int32_t> map_array(engine, map);
        typename Engine::template Array<std::int32_t> replica_array(engine, replicas);
        mb::physical_experts({.experts = memory.experts(),
                              .physical_experts = memory.mapped(),
                              .logical_to_physical = {map_array.data(), experts, most},
                              .replica_count = {replica_array.data(), experts},
                              .rank = rank,
                              .first_token = first,
                              .rule = rule},
                             {}, memory.engine.place());
        memory.check([&](int id, std::int64_t token) {
          const std::int64_t replica_total = replicas[static_cast<std::size_t>(id)];
          const int step = rule == mb::ReplicaRule::spread ? 23333 : 1;
          std::int64_t chosen = rank % replica_total;
          for (int i = 0; i < step; ++i) chosen = (chosen + (first + token) % replica_total) % replica_total;
          if (rule == mb::ReplicaRule::hashed) {
            const auto scramble = [](std::uint64_t x) {  // as splitmix64 scrambles its state
              for (const auto& [shift, factor] :
                   {std::pair{30, 0xBF58476D1CE4E5B9ull}, std::pair{27, 0x94D049BB133111EBull}})
                x = (x ^ x >> shift) * factor;
              return x ^ x >> 31;
            };
            const std::uint64_t of_token = scramble(static_cast<std::uint64_t>(first + token) + 0x9E3779B97F4A7C15ull);
            const std::uint64_t hash =
                scramble(of_token ^ (static_cast<std::uint64_t>(rank) * 4294967296u + static_cast<std::uint64_t>(id)));
            chosen = static_cast<std::int64_t>(std::ldexp(static_cast<double>(hash >> 32), -32) *
                                               static_cast<double>(replica_total));
          }
          return map[static_cast<std::size_t>(id * most) + static_cast<std::size_t>(chosen)];
        });
      }
    }
  }
}

/// Which of `replicas` each of so many tokens of expert `expert` goes to, which are `stride` apart from `first` on.
template <class Engine>
std::vector<std::int64_t> tokens_of_replicas(mb::ReplicaRule rule, int replicas, std::int64_t tokens, std::int64_t stride,
                                             std::int64_t rank, std::int32_t expert) {
  constexpr int experts = 3;
  const Engine engine;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens * stride), -1), map;
  for (std::size_t t = 0; t < ids.size(); t += static_cast<std::size_t>(stride)) ids[t] = expert;
  for (int e = 0; e < experts * replicas; ++e) map.push_back(e % replicas);
  typename Engine::template Array<std::int32_t> in(engine, ids), out(engine, ids), map_array(engine, map);
  typename Engine::template Array<std::int32_t> replica_count(engine, std::vector<std::int32_t>(experts, replicas));
  mb::physical_experts({.experts = {in.data(), tokens * stride, 1},
                        .physical_experts = {out.data(), tokens * stride, 1},
                        .logical_to_physical = {map_array.data(), experts, replicas},
                        .replica_count = {replica_count.data(), experts},
                        .rank = rank,
                        .rule = rule},
                       {}, engine.place());
  engine.wait();
  std::vector<std::int64_t> result(static_cast<std::size_t>(replicas), 0);
  for (const std::int32_t replica : out.values()) {
    if (replica >= 0) ++result[static_cast<std::size_t>(replica)];
  }
  return result;
}

TEST_CASE_TEMPLATE_DEFINE(
    "expert parallelism: hashed replicas share tokens at any distance, of one rank and of one from each", Engine,
    physical_hashed) {
  for (const int replicas : {2, 3, 4, 8}) {
    CAPTURE(replicas);
    constexpr std::int64_t tokens = 2048;
    const auto is_even = [&](const std::vector<std::int64_t>& got, double sum) {
      const double mean = sum / replicas, deviation = std::sqrt(mean * (1 - 1.0 / replicas));
      for (const std::int64_t n : got) CHECK(std::abs(static_cast<double>(n) - mean) < 4 * deviation);
    };
    for (const std::int64_t stride : {1, 2, 4, 8}) {
      is_even(tokens_of_replicas<Engine>(mb::ReplicaRule::hashed, replicas, tokens, stride, 0, 1), tokens);
      is_even(tokens_of_replicas<Engine>(mb::ReplicaRule::hashed, replicas, tokens, stride, 3, 2), tokens);
    }
    // One token from each of so many ranks, those at equal distances too: decoding.
    for (const std::int64_t stride : {1, 8}) {
      std::vector<std::int64_t> all(static_cast<std::size_t>(replicas), 0);
      constexpr std::int64_t ranks = 128;
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        const std::vector<std::int64_t> own =
            tokens_of_replicas<Engine>(mb::ReplicaRule::hashed, replicas, 1, 1, rank * stride, 0);
        for (std::size_t r = 0; r < all.size(); ++r) all[r] += own[r];
      }
      is_even(all, ranks);
    }
  }
  // What it is there for.
  CHECK(tokens_of_replicas<Engine>(mb::ReplicaRule::spread, 4, 100, 4, 0, 1) == std::vector<std::int64_t>{100, 0, 0, 0});
  CHECK(tokens_of_replicas<Engine>(mb::ReplicaRule::round_robin, 4, 100, 8, 0, 1) ==
        std::vector<std::int64_t>{100, 0, 0, 0});
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: a rank keeps its own experts, counted from its first", Engine, local_ranges) {
  IdMemory<Engine> memory(82, 33, 4, 12, 0);
  mb::local_experts({.experts = memory.experts(), .local_experts = memory.mapped(), .first_expert = 4, .expert_count = 4},
                    {}, memory.engine.place());
  memory.check([](int id, std::int64_t) { return id >= 4 && id <= 7 ? id - 4 : -1; });
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: tensor-parallel masks send every slot exactly once", Engine, tensor_masks) {
  constexpr int ranks = 3;
  std::vector<int> senders;
  for (int rank = 0; rank < ranks; ++rank) {
    IdMemory<Engine> memory(83, 25, 2, 24, 1);
    mb::tensor_parallel_mask({.experts = memory.experts(),
                              .masked_experts = memory.mapped(),
                              .experts_per_rank = 4,
                              .tensor_ranks = ranks,
                              .tensor_rank = rank},
                             {}, memory.engine.place());
    memory.check([&](int id, std::int64_t) { return (id / 4) % ranks == rank ? id : -1; });
    const std::vector<std::int32_t> sent = memory.out.values();
    senders.resize(sent.size());
    for (std::size_t i = 0; i < sent.size(); ++i) {
      if (i % 3 < 2 && memory.given[i] >= 0)
        senders[i] += sent[i] >= 0 ? 1 : 0;
      else
        senders[i] = 1;
    }
  }
  CHECK(std::count(senders.begin(), senders.end(), 1) == static_cast<std::ptrdiff_t>(senders.size()));
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: shared experts are further slots; inactive tokens have none", Engine,
                          shared_appended) {
  constexpr std::int64_t tokens = 9;
  const Engine engine;
  Random random(84);
  const std::vector<double> weights = rounded_to(mb::DataType::bfloat16, random.normals<double>(tokens * 2));
  const std::vector<std::uint8_t> active = random.flags(tokens, 0.4);
  IdMemory<Engine> memory(85, tokens, 2, 6, 0);
  typename Engine::template Array<std::uint8_t> w(engine, encoded(mb::DataType::bfloat16, weights));
  typename Engine::template Array<std::uint8_t> all_w(engine,
                                                      encoded(mb::DataType::bfloat16, std::vector<double>(tokens * 5, 9)));
  typename Engine::template Array<std::uint8_t> flags(engine, active);
  typename Engine::template Array<std::int32_t> all_ids(engine, std::vector<std::int32_t>(tokens * 5, 77));
  mb::append_shared_experts({.experts = memory.experts(),
                             .weights = mb::AnyMatrix(w.data(), mb::DataType::bfloat16, tokens, 2, 2),
                             .all_experts = {all_ids.data(), tokens, 5},
                             .all_weights = mb::AnyMatrix(all_w.data(), mb::DataType::bfloat16, tokens, 5, 5),
                             .first_shared = 6,
                             .weight = 0.5f,
                             .active = flags.data()},
                            {}, engine.place());
  engine.wait();
  const std::vector<std::int32_t> ids = all_ids.values();
  const std::vector<double> values = decoded(mb::DataType::bfloat16, all_w.values());
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(ids[5 * t + i] == (i < 2 ? memory.given[2 * t + i] : active[t] != 0 ? static_cast<int>(6 + i - 2) : -1));
      CHECK(values[5 * t + i] == (i < 2 ? weights[2 * t + i] : active[t] != 0 ? 0.5 : 0.0));
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: ranks are sent the rows of their experts", Engine, splits) {
  const Engine engine;
  using Longs = typename Engine::template Array<std::int64_t>;
  Longs offsets(engine, {0, 8, 8, 24, 32, 32, 40});
  Longs counts(engine, {5, 0, 16, 1, 0, 8});
  Longs send_counts(engine, {9, 9, 9});
  Longs send_offsets(engine, {9, 9, 9, 9});
  const auto split = [&] {
    mb::rank_splits({.offsets = {offsets.data(), 7},
                     .send_counts = {send_counts.data(), 3},
                     .send_offsets = {send_offsets.data(), 4},
                     .counts = counts.data()},
                    {}, engine.place());
    engine.wait();
  };
  split();
  CHECK(send_counts.values() == std::vector<std::int64_t>{8, 24, 8});
  CHECK(send_offsets.values() == std::vector<std::int64_t>{0, 8, 32, 40});

  // A rank in the middle that is sent nothing.
  offsets = Longs(engine, {0, 0, 8, 8, 8, 8, 16});
  counts = Longs(engine, {0, 8, 0, 0, 0, 8});
  split();
  CHECK(send_counts.values() == std::vector<std::int64_t>{8, 0, 8});
  CHECK(send_offsets.values() == std::vector<std::int64_t>{0, 8, 8, 16});
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: offsets follow from counts, with the rows that a permutation gives", Engine,
                          offsets_of_counts) {
  const Engine engine;
  using Longs = typename Engine::template Array<std::int64_t>;
  const auto offsets_of = [&](const std::vector<std::int64_t>& count_values, std::int64_t align, std::int64_t rows_each,
                              mb::Status* status = nullptr) {
    const auto experts = static_cast<std::int64_t>(count_values.size());
    Longs counts(engine, count_values), offsets(engine, std::vector<std::int64_t>(count_values.size() + 1, 77));
    mb::expert_offsets({.counts = {counts.data(), experts},
                        .offsets = {offsets.data(), experts + 1},
                        .align = align,
                        .rows_per_expert = rows_each,
                        .status = status},
                       {}, engine.place());
    engine.wait();
    return offsets.values();
  };
  using Offsets = std::vector<std::int64_t>;
  CHECK(offsets_of({3, 0, 9, 1}, 1, 0) == Offsets{0, 3, 3, 12, 13});
  CHECK(offsets_of({3, 0, 9, 8}, 8, 0) == Offsets{0, 8, 8, 24, 32});
  CHECK(offsets_of({3, 0, 9}, 4, 12) == Offsets{0, 12, 24, 36});
  CHECK(offsets_of({std::int64_t{1} << 40, 1}, 1, 0) == Offsets{0, std::int64_t{1} << 40, (std::int64_t{1} << 40) + 1});
  Random random(86);
  std::vector<std::int64_t> many;
  Offsets want{0};
  for (int e = 0; e < 5000; ++e) {
    many.push_back(random.integer(0, 9));
    want.push_back(want.back() + (many.back() + 3) / 4 * 4);
  }
  CHECK(offsets_of(many, 4, 0) == want);

  for (const std::int64_t bad : {std::int64_t{-1}, (std::int64_t{1} << 40) + 1}) {
    if constexpr (mb::DispatchEngine<decltype(engine.place())>::reads_arguments) {
      CHECK_THROWS_WITH_AS((void)offsets_of({3, bad}, 1, 0), doctest::Contains("expert_offsets: counts[1] is"),
                           mb::InvalidArgument);
    } else {
      typename Engine::template Array<mb::Status> status(engine, {mb::Status{}});
      CHECK(offsets_of({3, bad, 2}, 1, 0, status.data()) == Offsets{0, 3, 3, 5});
      CHECK(status.values()[0].invalid_rows == 1);
    }
  }
  CHECK_THROWS_WITH_AS((void)offsets_of({3}, 0, 0), doctest::Contains("expert_offsets: align is 0"), mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)offsets_of({3}, 4, 6), doctest::Contains("expert_offsets: rows_per_expert is 6"),
                       mb::InvalidArgument);
  Longs shared(engine, {1, 2, 3});
  CHECK_THROWS_WITH_AS(mb::expert_offsets({.counts = {shared.data(), 2}, .offsets = {shared.data(), 3}}, {}, engine.place()),
                       doctest::Contains("expert_offsets: offsets is memory that counts shares"), mb::InvalidArgument);
}

/// offsets and counts that disagree, and ids that no map has: refused where the call can look, counted elsewhere.
TEST_CASE_TEMPLATE_DEFINE("expert parallelism: what disagrees is refused, or counted where it cannot be seen before", Engine,
                          parallel_errors) {
  const Engine engine;
  using Longs = typename Engine::template Array<std::int64_t>;
  using Ids = typename Engine::template Array<std::int32_t>;
  typename Engine::template Array<mb::Status> status(engine, {mb::Status{}});
  constexpr bool looks = mb::DispatchEngine<decltype(engine.place())>::reads_arguments;
  const auto split = [&](const std::vector<std::int64_t>& offset_values, const std::vector<std::int64_t>& count_values,
                         const char* what) {
    Longs offsets(engine, offset_values), counts(engine, count_values);
    Longs send_counts(engine, {9, 9}), send_offsets(engine, {9, 9, 9});
    const auto run = [&] {
      mb::rank_splits({.offsets = {offsets.data(), 5},
                       .send_counts = {send_counts.data(), 2},
                       .send_offsets = {send_offsets.data(), 3},
                       .counts = counts.data(),
                       .status = status.data()},
                      {}, engine.place());
    };
    if constexpr (looks) {
      CHECK_THROWS_WITH_AS(run(), doctest::Contains(what), mb::InvalidArgument);
      CHECK(send_counts.values() == std::vector<std::int64_t>{9, 9});
    } else {
      const std::int64_t before = status.values()[0].invalid_rows;
      run();
      engine.wait();
      CHECK(status.values()[0].invalid_rows == before + 1);
      for (const std::int64_t sent : send_counts.values()) CHECK(sent >= 0);
    }
  };
  split({0, 4, 9, 2, 3}, {4, 5, 0, 1}, "rank_splits: offsets[3] is 2; allowed: at least 9");
  split({0, 2, 4, 6, 8}, {2, 2, 3, 2}, "rank_splits: offsets[3] is 6; allowed: at least 7");
  split({0, 2, 1, 6, 8}, {2, 0, 2, 2}, "rank_splits: offsets[2] is 1; allowed: at least 2");
  split({-1, 0, 1, 6, 8}, {0, 1, 2, 2}, "rank_splits: offsets[0] is -1; allowed: 0 to");
  split({0, 2, 4, 6, 8}, {2, -1, 2, 2}, "rank_splits: counts[1] is -1; allowed: 0 to");
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  split({0, 2, 4, 6, 8}, {2, most, 2, 2}, "rank_splits: offsets[2] is 4; allowed: at least 9223372036854775809");
  split({0, 2, 4, 6, -most - 1}, {2, 2, 2, 0}, "rank_splits: offsets[4] is -9223372036854775808; allowed: at least 6");

  const auto map = [&](std::int32_t id, std::int32_t replicas, std::int32_t physical, const char* what) {
    Ids ids(engine, {id, -1}), out(engine, {77, 77}), table(engine, {0, physical, 1, 1}), count(engine, {replicas, 1});
    const auto run = [&] {
      mb::physical_experts({.experts = {ids.data(), 1, 2},
                            .physical_experts = {out.data(), 1, 2},
                            .logical_to_physical = {table.data(), 2, 2},
                            .replica_count = {count.data(), 2},
                            .rank = 1,
                            .status = status.data()},
                           {}, engine.place());
    };
    if constexpr (looks) {
      CHECK_THROWS_WITH_AS(run(), doctest::Contains(what), mb::InvalidArgument);
      CHECK(out.values() == std::vector<std::int32_t>{77, 77});
    } else {
      const std::int64_t before = status.values()[0].invalid_experts;
      run();
      engine.wait();
      CHECK(out.values() == std::vector<std::int32_t>{-1, -1});
      CHECK(status.values()[0].invalid_experts == before + 1);
    }
  };
  map(2, 1, 1, "physical_experts: experts[0] is 2; allowed: -1 to 1");
  map(-2, 1, 1, "physical_experts: experts[0] is -2; allowed: -1 to 1");
  map(0, 3, 1, "physical_experts: replica_count[0] is 3; allowed: 1 to 2");
  map(0, 0, 1, "physical_experts: replica_count[0] is 0; allowed: 1 to 2");
  map(0, 2, -1, "physical_experts: logical_to_physical[1] is -1; allowed: 0 to");

  Longs offsets(engine, {0, 1, 2, 3}), send_counts(engine, {9, 9}), send_offsets(engine, {9, 9, 9});
  CHECK_THROWS_WITH_AS(
      mb::rank_splits(
          {.offsets = {offsets.data(), 4}, .send_counts = {send_counts.data(), 2}, .send_offsets = {send_offsets.data(), 3}},
          {}, engine.place()),
      doctest::Contains("send_counts.size is 2; allowed: a divisor of the 3 experts"), mb::InvalidArgument);
  Ids ids(engine, {0, 1});
  CHECK_THROWS_WITH_AS(mb::local_experts({.experts = mb::MatrixView<const std::int32_t>(ids.data(), 1, 2),
                                          .local_experts = {ids.data(), 1, 2},
                                          .expert_count = 1},
                                         {}, engine.place()),
                       doctest::Contains("local_experts: local_experts is memory that experts shares"), mb::InvalidArgument);
  Ids table(engine, {0, 1, 2, 3});
  CHECK_THROWS_WITH_AS(mb::physical_experts({.experts = mb::MatrixView<const std::int32_t>(ids.data(), 1, 2),
                                             .physical_experts = {table.data(), 1, 2},
                                             .logical_to_physical = {table.data() + 1, 2, 1},
                                             .replica_count = {ids.data(), 2}},
                                            {}, engine.place()),
                       doctest::Contains("physical_experts: physical_experts is memory that logical_to_physical shares"),
                       mb::InvalidArgument);
  Ids out(engine, {0, 1});
  CHECK_THROWS_WITH_AS(mb::physical_experts({.experts = mb::MatrixView<const std::int32_t>(ids.data(), 1, 2),
                                             .physical_experts = {out.data(), 1, 2},
                                             .logical_to_physical = {table.data(), 2, 1},
                                             .replica_count = {table.data() + 2, 2},
                                             .rule = mb::ReplicaRule(3)},
                                            {}, engine.place()),
                       doctest::Contains("physical_experts: rule is 3; allowed: spread, round_robin, hashed"),
                       mb::InvalidArgument);
  CHECK_THROWS_WITH_AS(mb::tensor_parallel_mask({.experts = mb::MatrixView<const std::int32_t>(ids.data(), 1, 2),
                                                 .masked_experts = {out.data(), 1, 2},
                                                 .experts_per_rank = 1,
                                                 .tensor_ranks = 2,
                                                 .tensor_rank = 2},
                                                {}, engine.place()),
                       doctest::Contains("tensor_parallel_mask: tensor_rank is 2; allowed: 0 to 1"), mb::InvalidArgument);
}

/// `call(ids, status)` maps the ids of two slots to `out`, whose first is not -1: a bad second one is refused, or counted where it cannot be seen.
template <class Engine, class Call>
void check_bad_id(const std::string& subject, std::int32_t id, std::int32_t first_mapped, const Call& call) {
  CAPTURE(subject);
  CAPTURE(id);
  const Engine engine;
  using Ids = typename Engine::template Array<std::int32_t>;
  Ids ids(engine, {5, id, -1}), out(engine, {77, 77, 77});
  typename Engine::template Array<mb::Status> status(engine, {mb::Status{.invalid_experts = 10}});
  const auto run = [&] {
    call(mb::MatrixView<const std::int32_t>(ids.data(), 1, 3), mb::MatrixView<std::int32_t>(out.data(), 1, 3), status.data(),
         engine.place());
    engine.wait();
  };
  if constexpr (mb::DispatchEngine<decltype(engine.place())>::reads_arguments) {
    CHECK_THROWS_WITH_AS(run(),
                         doctest::Contains((subject + ": experts[1] is " + std::to_string(id) + "; allowed: ").c_str()),
                         mb::InvalidArgument);
    CHECK(out.values() == std::vector<std::int32_t>{77, 77, 77});
    CHECK(status.values()[0].invalid_experts == 10);
  } else {
    run();
    CHECK(out.values() == std::vector<std::int32_t>{first_mapped, -1, -1});
    CHECK(status.values()[0].invalid_experts == 11);
  }
}

TEST_CASE_TEMPLATE_DEFINE(
    "expert parallelism: an id below -1 is refused, or counted and taken as -1 where it cannot be seen", Engine,
    parallel_bad_ids) {
  using In = mb::MatrixView<const std::int32_t>;
  using Out = mb::MatrixView<std::int32_t>;
  for (const std::int32_t id : {-2, -5, -2147483647 - 1}) {
    check_bad_id<Engine>("local_experts", id, 1, [](In in, Out out, mb::Status* status, const auto& place) {
      mb::local_experts({.experts = in, .local_experts = out, .first_expert = 4, .expert_count = 2, .status = status}, {},
                        place);
    });
    check_bad_id<Engine>("tensor_parallel_mask", id, 5, [](In in, Out out, mb::Status* status, const auto& place) {
      mb::tensor_parallel_mask({.experts = in,
                                .masked_experts = out,
                                .experts_per_rank = 4,
                                .tensor_ranks = 2,
                                .tensor_rank = 1,
                                .status = status},
                               {}, place);
    });
  }
}

/// The call's arguments over memory of `engine`: three slots of one token and two shared experts, 8 and 9.
template <class Engine>
struct SharedMemory {
  using Ids = typename Engine::template Array<std::int32_t>;
  using Floats = typename Engine::template Array<float>;
  Engine engine;
  Ids ids;
  Floats weights{engine, {0.5f, 0.25f, 0.125f}};
  Ids all_ids{engine, std::vector<std::int32_t>(5, 77)};
  Floats all_weights{engine, std::vector<float>(5, 77)};
  typename Engine::template Array<std::uint8_t> active{engine, {1}};
  typename Engine::template Array<mb::Status> status{engine, {mb::Status{.invalid_experts = 10}}};

  explicit SharedMemory(std::int32_t id) : ids(engine, {0, id, 7}) {}
  mb::SharedExpertsArgs args() {
    return {.experts = mb::MatrixView<const std::int32_t>(ids.data(), 1, 3),
            .weights = mb::MatrixView<const float>(weights.data(), 1, 3),
            .all_experts = {all_ids.data(), 1, 5},
            .all_weights = mb::MatrixView<float>(all_weights.data(), 1, 5),
            .first_shared = 8,
            .active = active.data(),
            .status = status.data()};
  }
  void run(const mb::SharedExpertsArgs& given) { mb::append_shared_experts(given, {}, engine.place()); }
  [[nodiscard]] auto contents() const {
    return std::tuple(ids.values(), weights.values(), all_ids.values(), all_weights.values(), active.values());
  }
  /// A call with these arguments, changed by `change`, must be refused with this message and write nothing.
  template <class Change>
  void refuses(const char* message, const Change& change) {
    CAPTURE(message);
    mb::SharedExpertsArgs changed = args();
    change(changed);
    const auto before = contents();
    CHECK_THROWS_WITH_AS(mb::append_shared_experts(changed, {}, engine.place()), doctest::Contains(message),
                         mb::InvalidArgument);
    engine.wait();
    CHECK(contents() == before);
    CHECK(status.values()[0].invalid_experts == 10);
  }
};

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: shared experts have ids of their own, which the caller names", Engine,
                          shared_ids) {
  for (const std::int32_t id : {-2, -2147483647, 8, 9}) {
    CAPTURE(id);
    SharedMemory<Engine> memory(id);
    if constexpr (mb::DispatchEngine<decltype(memory.engine.place())>::reads_arguments) {
      memory.refuses(("append_shared_experts: experts[1] is " + std::to_string(id) + "; allowed: ").c_str(),
                     [](mb::SharedExpertsArgs&) {});
    } else {
      mb::append_shared_experts(memory.args(), {}, memory.engine.place());
      memory.engine.wait();
      CHECK(memory.all_ids.values() == std::vector<std::int32_t>{0, -1, 7, 8, 9});
      CHECK(memory.all_weights.values() == std::vector<float>{0.5f, 0.0f, 0.125f, 1.0f, 1.0f});
      CHECK(memory.status.values()[0].invalid_experts == 11);
    }
  }
  SharedMemory<Engine> behind(10);  // routed ids may lie behind the shared ones
  mb::append_shared_experts(behind.args(), {}, behind.engine.place());
  behind.engine.wait();
  CHECK(behind.all_ids.values() == std::vector<std::int32_t>{0, 10, 7, 8, 9});
  CHECK(behind.status.values()[0].invalid_experts == 10);

  SharedMemory<Engine> memory(1);
  memory.refuses(
      "append_shared_experts: first_shared is -1; allowed: 0 to 1048576 (the id of the first shared expert, usually E)",
      [](mb::SharedExpertsArgs& args) { args.first_shared = mb::SharedExpertsArgs{}.first_shared; });
  for (const float weight : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    memory.refuses(("append_shared_experts: weight is " + std::to_string(weight) + "; allowed: finite numbers").c_str(),
                   [=](mb::SharedExpertsArgs& args) { args.weight = weight; });
  }
  for (const auto& [type, weight] :
       {std::pair(mb::DataType::float16, 65520.0f), std::pair(mb::DataType::bfloat16, 3.4e38f)}) {
    memory.refuses(("append_shared_experts: weight is " + std::to_string(weight) + "; allowed: numbers that are finite in " +
                    mb::name_of(type) + ", as weights")
                       .c_str(),
                   [type = type, weight = weight](mb::SharedExpertsArgs& args) {
                     args.weights.type = args.all_weights.type = type;
                     args.weight = weight;
                   });
  }
  memory.refuses("append_shared_experts: weights.type is 9; allowed: float32, bfloat16, float16",
                 [](mb::SharedExpertsArgs& args) { args.weights.type = args.all_weights.type = mb::DataType(9); });
}

/// What each source's rows look like to the rank that gets them, from the words of the contract.
struct Arrival {
  std::vector<std::int32_t> experts;
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> offsets{0};

  Arrival(const std::vector<std::vector<std::int64_t>>& sent, std::int64_t align, std::int64_t rows_per_expert) {
    for (const std::vector<std::int64_t>& source : sent) {
      for (std::size_t e = 0; e < source.size(); ++e) {
        std::int64_t rows = 0;
        while (rows_per_expert > 0 ? rows < rows_per_expert : rows < source[e] || rows % align != 0) {
          experts.push_back(rows < source[e] ? static_cast<std::int32_t>(e) : -1);
          ++rows;
        }
      }
      counts.push_back(static_cast<std::int64_t>(experts.size()) - offsets.back());
      offsets.push_back(static_cast<std::int64_t>(experts.size()));
    }
  }
};

/// Memory of received_experts for counts of [source][local expert]; rows of counts and of ids lie `excess` elements apart.
template <class Engine>
struct ReceivedMemory {
  using Longs = typename Engine::template Array<std::int64_t>;
  Engine engine;
  std::int64_t ranks;
  std::int64_t local;
  std::int64_t rows;
  std::int64_t excess;
  Longs counts, receive_counts, receive_offsets;
  typename Engine::template Array<std::int32_t> experts;
  typename Engine::template Array<std::uint8_t> scratch;
  typename Engine::template Array<mb::Status> status{engine, {mb::Status{.invalid_rows = 10}}};

  ReceivedMemory(const std::vector<std::vector<std::int64_t>>& sent, std::int64_t row_count, std::int64_t apart = 0)
      : ranks(static_cast<std::int64_t>(sent.size())),
        local(static_cast<std::int64_t>(sent[0].size())),
        rows(row_count),
        excess(apart) {
    std::vector<std::int64_t> values;
    for (const std::vector<std::int64_t>& source : sent) {
      values.insert(values.end(), source.begin(), source.end());
      values.insert(values.end(), static_cast<std::size_t>(excess), -9);
    }
    counts = Longs(engine, values);
    receive_counts = Longs(engine, std::vector<std::int64_t>(sent.size(), 77));
    receive_offsets = Longs(engine, std::vector<std::int64_t>(sent.size() + 1, 77));
    experts = {engine, std::vector<std::int32_t>(static_cast<std::size_t>(rows * (1 + excess)), 77)};
    scratch = {engine, std::vector<std::uint8_t>(mb::received_experts_workspace_bytes(ranks, local), 0xa5)};
  }
  mb::ReceivedExpertsArgs args() {
    return {.counts = mb::MatrixView<const std::int64_t>(counts.data(), ranks, local, local + excess),
            .experts = {experts.data(), rows, 1, 1 + excess},
            .receive_counts = {receive_counts.data(), ranks},
            .receive_offsets = {receive_offsets.data(), ranks + 1},
            .status = status.data()};
  }
  [[nodiscard]] mb::Workspace workspace() { return {scratch.data(), mb::received_experts_workspace_bytes(ranks, local)}; }
  void run(const mb::ReceivedExpertsArgs& given) {
    mb::received_experts(given, workspace(), engine.place());
    engine.wait();
  }
  [[nodiscard]] auto contents() const {
    return std::tuple(counts.values(), receive_counts.values(), receive_offsets.values(), experts.values(), scratch.values(),
                      status.values()[0].invalid_rows);
  }
  [[nodiscard]] std::int64_t invalid_rows() const { return status.values()[0].invalid_rows; }

  /// What has come is named and split as it should be, rows behind it are -1, and nothing else is written.
  void check(const Arrival& want) const {
    const std::vector<std::int32_t> got = experts.values();
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::size_t row = i / static_cast<std::size_t>(1 + excess);
      const bool is_id = i % static_cast<std::size_t>(1 + excess) == 0;
      REQUIRE(got[i] == (!is_id ? 77 : row < want.experts.size() ? want.experts[row] : -1));
    }
    CHECK(receive_counts.values() == want.counts);
    CHECK(receive_offsets.values() == want.offsets);
  }
};

/// Counts of [source][local expert]; some sources send nothing, some experts get nothing.
inline std::vector<std::vector<std::int64_t>> counts_of_sources(Random& random, int ranks, int local, int most) {
  std::vector<std::vector<std::int64_t>> sent;
  for (int rank = 0; rank < ranks; ++rank) {
    sent.emplace_back();
    const bool sends = random.chance(0.7);
    for (int e = 0; e < local; ++e) sent.back().push_back(sends && random.chance(0.8) ? random.integer(0, most) : 0);
  }
  return sent;
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: every received row gets its local expert, padding and rows behind get -1",
                          Engine, received_rows_named) {
  Random random(89);
  for (int i = 0; i < 60; ++i) {
    const int ranks = random.integer(1, 5);
    const int local = i % 20 == 0 ? 700 : random.integer(1, 9);
    const int align = std::vector<int>{1, 8, 3}[static_cast<std::size_t>(i % 3)];
    const std::int64_t rows_each = i % 4 == 3 ? align * random.integer(1, 5) : 0;
    const std::vector<std::vector<std::int64_t>> sent = counts_of_sources(random, ranks, local, i % 10 == 0 ? 90 : 12);
    const Arrival want(sent, align, rows_each);
    const std::int64_t behind = random.chance(0.5) ? random.integer(1, 40) : 0;
    CAPTURE(ranks);
    CAPTURE(local);
    CAPTURE(align);
    CAPTURE(rows_each);
    ReceivedMemory<Engine> memory(sent, static_cast<std::int64_t>(want.experts.size()) + behind, random.integer(0, 1));
    mb::ReceivedExpertsArgs args = memory.args();
    args.align = align;
    args.rows_per_expert = rows_each;
    memory.run(args);
    memory.check(want);
    CHECK(memory.invalid_rows() == 10);
  }
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: ranks that send no rows, and no rows at all, are no error", Engine,
                          nothing_received) {
  for (const std::int64_t rows : {std::int64_t{0}, std::int64_t{5}}) {
    ReceivedMemory<Engine> memory({{0, 0}, {0, 0}, {0, 0}}, rows);
    memory.run(memory.args());
    memory.check(Arrival({{0, 0}, {0, 0}, {0, 0}}, 1, 0));
  }
  const std::vector<std::vector<std::int64_t>> sent{{0, 0}, {2, 1}, {0, 0}};
  ReceivedMemory<Engine> memory(sent, 3);
  mb::ReceivedExpertsArgs args = memory.args();
  args.receive_counts = {};
  args.receive_offsets = {};
  args.status = nullptr;
  memory.run(args);
  CHECK(memory.experts.values() == std::vector<std::int32_t>{0, 0, 1});
  CHECK(memory.receive_counts.values() == std::vector<std::int64_t>(3, 77));
  CHECK(memory.receive_offsets.values() == std::vector<std::int64_t>(4, 77));
}

TEST_CASE_TEMPLATE_DEFINE(
    "expert parallelism: received counts that cannot be are refused, or counted where they cannot be seen", Engine,
    received_errors) {
  using Ids = std::vector<std::int32_t>;
  constexpr bool looks = mb::DispatchEngine<decltype(Engine{}.place())>::reads_arguments;
  const auto run = [](std::int64_t first, std::int64_t rows, const char* message, const Ids& ids, std::int64_t invalid) {
    CAPTURE(message);
    ReceivedMemory<Engine> memory({{2, first}, {1, 1}}, rows);
    const auto before = memory.contents();
    if constexpr (looks) {
      CHECK_THROWS_WITH_AS(memory.run(memory.args()), doctest::Contains(message), mb::InvalidArgument);
      CHECK(memory.contents() == before);
    } else {
      memory.run(memory.args());
      CHECK(memory.experts.values() == ids);
      CHECK(memory.invalid_rows() == 10 + invalid);
    }
  };
  run(-1, 5, "received_experts: counts[1] is -1; allowed: 0 to 1099511627776", {0, 0, 0, 1, -1}, 1);
  run((std::int64_t{1} << 40) + 1, 4, "received_experts: counts[1] is 1099511627777; allowed: 0 to", {0, 0, 0, 1}, 1);
  run(3, 6, "received_experts: experts.rows is 6; allowed: 7 to", {0, 0, 1, 1, 1, 0}, 1);
  run(3, 0, "received_experts: experts.rows is 0; allowed: 7 to", {}, 7);
  run(std::int64_t{1} << 40, 4, "experts.rows is 4; allowed: 1099511627780 to", {0, 0, 1, 1}, (std::int64_t{1} << 40));

  // Where each expert has so many rows, bad counts leave them padding.
  ReceivedMemory<Engine> memory({{2, std::int64_t{1} << 41}, {-7, 1}}, 8);
  mb::ReceivedExpertsArgs args = memory.args();
  args.rows_per_expert = 2;
  if constexpr (looks) {
    CHECK_THROWS_WITH_AS(memory.run(args), doctest::Contains("received_experts: counts[1] is"), mb::InvalidArgument);
  } else {
    memory.run(args);
    CHECK(memory.experts.values() == Ids{0, 0, -1, -1, -1, -1, 1, -1});
    CHECK(memory.invalid_rows() == 12);
    CHECK(memory.receive_counts.values() == std::vector<std::int64_t>{4, 4});
  }
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: received_experts refuses arguments that do not fit each other", Engine,
                          received_arguments) {
  const auto refuses = [](const char* message, const auto& change) {
    CAPTURE(message);
    ReceivedMemory<Engine> memory({{2, 3}, {1, 1}}, 8);
    mb::ReceivedExpertsArgs args = memory.args();
    mb::Workspace workspace = memory.workspace();
    change(args, workspace);
    const auto before = memory.contents();
    CHECK_THROWS_WITH_AS(mb::received_experts(args, workspace, memory.engine.place()), doctest::Contains(message),
                         mb::InvalidArgument);
    memory.engine.wait();
    CHECK(memory.contents() == before);
  };
  using Args = mb::ReceivedExpertsArgs;
  using Space = mb::Workspace;
  refuses("received_experts: align is 0; allowed: 1 to", [](Args& args, Space&) { args.align = 0; });
  refuses("received_experts: rows_per_expert is 3; allowed: 0, or a multiple of align = 2", [](Args& args, Space&) {
    args.align = 2;
    args.rows_per_expert = 3;
  });
  refuses("received_experts: experts.rows is 8; allowed: 12 to", [](Args& args, Space&) { args.rows_per_expert = 3; });
  refuses("received_experts: experts.columns is 2; allowed: 1", [](Args& args, Space&) { args.experts.columns = 2; });
  refuses("received_experts: experts.rows is -1; allowed: 0 to", [](Args& args, Space&) { args.experts.rows = -1; });
  refuses("received_experts: experts.data is null", [](Args& args, Space&) { args.experts.data = nullptr; });
  refuses("received_experts: counts.rows is 0; allowed: 1 to 524288", [](Args& args, Space&) { args.counts.rows = 0; });
  refuses("received_experts: counts.rows is 524289; allowed: 1 to 524288",
          [](Args& args, Space&) { args.counts.rows = 524289; });
  refuses("received_experts: counts.columns is 0; allowed: 1 to 1048576",
          [](Args& args, Space&) { args.counts.columns = 0; });
  refuses("received_experts: counts.stride is 1; allowed: 2 to", [](Args& args, Space&) { args.counts.stride = 1; });
  refuses("received_experts: receive_counts.size is 3; allowed: 2 (ranks)",
          [](Args& args, Space&) { args.receive_counts.size = 3; });
  refuses("received_experts: receive_offsets.size is 2; allowed: 3 (one more than the ranks)",
          [](Args& args, Space&) { args.receive_offsets.size = 2; });
  refuses("received_experts: workspace.data is null", [](Args&, Space& workspace) { workspace.data = nullptr; });
  refuses("received_experts: workspace.bytes is 39; allowed: 40 to", [](Args&, Space& workspace) { --workspace.bytes; });
  refuses("received_experts: experts is memory that workspace shares",
          [](Args& args, Space& workspace) { workspace.data = args.experts.data; });
  refuses("received_experts: receive_counts is memory that workspace shares",
          [](Args& args, Space& workspace) { workspace.data = args.receive_counts.data; });
  CHECK_THROWS_WITH_AS((void)mb::received_experts_workspace_bytes(0, 4),
                       doctest::Contains("received_experts_workspace_bytes: ranks is 0; allowed: 1 to 262144"),
                       mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)mb::received_experts_workspace_bytes(4, (1 << 20) + 1),
                       doctest::Contains("received_experts_workspace_bytes: local_experts is 1048577"), mb::InvalidArgument);
}

/// How experts lie over ranks, and how rows are padded where they are sent from.
struct ExpertRanks {
  int ranks;
  int local;  ///< physical experts of a rank
  int logical;
  std::int64_t align;
  std::int64_t rows_per_expert;
  [[nodiscard]] std::int64_t physical() const { return std::int64_t{ranks} * local; }
};

/// A rank in a single process that routes tokens, sends their rows and combines what comes back. All numbers are exact in float32.
template <class Engine>
struct SendingRank {
  using Longs = typename Engine::template Array<std::int64_t>;
  using Ints = typename Engine::template Array<std::int32_t>;
  using Floats = typename Engine::template Array<float>;
  static constexpr std::int64_t k = 2;
  static constexpr std::int64_t hidden = 3;
  Engine engine;
  std::int64_t tokens;
  std::int64_t row_count;
  bool drops;
  std::vector<std::int32_t> ids;
  std::vector<float> states, weights;
  Longs row_of_slot, counts, send_counts, send_offsets;
  Floats rows;

  SendingRank(Random& random, const ExpertRanks& shape, const mb::Placement& placement, int rank)
      : tokens(random.chance(0.2) ? 0 : random.integer(1, 9)), row_count(rows_of(shape)), drops(shape.rows_per_expert > 0) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (const int id : random.distinct_ids(k, shape.logical)) ids.push_back(random.chance(0.1) ? -1 : id);
      for (int i = 0; i < hidden; ++i) states.push_back(static_cast<float>(random.integer(-9, 9)));
      for (int i = 0; i < k; ++i) weights.push_back(static_cast<float>(random.integer(1, 8)) / 8.0f);
    }
    Ints physical(engine, std::vector<std::int32_t>(ids.size(), 77));
    to_physical(physical, placement, rank, shape.logical);
    send(physical, shape);
  }

  /// combined from what the experts made of `rows`.
  [[nodiscard]] std::vector<float> combined(const std::vector<float>& outputs) {
    Floats permuted(engine, outputs), factors(engine, weights), result(engine, std::vector<float>(states.size(), 77.0f));
    mb::combine({.permuted = mb::MatrixView<const float>(permuted.data(), row_count, hidden),
                 .row_of_slot = mb::MatrixView<const std::int64_t>(row_of_slot.data(), tokens, k),
                 .combined = mb::MatrixView<float>(result.data(), tokens, hidden),
                 .weights = mb::MatrixView<const float>(factors.data(), tokens, k)},
                {}, engine.place());
    engine.wait();
    return result.values();
  }

  /// The sum over a token's slots, without any exchange; over those that have a row where rows_per_expert leaves some none.
  [[nodiscard]] std::vector<float> dense() const {
    const std::vector<std::int64_t> row = row_of_slot.values();
    std::vector<float> result(states.size(), 0.0f);
    for (std::size_t slot = 0; slot < ids.size(); ++slot) {
      if (ids[slot] < 0 || (drops && row[slot] < 0)) continue;
      for (std::size_t i = 0; i < hidden; ++i) {
        result[slot / k * hidden + i] += weights[slot] * states[slot / k * hidden + i] * static_cast<float>(ids[slot] + 1);
      }
    }
    return result;
  }

 private:
  [[nodiscard]] std::int64_t rows_of(const ExpertRanks& shape) const {
    if (shape.rows_per_expert > 0) return shape.rows_per_expert * shape.physical();
    return mb::permutation_rows(tokens, k, shape.physical(), shape.align);
  }

  void to_physical(Ints& physical, const mb::Placement& placement, int rank, int logical) {
    Ints given(engine, ids), map(engine, placement.logical_to_physical), replicas(engine, placement.replica_count);
    mb::physical_experts(
        {.experts = mb::MatrixView<const std::int32_t>(given.data(), tokens, k),
         .physical_experts = {physical.data(), tokens, k},
         .logical_to_physical = mb::MatrixView<const std::int32_t>(map.data(), logical, placement.most_replicas),
         .replica_count = {replicas.data(), logical},
         .rank = rank},
        {}, engine.place());
    engine.wait();
  }

  void send(Ints& physical, const ExpertRanks& shape) {
    const std::int64_t experts = shape.physical();
    const std::size_t bytes = mb::permutation_workspace_bytes(tokens, k, experts);
    typename Engine::template Array<std::uint8_t> scratch(engine, std::vector<std::uint8_t>(bytes));
    const auto longs = [&](std::int64_t n) {
      return Longs(engine, std::vector<std::int64_t>(static_cast<std::size_t>(n), 77));
    };
    Longs offsets = longs(experts + 1), slot_of_row = longs(row_count);
    row_of_slot = longs(tokens * k);
    counts = longs(experts);
    mb::permutation({.experts = mb::MatrixView<const std::int32_t>(physical.data(), tokens, k),
                     .offsets = {offsets.data(), experts + 1},
                     .row_of_slot = {row_of_slot.data(), tokens, k},
                     .slot_of_row = {slot_of_row.data(), row_count},
                     .align = shape.align,
                     .rows_per_expert = shape.rows_per_expert,
                     .counts = counts.data()},
                    {scratch.data(), bytes}, engine.place());
    Floats given(engine, states);
    rows = Floats(engine, std::vector<float>(static_cast<std::size_t>(row_count * hidden), 77.0f));
    mb::permute({.hidden = mb::MatrixView<const float>(given.data(), tokens, hidden),
                 .slot_of_row = {slot_of_row.data(), row_count},
                 .permuted = mb::MatrixView<float>(rows.data(), row_count, hidden),
                 .top_k = k},
                {}, engine.place());
    send_counts = longs(shape.ranks);
    send_offsets = longs(shape.ranks + 1);
    engine.wait();
    std::vector<std::int64_t> with_row = counts.values();
    for (std::int64_t& count : with_row) count = shape.rows_per_expert > 0 ? std::min(count, shape.rows_per_expert) : count;
    Longs checked(engine, with_row);
    mb::rank_splits({.offsets = {offsets.data(), experts + 1},
                     .send_counts = {send_counts.data(), shape.ranks},
                     .send_offsets = {send_offsets.data(), shape.ranks + 1},
                     .counts = checked.data()},
                    {}, engine.place());
    engine.wait();
  }
};

/// A rank's experts, which multiply by their logical id + 1: from rows in the order in which they come to outputs in the same order.
template <class Engine>
struct ReceivingRank {
  using Longs = typename Engine::template Array<std::int64_t>;
  using Floats = typename Engine::template Array<float>;
  static constexpr std::int64_t hidden = SendingRank<Engine>::hidden;
  static constexpr std::int64_t own_align = 3;  ///< of no concern to the sources
  ReceivedMemory<Engine> received;
  std::vector<std::int32_t> logical;    ///< of the local experts
  std::vector<std::int64_t> slot_sums;  ///< of the local experts: slots that have come with a row

  ReceivingRank(const std::vector<std::vector<std::int64_t>>& counts, std::int64_t rows,
                std::vector<std::int32_t> logical_ids, const ExpertRanks& shape)
      : received(counts, rows), logical(std::move(logical_ids)) {
    for (std::size_t e = 0; e < logical.size(); ++e) {
      slot_sums.push_back(0);
      for (const std::vector<std::int64_t>& source : counts) {
        slot_sums[e] += shape.rows_per_expert > 0 ? std::min(source[e], shape.rows_per_expert) : source[e];
      }
    }
    mb::ReceivedExpertsArgs args = received.args();
    args.align = shape.align;
    args.rows_per_expert = shape.rows_per_expert;
    received.run(args);
    CHECK(received.invalid_rows() == 10);
  }

  [[nodiscard]] std::vector<float> outputs(const std::vector<float>& arrived) {
    const Engine& engine = received.engine;
    const std::int64_t rows = received.rows;
    const std::int64_t experts = received.local;
    const std::int64_t ordered = mb::permutation_rows(rows, 1, experts, own_align);
    const auto longs = [&](std::int64_t n) {
      return Longs(engine, std::vector<std::int64_t>(static_cast<std::size_t>(n), 77));
    };
    Longs offsets = longs(experts + 1), row_of_slot = longs(rows), slot_of_row = longs(ordered);
    const std::size_t bytes = mb::permutation_workspace_bytes(rows, 1, experts);
    typename Engine::template Array<std::uint8_t> scratch(engine, std::vector<std::uint8_t>(bytes));
    mb::permutation({.experts = received.args().experts,
                     .offsets = {offsets.data(), experts + 1},
                     .row_of_slot = {row_of_slot.data(), rows, 1},
                     .slot_of_row = {slot_of_row.data(), ordered},
                     .align = own_align},
                    {scratch.data(), bytes}, engine.place());
    Floats given(engine, arrived), permuted(engine, std::vector<float>(static_cast<std::size_t>(ordered * hidden), 77.0f));
    mb::permute({.hidden = mb::MatrixView<const float>(given.data(), rows, hidden),
                 .slot_of_row = {slot_of_row.data(), ordered},
                 .permuted = mb::MatrixView<float>(permuted.data(), ordered, hidden),
                 .top_k = 1},
                {}, engine.place());
    engine.wait();
    check_offsets(offsets.values());
    Floats multiplied(engine, run_experts(permuted.values(), offsets.values(), slot_of_row.values()));
    Floats result(engine, std::vector<float>(arrived.size(), 77.0f));
    mb::combine({.permuted = mb::MatrixView<const float>(multiplied.data(), ordered, hidden),
                 .row_of_slot = mb::MatrixView<const std::int64_t>(row_of_slot.data(), rows, 1),
                 .combined = mb::MatrixView<float>(result.data(), rows, hidden)},
                {}, engine.place());
    engine.wait();
    return result.values();
  }

 private:
  /// Counts of all sources give the offsets of this rank's own permutation.
  void check_offsets(const std::vector<std::int64_t>& want) {
    Longs counts(received.engine, slot_sums), offsets(received.engine, std::vector<std::int64_t>(want.size(), 77));
    mb::expert_offsets(
        {.counts = {counts.data(), received.local}, .offsets = {offsets.data(), received.local + 1}, .align = own_align}, {},
        received.engine.place());
    received.engine.wait();
    CHECK(offsets.values() == want);
  }

  /// Padding becomes NaN: nothing may depend on it.
  [[nodiscard]] std::vector<float> run_experts(std::vector<float> rows, const std::vector<std::int64_t>& offsets,
                                               const std::vector<std::int64_t>& slot_of_row) const {
    for (std::size_t e = 0; e < logical.size(); ++e) {
      for (std::int64_t row = offsets[e]; row < offsets[e + 1]; ++row) {
        const bool is_padding = slot_of_row[static_cast<std::size_t>(row)] < 0;
        for (std::int64_t i = row * hidden; i < (row + 1) * hidden; ++i) {
          rows[static_cast<std::size_t>(i)] *=
              is_padding ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(logical[e] + 1);
        }
      }
    }
    return rows;
  }
};

/// Rows of [source], in the order of ranks, that go to `rank`.
template <class Engine>
std::vector<float> rows_to(int rank, const std::vector<SendingRank<Engine>>& sources) {
  std::vector<float> arrived;
  for (const SendingRank<Engine>& source : sources) {
    const std::vector<float> rows = source.rows.values();
    const auto first = source.send_offsets.values()[static_cast<std::size_t>(rank)] * SendingRank<Engine>::hidden;
    const auto size = source.send_counts.values()[static_cast<std::size_t>(rank)] * SendingRank<Engine>::hidden;
    arrived.insert(arrived.end(), rows.begin() + first, rows.begin() + first + size);
  }
  return arrived;
}

/// Counts of the experts of `rank`, of [source][local expert].
template <class Engine>
std::vector<std::vector<std::int64_t>> counts_to(int rank, int local, const std::vector<SendingRank<Engine>>& sources) {
  std::vector<std::vector<std::int64_t>> counts;
  for (const SendingRank<Engine>& source : sources) {
    const std::vector<std::int64_t> all = source.counts.values();
    counts.emplace_back(all.begin() + rank * local, all.begin() + (rank + 1) * local);
  }
  return counts;
}

/// Tokens go to experts over ranks and come back as they would from experts that one rank has.
template <class Engine>
void check_round_trip(Random& random, const ExpertRanks& shape) {
  constexpr std::int64_t hidden = SendingRank<Engine>::hidden;
  std::vector<std::int64_t> load;
  for (int e = 0; e < shape.logical; ++e) load.push_back(random.integer(0, 100));
  const mb::Placement placement = mb::place_experts({.counts = {load.data(), shape.logical},
                                                     .physical_experts = static_cast<int>(shape.physical()),
                                                     .ranks = shape.ranks});
  std::vector<SendingRank<Engine>> sources;
  for (int rank = 0; rank < shape.ranks; ++rank) sources.emplace_back(random, shape, placement, rank);
  std::vector<std::vector<float>> back;
  for (const SendingRank<Engine>& source : sources) back.emplace_back(source.rows.values().size(), 77.0f);
  for (int rank = 0; rank < shape.ranks; ++rank) {
    std::vector<float> arrived = rows_to(rank, sources);
    arrived.resize(arrived.size() + static_cast<std::size_t>(random.integer(0, 3) * hidden), 55.0f);  // room that is left
    const auto first = placement.logical_of_physical.begin() + rank * shape.local;
    ReceivingRank<Engine> receiver(counts_to(rank, shape.local, sources), static_cast<std::int64_t>(arrived.size()) / hidden,
                                   std::vector<std::int32_t>(first, first + shape.local), shape);
    const std::vector<float> outputs = receiver.outputs(arrived);
    const std::vector<std::int64_t> from = receiver.received.receive_offsets.values();
    const std::vector<std::int64_t> sizes = receiver.received.receive_counts.values();
    for (std::size_t source = 0; source < sources.size(); ++source) {
      const auto at = static_cast<std::size_t>(rank);
      REQUIRE(sizes[source] == sources[source].send_counts.values()[at]);
      std::copy_n(outputs.begin() + from[source] * hidden, sizes[source] * hidden,
                  back[source].begin() + sources[source].send_offsets.values()[at] * hidden);
    }
  }
  for (std::size_t rank = 0; rank < sources.size(); ++rank) {
    CHECK(sources[rank].combined(back[rank]) == sources[rank].dense());
  }
}

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: rows sent to experts on other ranks come back as from experts of one rank",
                          Engine, round_trip) {
  Random random(90);
  for (int i = 0; i < 12; ++i) {
    const int ranks = random.integer(1, 4);
    const int local = random.integer(2, 4);
    for (const bool replicated : {false, true}) {
      const int logical = replicated ? random.integer(2, ranks * local) : ranks * local;
      for (const std::int64_t align : {1, 4}) {
        check_round_trip<Engine>(random, {ranks, local, logical, align, i % 3 == 2 ? 4 : 0});
      }
    }
  }
}

/// Memory of rank_splits: four experts, two ranks.
template <class Engine>
struct SplitsMemory {
  using Longs = typename Engine::template Array<std::int64_t>;
  Engine engine;
  Longs offsets{engine, {0, 2, 4, 6, 8}};
  Longs counts{engine, {2, 2, 2, 2}};
  Longs send_counts{engine, std::vector<std::int64_t>(2, 77)};
  Longs send_offsets{engine, std::vector<std::int64_t>(3, 77)};
  typename Engine::template Array<mb::Status> status{engine, {mb::Status{}}};

  mb::RankSplitsArgs args() {
    return {.offsets = {offsets.data(), 5},
            .send_counts = {send_counts.data(), 2},
            .send_offsets = {send_offsets.data(), 3},
            .counts = counts.data(),
            .status = status.data()};
  }
  void run(const mb::RankSplitsArgs& args) { mb::rank_splits(args, {}, engine.place()); }
  [[nodiscard]] auto contents() const {
    return std::tuple(offsets.values(), counts.values(), send_counts.values(), send_offsets.values());
  }
};

TEST_CASE_TEMPLATE_DEFINE("expert parallelism: every argument over another that is written is refused", Engine,
                          parallel_overlaps) {
  using S = mb::SharedExpertsArgs;
  refuses_overlaps<S>("append_shared_experts",
                      {reads("experts", &S::experts), reads("weights", &S::weights), writes("all_experts", &S::all_experts),
                       writes("all_weights", &S::all_weights), reads("active", &S::active), writes("status", &S::status)},
                      [] { return SharedMemory<Engine>(1); });
  using R = mb::RankSplitsArgs;
  refuses_overlaps<R>("rank_splits",
                      {reads("offsets", &R::offsets), writes("send_counts", &R::send_counts),
                       writes("send_offsets", &R::send_offsets), reads("counts", &R::counts), writes("status", &R::status)},
                      [] { return SplitsMemory<Engine>(); });
  using V = mb::ReceivedExpertsArgs;
  refuses_overlaps<V>(
      "received_experts",
      {reads("counts", &V::counts), writes("experts", &V::experts), writes("receive_counts", &V::receive_counts),
       writes("receive_offsets", &V::receive_offsets), writes("status", &V::status)},
      [] {
        return ReceivedMemory<Engine>({{2, 3}, {1, 1}}, 8);
      });
}

}  // namespace testing
