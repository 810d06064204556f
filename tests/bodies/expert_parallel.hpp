// Experts over ranks, on any engine: replicas, local ranges, tensor-parallel masks, shared experts and splits over ranks.
#pragma once

#include "../elements.hpp"
#include "../random.hpp"
#include "overlaps.hpp"

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
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
      for (const mb::ReplicaRule rule : {mb::ReplicaRule::spread, mb::ReplicaRule::round_robin}) {
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
          return map[static_cast<std::size_t>(id * most) + static_cast<std::size_t>(chosen)];
        });
      }
    }
  }
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
  map(0, 2, -1, "physical_experts: logical_to_physical[0] is negative");

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
                                             .rule = mb::ReplicaRule(2)},
                                            {}, engine.place()),
                       doctest::Contains("physical_experts: rule is 2; allowed: spread, round_robin"), mb::InvalidArgument);
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
  memory.refuses("append_shared_experts: weights.type is 9; allowed: float32, bfloat16, float16",
                 [](mb::SharedExpertsArgs& args) { args.weights.type = args.all_weights.type = mb::DataType(9); });
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
}

}  // namespace testing
