// Calls whose parts an executor of the program runs: a router's, dispatch's and a capacity's hand them over, start no thread, and give the same bits. (Other
// calls' parts are started by the same functions.)
#include "bodies/capacity.hpp"
#include "call.hpp"
#include "count_threads.hpp"
#include "dispatch_run.hpp"
#include "engine_host.hpp"
#include "make_inputs.hpp"

#include <moe_balance/moe_balance.hpp>

#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace testing {

constexpr int part_count = 3;

/// What a pool is, at its worst: one thread, the caller's, and the last part first. Counts.
struct LastPartFirst {
  mutable int calls = 0;
  mutable int wrong_part_counts = 0;

  template <class Part>
  void operator()(int parts, const Part& part) const {
    ++calls;
    if (parts != part_count) ++wrong_part_counts;
    for (int i = parts - 1; i >= 0; --i) part(i);
  }
};

/// Two threads that take the next part when they have done one, as a pool's do.
constexpr auto two_threads = [](int parts, const auto& part) {
  std::atomic<int> next{0};
  const auto work = [&] {
    for (int i = next++; i < parts; i = next++) part(i);
  };
  std::thread other(work);
  work();
  other.join();
};

/// `run(engine)` runs calls of `part_count` parts each, `calls` in all, and gives their results; `same` compares two.
template <class Run, class Same>
void check_parts(int calls, const Run& run, const Same& same) {
  const auto alone = run(HostEngine{.threads = 1});

  threads_started = 0;
  CHECK(same(alone, run(HostEngine{.threads = part_count})));
  CHECK(threads_started == calls * (part_count - 1));

  threads_started = 0;
  const LastPartFirst last_part_first;
  CHECK(same(alone, run(HostEngine{.threads = part_count, .executor = mb::executor_of(last_part_first)})));
  CHECK(threads_started == 0);
  CHECK(last_part_first.calls == calls);
  CHECK(last_part_first.wrong_part_counts == 0);

  CHECK(same(alone, run(HostEngine{.threads = part_count, .executor = mb::executor_of(two_threads)})));
  CHECK(threads_started == calls);
}

TEST_CASE("an executor runs the parts of a router's calls") {
  const auto same = [](const Outcome& a, const Outcome& b) { return same_bits(a, b); };
  const mb::Router router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}};
  for (const int experts : {64, 256}) {  // side by side, and rows
    const Inputs inputs = normal_inputs(1, 400000 / experts, experts, 8);
    check_parts(
        2, [&](const HostEngine& engine) { return train(engine, router, inputs); }, same);
    check_parts(
        1, [&](const HostEngine& engine) { return route(engine, router, inputs); }, same);
  }
  const Inputs doubles = in_float64(normal_inputs(2, 1600, 256, 8));
  check_parts(
      2, [&](const HostEngine& engine) { return train(engine, router, doubles); }, same);
}

TEST_CASE("an executor runs the parts of dispatch's calls") {
  DispatchProblem p = dispatch_problem(3, 6200, 8, 24, 32, 16);
  Random random(4);
  fill_values(p, random);
  const auto run = [&](const HostEngine& engine) { return run_dispatch(engine, p); };
  const auto calls_of_run = [&] {
    const LastPartFirst counter;
    run(HostEngine{.threads = part_count, .executor = mb::executor_of(counter)});
    return counter.calls;
  };
  CHECK(calls_of_run() == 12);  // two of the permutation, and one of each call with rows
  check_parts(calls_of_run(), run, [](const auto& a, const auto& b) { return a == b; });
  p.sorts = true;
  CHECK(calls_of_run() == 14);
  check_parts(calls_of_run(), run, [](const auto& a, const auto& b) { return a == b; });
}

TEST_CASE("an executor runs the parts of a capacity's limit") {
  CapacityProblem p = capacity_problem(73, 50000, 2, 8, 9000, 0);
  p.renormalise = true;
  const CapacityResult alone = limit(HostEngine{.threads = 1}, p);
  const LastPartFirst last_part_first;
  threads_started = 0;
  const CapacityResult got = limit(HostEngine{.threads = part_count, .executor = mb::executor_of(last_part_first)}, p);
  CHECK(last_part_first.calls >= 1);
  CHECK(last_part_first.wrong_part_counts == 0);
  CHECK(threads_started == 0);
  CHECK(got.experts == alone.experts);
  CHECK(got.weights == alone.weights);
}

TEST_CASE("a call too small for two parts asks no executor") {
  const LastPartFirst last_part_first;
  const mb::Router router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}};
  train(HostEngine{.threads = part_count, .executor = mb::executor_of(last_part_first)}, router,
        normal_inputs(5, 10, 64, 8));
  CHECK(last_part_first.calls == 0);
}

TEST_CASE("an executor is asked for smaller calls than would start a thread, and for as many parts as it is said to have") {
  const LastPartFirst last_part_first;
  const mb::Router router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}};
  const Inputs inputs = normal_inputs(7, 600, 256, 8);
  threads_started = 0;
  train(HostEngine{.threads = part_count, .executor = mb::executor_of(last_part_first)}, router, inputs);
  train(HostEngine{.threads = part_count}, router, inputs);
  CHECK(last_part_first.calls == 2);
  CHECK(last_part_first.wrong_part_counts == 0);
  CHECK(threads_started == 0);
  const HostEngine unsaid{.threads = 0, .executor = mb::executor_of(last_part_first)};
  const char* const refusal = "moe_balance: forward: host.threads is 0; allowed: 1 or more, as many as host.executor has";
  CHECK_THROWS_WITH_AS(train(unsaid, router, inputs), refusal, mb::InvalidArgument);
  CHECK(last_part_first.calls == 2);
}

TEST_CASE("what an executor throws leaves the call") {
  const auto refuses = [](int, const auto&) { throw std::runtime_error("the pool has ended"); };
  const mb::Router router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}};
  const HostEngine engine{.threads = part_count, .executor = mb::executor_of(refuses)};
  CHECK_THROWS_WITH(train(engine, router, normal_inputs(6, 1600, 256, 8)), "the pool has ended");
}

}  // namespace testing
