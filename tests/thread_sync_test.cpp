// ThreadSync: the identities between many ranks, and what ranks that fail do to the others.
#include "many_ranks.hpp"

#include <moe_balance/sync/thread.hpp>

#include <chrono>
#include <string>
#include <thread>

namespace testing {

namespace {

using Clock = std::chrono::steady_clock;

/// Runs f(rank's Sync) on one thread per rank.
template <class Function>
void on_ranks(int ranks, double timeout, const Function& f) {
  const std::vector<mb::ThreadSync> handles = mb::ThreadSync::group(ranks, mb::ThreadSync::Seconds(timeout));
  std::vector<std::thread> threads;
  for (const mb::ThreadSync& handle : handles) threads.emplace_back([&f, handle] { f(handle); });
  for (std::thread& thread : threads) thread.join();
}

/// What a call raises; empty where it raises nothing.
template <class Function>
std::string error_of(const Function& f) {
  try {
    f();
  } catch (const mb::SyncError& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("ThreadSync: many ranks compute what one rank with the whole batch computes, bit for bit") {
  for (const int ranks : {1, 2, 3, 4, 8}) {
    CAPTURE(ranks);
    on_ranks(ranks, 60, [](const mb::ThreadSync& sync) { check_all_identities(sync, mb::ThreadSync::group(1)[0]); });
  }
}

TEST_CASE("ThreadSync: start waits for nobody, so one thread may run all ranks in turn") {
  const std::vector<mb::ThreadSync> ranks = mb::ThreadSync::group(3);
  std::vector<Counts> counts{{1, 2}, {10, 20}, {100, 200}};
  for (std::size_t r = 0; r < 3; ++r) ranks[r].start(counts[r].data(), 2, mb::Host{});
  for (std::size_t r = 0; r < 3; ++r) ranks[r].finish(counts[r].data(), mb::Host{});
  CHECK(counts == std::vector<Counts>(3, Counts{111, 222}));
}

TEST_CASE("ThreadSync: a rank that stalls gives all others an error that names it, within the timeout, and no bias moves") {
  on_ranks(4, 1.5, [](const mb::ThreadSync& sync) {
    if (sync.rank() == 2) return;
    const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, mb::LossFreeBias{}, sync};
    Counts load{1, 2, 3};
    std::vector<float> bias{4, 5, 6};
    const auto begin = Clock::now();
    const std::string error = error_of([&] {
      router.update(mb::BiasRef{bias.data(), 3}, mb::LoadRef{load.data(), 3}, {}, mb::Host{});
    });
    CHECK(Clock::now() - begin < std::chrono::seconds(10));
    CHECK(contains(error, "for rank 2 to start sum 0 of 3 counts"));
    CHECK(contains(error, "waited 1.500000 s"));
    CHECK(bias == std::vector<float>{4, 5, 6});
    CHECK(load == Counts{1, 2, 3});
    CHECK(contains(error_of([&] { sync.start(load.data(), 3, mb::Host{}); }), "finds the group failed"));
    CHECK(contains(error_of([&] { sync.finish(load.data(), mb::Host{}); }), "finds the group failed"));
  });
}

TEST_CASE("ThreadSync: a rank that gives up tells the others why, at once") {
  on_ranks(3, 60, [](const mb::ThreadSync& sync) {
    if (sync.rank() == 1) return sync.fail("its data ran out");
    Counts counts{1};
    const auto begin = Clock::now();
    const std::string error = error_of([&] {
      sync.start(counts.data(), 1, mb::Host{});
      sync.finish(counts.data(), mb::Host{});
    });
    CHECK(Clock::now() - begin < std::chrono::seconds(10));
    CHECK(contains(error, "rank 1 of 3 gives up: its data ran out"));
    CHECK(counts == Counts{1});
  });
}

TEST_CASE("ThreadSync: ranks that add different numbers of counts are told so") {
  const std::vector<mb::ThreadSync> ranks = mb::ThreadSync::group(2);
  Counts two{1, 2}, three{1, 2, 3};
  ranks[0].start(two.data(), 2, mb::Host{});
  CHECK(contains(error_of([&] { ranks[1].start(three.data(), 3, mb::Host{}); }),
                 "rank 1 of 2 adds 3 counts to sum 0, to which another rank has added 2"));
  CHECK(contains(error_of([&] { ranks[0].finish(two.data(), mb::Host{}); }), "finds the group failed"));
  CHECK(two == Counts{1, 2});
}

TEST_CASE("ThreadSync: a number of counts below 0 is refused, and the group goes on") {
  const mb::ThreadSync sync = mb::ThreadSync::group(1)[0];
  Counts counts{5};
  CHECK_THROWS_AS(sync.start(counts.data(), -1, mb::Host{}), mb::InvalidArgument);
  CHECK(sum_of(sync, counts) == Counts{5});
}

TEST_CASE("ThreadSync: a group has at least one rank and a timeout") {
  CHECK_THROWS_AS((void)mb::ThreadSync::group(0), mb::InvalidArgument);
  for (const double seconds : {0.0, -1.0, 1e10, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THROWS_AS((void)mb::ThreadSync::group(1, mb::ThreadSync::Seconds(seconds)), mb::InvalidArgument);
  }
}

TEST_CASE("finish_update refuses a load whose sum was not started") {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, mb::LossFreeBias{}, mb::ThreadSync::group(1)[0]};
  Counts load{1, 2};
  std::vector<float> bias{0, 0};
  CHECK_THROWS_WITH_AS(router.finish_update(mb::BiasRef{bias.data(), 2}, mb::LoadRef{load.data(), 2}, {}, mb::Host{}),
                       "moe_balance: finish_update: load.counts is not being summed over ranks; allowed: a load that "
                       "start_update was given before",
                       mb::InvalidArgument);
  CHECK(bias == std::vector<float>{0, 0});
}

TEST_CASE("the experts of a layer are 1 to the experts of the block") {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, mb::LossFreeBias{}};
  Counts load{1, 2, 3, 4};
  std::vector<float> bias{0, 0, 0, 0};
  for (const std::int32_t wrong : {0, 3, -1}) {
    const std::int32_t experts[] = {2, wrong};
    mb::LoadRef block{load.data(), 2, 2};
    block.experts_of_layer = experts;
    CHECK_THROWS_AS(router.update(mb::BiasRef{bias.data(), 2, 2}, block, {}, mb::Host{}), mb::InvalidArgument);
  }
  CHECK(load == Counts{1, 2, 3, 4});
}

TEST_CASE("global-batch losses of one router read the same window") {
  using Window = mb::GlobalBatchWindow;
  const mb::Router router{
      mb::Softmax{}, mb::TopK<rank_k>{},
      mb::Combine{mb::GlobalBatchLoss{.window = Window::step}, mb::GlobalBatchLoss{.window = Window::micro_batch}}};
  const mb::Load load(rank_experts);
  RankCall call(router, std::vector<float>(rank_experts, 0.0f), 0, 1);
  CHECK_THROWS_AS(call.forward({}, load.ref()), mb::InvalidArgument);
}

}  // namespace testing
