// NcclSync and NcclGatherSync against a fake of NCCL and of the CUDA runtime (fake_nccl.hpp): what they compute whatever order streams run in, and
// every error path.
#include "fake_nccl.hpp"
#include "many_ranks.hpp"

#include <moe_balance/sync/nccl_gather.hpp>

#include <string>
#include <thread>
#include <type_traits>

// Router's calls on the fake's streams: each is one operation, done by the CPU engine.
namespace moe_balance {
inline namespace MOEB_VERSION_NAMESPACE {

template <>
struct Engine<cudaStream_t> {
  static constexpr bool serves_float64 = false;
  static constexpr int most_experts = max_experts;
  static constexpr Host host{.threads = 1};

  static void check(const char*, cudaStream_t) {}
  static void clear(void* data, std::size_t bytes, cudaStream_t stream) {
    enqueue(stream, [=] { Engine<Host>::clear(data, bytes, host); });
  }
  static void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    enqueue(stream, [=] { Engine<Host>::copy(to, from, bytes, host); });
  }
  template <class Real, class Problem>
  static void forward(const Problem& problem, const Totals& totals, cudaStream_t stream) {
    enqueue(stream, [=] { Engine<Host>::forward<Real>(problem, totals, host); });
  }
  template <class Real, class Problem>
  static void backward(const Problem& problem, cudaStream_t stream) {
    enqueue(stream, [=] { Engine<Host>::backward<Real>(problem, host); });
  }
  template <class Problem>
  static void loss(const Problem& problem, cudaStream_t stream) {
    enqueue(stream, [=] { Engine<Host>::loss(problem, host); });
  }
  template <class Problem>
  static void update(const Problem& problem, cudaStream_t stream) {
    enqueue(stream, [=] { Engine<Host>::update(problem, host); });
  }
  static void publish(std::int64_t* load, std::int64_t* counts, int experts, bool accumulate, cudaStream_t stream) {
    enqueue(stream, [=] { Engine<Host>::publish(load, counts, experts, accumulate, host); });
  }

 private:
  template <class Function>
  static void enqueue(cudaStream_t stream, const Function& f) {
    stream->operations.push_back([f] {
      f();
      return true;
    });
  }
};

}  // namespace MOEB_VERSION_NAMESPACE
}  // namespace moe_balance

namespace testing {

namespace {

struct FakeRankOrder {
  static cudaError_t sum(const std::int64_t* gathered, int ranks, std::int64_t n, std::int64_t* counts,
                         cudaStream_t stream) {
    const auto result = fake::result_of<cudaError_t>("sum");
    if (result != cudaSuccess) return result;
    stream->operations.push_back([=] {
      for (std::int64_t i = 0; i < n; ++i) counts[i] = mb::sum_in_rank_order(gathered, ranks, n, i);
      return true;
    });
    return cudaSuccess;
  }
};
using GatherSync = mb::BasicNcclSync<mb::NcclAllGather<FakeRankOrder>>;
constexpr mb::NcclGatherOptions gather_options{.largest_sum = 31};

template <class Sync>
Sync make(ncclComm& communicator, double seconds = 60) {
  if constexpr (std::is_same_v<Sync, GatherSync>)
    return Sync(&communicator, mb::NcclConnection::Seconds(seconds), gather_options);
  else
    return Sync(&communicator, mb::NcclConnection::Seconds(seconds));
}

/// The message of what f raises, of this type; empty where it raises nothing.
template <class Error, class Function>
std::string error_of(const Function& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

/// A group of one rank with a failure planned, and what is left behind.
struct Scene {
  fake::Group group{1};
  Counts counts{1, 2, 3};
  cudaStream_t stream = fake::new_stream();
  Scene() { fake::reset(); }
  ~Scene() {
    for (const auto& other : fake::all_streams) other->operations.clear();
    CHECK(fake::streams == 0);
    CHECK(fake::events == 0);
    CHECK(fake::allocations == 0);
    CHECK(fake::calls_after_abort == std::vector<std::string>{});
  }
  ncclComm& communicator() { return group.ranks[0]; }
};

}  // namespace

TEST_CASE_TEMPLATE("many ranks compute what one rank with the whole batch computes, in whatever order streams run", Sync,
                   mb::NcclSync, GatherSync) {
  constexpr int ranks = 4;
  const mb::Combine balancer{mb::GlobalBatchLoss{.coefficient = 0.5f}, mb::LossFreeBias{.update_rate = 0.25f}};
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    const Split split = ragged_split(seed, ranks, 3);
    const std::vector<float> logits = Random(seed).normals(static_cast<std::size_t>(split.total() * rank_experts));
    const mb::Router whole{mb::Softmax{}, mb::TopK<rank_k>{}, balancer};
    const mb::Bias whole_bias(rank_experts);
    const mb::Load whole_load(rank_experts);
    std::vector<Counts> want;
    for (int m = 0; m < 3; ++m) {
      RankCall call(whole, logits, split.first(m, 0), split.of_all(m));
      call.forward(whole_bias.ref(), whole_load.ref());
      want.push_back(call.global_counts());
    }
    whole.update(whole_bias.ref(), whole_load.ref(), {}, mb::Host{});

    Scene scene;
    fake::Group group(ranks);
    std::vector<std::vector<float>> losses, gradients;
    for (const bool later : {false, true}) {  // all at once in random order, or each call by itself
      group.collectives.clear();
      using Router = mb::Router<mb::Softmax, mb::TopK<rank_k>, std::remove_cv_t<decltype(balancer)>, Sync>;
      std::vector<std::deque<RankCall<Router, cudaStream_t>>> calls(ranks);
      std::vector<mb::Bias<>> biases;
      std::vector<mb::Load<>> loads;
      std::vector<Router> routers;
      std::vector<cudaStream_t> streams;
      for (std::size_t r = 0; r < ranks; ++r) {
        group.ranks[r].issued = 0;
        biases.emplace_back(rank_experts);
        loads.emplace_back(rank_experts);
        routers.push_back(Router{{}, {}, balancer, make<Sync>(group.ranks[r])});
        streams.push_back(fake::new_stream());
      }
      const auto each = [&](const auto& f) {
        for (std::size_t r = 0; r < ranks; ++r) f(r);
        if (later) CHECK(fake::run(seed));
      };
      for (int m = 0; m < 3; ++m) {
        each([&](std::size_t r) {
          const int rank = static_cast<int>(r);
          calls[r].emplace_back(routers[r], logits, split.first(m, rank), split.of(m, rank), streams[r]);
          calls[r].back().forward(biases[r].ref(), loads[r].ref());
        });
      }
      each([&](std::size_t r) { routers[r].start_update(loads[r].ref(), {}, streams[r]); });
      for (std::size_t m = 3; m-- > 0;) {
        each([&](std::size_t r) {
          calls[r][m].backward(1.0f);
          calls[r][m].loss();
        });
      }
      each([&](std::size_t r) { routers[r].finish_update(biases[r].ref(), loads[r].ref(), {}, streams[r]); });
      CHECK(fake::run(seed));

      losses.emplace_back();
      gradients.emplace_back();
      for (std::size_t r = 0; r < ranks; ++r) {
        for (std::size_t m = 0; m < 3; ++m) {
          CHECK(calls[r][m].global_counts() == want[m]);
          losses.back().push_back(calls[r][m].last_loss());
          const std::vector<float>& gradient = calls[r][m].last_gradient();
          gradients.back().insert(gradients.back().end(), gradient.begin(), gradient.end());
        }
        CHECK(std::equal(biases[r].data(), biases[r].data() + rank_experts, whole_bias.data()));
      }
    }
    CHECK(losses[0] == losses[1]);
    CHECK(gradients[0] == gradients[1]);
  }
}

TEST_CASE_TEMPLATE("a sum that nobody reads is given up in stream order", Sync, mb::NcclSync, GatherSync) {
  Scene scene;
  fake::Group group(2);
  const Sync first = make<Sync>(group.ranks[0]);
  const Sync second = make<Sync>(group.ranks[1]);
  Counts a{1}, b{10};
  cudaStream_t other = fake::new_stream();
  for (int i = 0; i < 3; ++i) {
    first.start(a.data(), 1, scene.stream);
    second.start(b.data(), 1, other);
  }
  CHECK(fake::events == 2);  // one for each rank, again and again
  CHECK(first.is_started(a.data()));
  first.finish(a.data(), scene.stream);
  CHECK(!first.is_started(a.data()));
  first.finish(a.data(), scene.stream);
  CHECK(fake::run(3));
  CHECK(a == Counts{44});
  CHECK(b == Counts{44});
}

TEST_CASE("a forward whose sum nobody has read may be followed by another with the same saved memory") {
  const std::vector<float> logits = Random(91).normals(2 * 20 * rank_experts);
  Counts want = oracle_counts(logits, 0, 40, {}, oracle::softmax());
  for (std::int64_t& count : want) count *= 3;
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    Scene scene;
    fake::Group group(2);
    using Router = mb::Router<mb::Softmax, mb::TopK<rank_k>, mb::GlobalBatchLoss, mb::NcclSync>;
    std::deque<RankCall<Router, cudaStream_t>> calls;
    std::vector<mb::Load<>> loads;
    for (int r = 0; r < 2; ++r) {
      loads.emplace_back(rank_experts);
      const Router router{{}, {}, {}, make<mb::NcclSync>(group.ranks[static_cast<std::size_t>(r)])};
      calls.emplace_back(router, logits, r * 20, 20, fake::new_stream());
      for (int i = 0; i < 3; ++i) calls.back().forward({}, loads.back().ref());
      calls.back().loss();
    }
    CHECK(fake::run(seed));
    for (const auto& call : calls) CHECK(call.global_counts() == want);
  }
}

TEST_CASE("NcclGatherSync keeps the counts of every rank") {
  Scene scene;
  fake::Group group(3);
  std::vector<GatherSync> syncs;
  std::vector<Counts> counts{{1, 2, 3}, {10, 20, 30}, {100, 200, 300}};
  for (std::size_t r = 0; r < 3; ++r) syncs.push_back(make<GatherSync>(group.ranks[r]));
  CHECK(syncs[0].exchange().counts_of_ranks() == nullptr);
  for (std::size_t r = 0; r < 3; ++r) syncs[r].start(counts[r].data(), 3, scene.stream);
  CHECK(fake::run(4));
  for (std::size_t r = 0; r < 3; ++r) CHECK(counts[r] == Counts{111, 222, 333});
  for (const GatherSync& sync : syncs) {
    const std::int64_t* of_ranks = sync.exchange().counts_of_ranks();
    CHECK(Counts(of_ranks, of_ranks + 9) == Counts{1, 2, 3, 10, 20, 30, 100, 200, 300});
  }
  const std::int64_t* const earlier = syncs[0].exchange().counts_of_ranks();
  std::vector<Counts> next(3, Counts(31, 5));  // the next sum leaves those of the one before as they are
  for (std::size_t r = 0; r < 3; ++r) syncs[r].start(next[r].data(), 31, scene.stream);
  CHECK(fake::run(5));
  CHECK(next[0] == Counts(31, 15));
  CHECK(Counts(earlier, earlier + 9) == Counts{1, 2, 3, 10, 20, 30, 100, 200, 300});
  const std::int64_t* const later = syncs[0].exchange().counts_of_ranks();
  CHECK(Counts(later, later + 93) == Counts(93, 5));
  CHECK_THROWS_AS(syncs[0].start(counts[0].data(), 32, scene.stream), mb::InvalidArgument);
}

TEST_CASE(
    "NcclGatherSync registers its memory where there are other ranks, and takes it back unless the communicator is gone") {
  for (const int ranks : {1, 2}) {
    for (const bool aborts : {false, true}) {
      CAPTURE(ranks);
      CAPTURE(aborts);
      Scene scene;
      fake::Group group(ranks);
      {
        const GatherSync sync = make<GatherSync>(group.ranks[0]);
        if (aborts) sync.abort("a rank died");
      }
      CHECK(fake::calls["ncclCommWindowRegister"] == (ranks > 1 ? 1 : 0));
      CHECK(fake::calls["ncclCommWindowDeregister"] == (ranks > 1 && !aborts ? 1 : 0));
    }
  }
}

TEST_CASE("construction: what is no communicator, no timeout, no device, or another device is refused") {
  static_assert(!std::is_constructible_v<mb::NcclSync, std::nullptr_t>);
  static_assert(!std::is_constructible_v<GatherSync, std::nullptr_t, mb::NcclSync::Seconds, mb::NcclGatherOptions>);
  static_assert(std::is_constructible_v<mb::NcclSync, ncclComm_t>);
  Scene scene;
  const auto construct = [&] { (void)mb::NcclSync(&scene.communicator()); };
  const ncclComm_t null = nullptr;
  CHECK(contains(error_of<mb::InvalidArgument>([&] { (void)mb::NcclSync(null); }), "communicator is null"));
  CHECK(contains(error_of<mb::InvalidArgument>([&] { (void)make<mb::NcclSync>(scene.communicator(), 0); }), "timeout is 0"));
  CHECK(contains(error_of<mb::InvalidArgument>(
                     [&] { (void)GatherSync(&scene.communicator(), mb::NcclSync::Seconds(1), mb::NcclGatherOptions{}); }),
                 "options.largest_sum is 0"));
  CHECK(contains(error_of<mb::InvalidArgument>([&] {
                   (void)GatherSync(&scene.communicator(), mb::NcclSync::Seconds(1),
                                    mb::NcclGatherOptions{.largest_sum = 1, .kept = 0});
                 }),
                 "options.kept is 0"));
  fake::current_device = 1;
  CHECK(contains(error_of<mb::InvalidArgument>(construct), "the current device is 1; allowed: 0, the communicator's"));
  fake::current_device = 0;
  fake::devices = 0;
  CHECK(contains(error_of<mb::CudaError>(construct), "finding the current device: cudaErrorNoDevice"));
  CHECK(fake::calls["cudaGetLastError"] == 1);
  fake::devices = 1;
  for (const char* function : {"ncclCommCuDevice", "ncclCommUserRank", "ncclCommCount"}) {
    fake::results[function] = {ncclInvalidArgument};
    CHECK(contains(error_of<mb::SyncError>(construct), std::string(function) + ": an NCCL error (of the fake)"));
  }
  CHECK(fake::calls["ncclCommAbort"] == 0);
}

TEST_CASE("construction: a stream or memory that cannot be had is an error, and nothing is left behind") {
  for (const char* function : {"cudaHostAlloc", "cudaHostGetDevicePointer"}) {
    Scene scene;
    fake::results[function] = {cudaErrorMemoryAllocation};
    CHECK(contains(error_of<mb::CudaError>([&] { (void)make<mb::NcclSync>(scene.communicator()); }),
                   "cudaErrorOfTheFake: made to fail"));
  }
  for (const char* function : {"cudaDeviceGetStreamPriorityRange", "cudaStreamCreateWithPriority"}) {
    Scene scene;
    fake::results[function] = {cudaErrorMemoryAllocation};
    CHECK(contains(error_of<mb::CudaError>([&] { (void)make<GatherSync>(scene.communicator()); }),
                   std::string(function) + " failed: cudaErrorOfTheFake: made to fail"));
  }
  for (const char* function : {"ncclMemAlloc", "ncclCommWindowRegister"}) {
    Scene scene;
    fake::Group group(2);
    fake::results[function] = {ncclSystemError};
    CHECK(contains(error_of<mb::SyncError>([&] { (void)make<GatherSync>(group.ranks[1]); }),
                   std::string(function) + " failed: unhandled system error"));
  }
}

/// Runs `f` with a failure planned: it raises Error with `text`, the communicator is aborted once, and every later call raises SyncError.
template <class Sync, class Error, class Function>
void check_failure(const std::string& function, int result, const std::string& text, const Function& f) {
  CAPTURE(function);
  Scene scene;
  const Sync sync = make<Sync>(scene.communicator(), 0.05);
  fake::results[function] = {result};
  const std::string error = error_of<Error>([&] { f(sync, scene); });
  CHECK(contains(error, text));
  CHECK(contains(error, "rank 0 of 1"));
  CHECK(contains(error, "; the communicator was aborted"));
  for (const auto& later :
       {error_of<mb::SyncError>([&] { sync.start(scene.counts.data(), 3, scene.stream); }),
        error_of<mb::SyncError>([&] { sync.finish(scene.counts.data(), scene.stream); }),
        error_of<mb::SyncError>([&] { sync.wait(scene.stream); }), error_of<mb::SyncError>([&] { sync.check(); })}) {
    CHECK(contains(later, "finds its communicator aborted: " + error));
  }
  CHECK(fake::calls["ncclCommAbort"] == 1);
}

template <class Sync>
void start(const Sync& sync, Scene& scene) {
  sync.start(scene.counts.data(), 3, scene.stream);
}
template <class Sync>
void start_and_finish(const Sync& sync, Scene& scene) {
  start(sync, scene);
  sync.finish(scene.counts.data(), scene.stream);
}
template <class Sync>
void start_and_wait(const Sync& sync, Scene& scene) {
  start_and_finish(sync, scene);
  sync.wait(scene.stream);
}

TEST_CASE_TEMPLATE("an error of any call aborts the communicator once, says so, and is remembered", Sync, mb::NcclSync,
                   GatherSync) {
  constexpr const char* failed = " failed: cudaErrorOfTheFake: made to fail";
  for (const char* function : {"cudaEventCreateWithFlags", "cudaEventRecord", "cudaStreamWaitEvent"}) {
    check_failure<Sync, mb::CudaError>(function, cudaErrorLaunchFailure,
                                       std::string("NcclSync::start: rank 0 of 1 ") + function + failed, start<Sync>);
  }
  check_failure<Sync, mb::CudaError>("cudaStreamQuery", cudaErrorLaunchFailure,
                                     std::string("wait: rank 0 of 1 the stream") + failed, start_and_wait<Sync>);
  check_failure<Sync, mb::SyncError>("ncclCommGetAsyncError", ncclInternalError, "ncclCommGetAsyncError failed",
                                     start<Sync>);
  check_failure<Sync, mb::SyncError>("asynchronous state", ncclSystemError,
                                     "start: rank 0 of 1 finds an asynchronous error: unhandled system error (of the fake)",
                                     start<Sync>);
  check_failure<Sync, mb::SyncError>("asynchronous state", ncclSystemError, "check: rank 0 of 1 finds an asynchronous error",
                                     [](const Sync& sync, Scene&) { sync.check(); });
  const char* collective = std::is_same_v<Sync, GatherSync> ? "ncclAllGather" : "ncclAllReduce";
  check_failure<Sync, mb::SyncError>(collective, ncclSystemError,
                                     std::string(collective) + " failed: unhandled system error", start<Sync>);
}

TEST_CASE("NcclGatherSync: a copy or a kernel that fails aborts, too") {
  check_failure<GatherSync, mb::CudaError>("cudaMemcpyAsync", cudaErrorLaunchFailure, "copying counts failed",
                                           start<GatherSync>);
  check_failure<GatherSync, mb::CudaError>("sum", cudaErrorLaunchFailure, "summing counts failed", start<GatherSync>);
}

TEST_CASE("an asynchronous error is found by finish and by wait, wherever it happens") {
  for (int polls = 1; polls <= 3; ++polls) {
    CAPTURE(polls);
    Scene scene;
    const mb::NcclSync sync = make<mb::NcclSync>(scene.communicator());
    fake::results["asynchronous state"] = std::deque<int>(static_cast<std::size_t>(polls), ncclSuccess);
    fake::results["asynchronous state"].push_back(ncclRemoteError);
    const std::string error = error_of<mb::SyncError>([&] { start_and_wait(sync, scene); });
    CHECK(contains(error, polls == 1 ? "NcclSync::finish:" : "NcclSync::wait:"));
    CHECK(fake::calls["ncclCommAbort"] == 1);
  }
}

TEST_CASE("a communicator that does not block is waited for: until it is done, fails, or the time is up") {
  const std::size_t polls = 20;
  {
    Scene scene;
    const mb::NcclSync sync = make<mb::NcclSync>(scene.communicator());
    fake::results["ncclAllReduce"] = {ncclInProgress};
    fake::results["asynchronous state"] = std::deque<int>(polls, ncclInProgress);
    start_and_wait(sync, scene);
    CHECK(scene.counts == Counts{1, 2, 3});
    CHECK(fake::calls["asynchronous state"] == static_cast<int>(polls));
  }
  {
    Scene scene;
    const mb::NcclSync sync = make<mb::NcclSync>(scene.communicator());
    fake::results["ncclAllReduce"] = {ncclInProgress};
    fake::results["asynchronous state"] = {ncclSuccess, ncclInProgress, ncclSystemError};
    CHECK(contains(error_of<mb::SyncError>([&] { start(sync, scene); }), "ncclAllReduce failed: unhandled system error"));
  }
  Scene scene;
  const mb::NcclSync sync = make<mb::NcclSync>(scene.communicator(), 0.05);
  fake::results["ncclAllReduce"] = {ncclInProgress};
  scene.communicator().asynchronous = ncclInProgress;
  const std::string error = error_of<mb::SyncError>([&] { start(sync, scene); });
  CHECK(contains(error, "NcclSync::start: rank 0 of 1 waited "));
  CHECK(contains(error, " s for ncclAllReduce"));
}

TEST_CASE("a rank that leaves: wait on another rank ends in an error within the timeout, and no bias has moved") {
  Scene scene;
  fake::Group group(2);
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, mb::LossFreeBias{}, make<mb::NcclSync>(group.ranks[1], 0.2)};
  Counts load{1, 2, 3};
  std::vector<float> bias{4, 5, 6};
  router.update(mb::BiasRef{bias.data(), 3}, mb::LoadRef{load.data(), 3}, {}, scene.stream);
  const auto begin = std::chrono::steady_clock::now();
  const std::string error = error_of<mb::SyncError>([&] { router.sync.wait(scene.stream); });
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(10));
  CHECK(contains(error, "NcclSync::wait: rank 1 of 2 waited "));
  CHECK(contains(error, "not all ranks have joined; the communicator was aborted"));
  CHECK(group.ranks[1].aborted);
  CHECK(fake::run(5));  // the abort lets the stream go on, and the update behind the sum runs
  CHECK(bias == std::vector<float>{4, 5, 6});
  CHECK(load == Counts{1, 2, 3});
}

TEST_CASE("a user who aborts does it through the Sync: no bias moves, and later calls say why") {
  Scene scene;
  fake::Group group(2);
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, mb::LossFreeBias{}, make<mb::NcclSync>(group.ranks[0])};
  Counts load{1, 2, 3};
  std::vector<float> bias{4, 5, 6};
  router.update(mb::BiasRef{bias.data(), 3}, mb::LoadRef{load.data(), 3}, {}, scene.stream);
  CHECK(!fake::run(1));
  router.sync.abort("the watchdog saw a rank die");
  router.sync.abort("and once more");
  CHECK(fake::calls["ncclCommAbort"] == 1);
  CHECK(fake::run(2));
  CHECK(bias == std::vector<float>{4, 5, 6});
  CHECK(contains(error_of<mb::SyncError>([&] { router.sync.wait(scene.stream); }),
                 "NcclSync::abort: rank 0 of 2 gives up: the watchdog saw a rank die; the communicator was aborted"));
}

TEST_CASE("another thread may abort while this one waits") {
  Scene scene;
  fake::Group group(2);
  const mb::NcclSync sync = make<mb::NcclSync>(group.ranks[0]);
  sync.start(scene.counts.data(), 3, scene.stream);
  sync.finish(scene.counts.data(), scene.stream);
  std::thread watchdog([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    sync.abort("a rank died");
  });
  CHECK(contains(error_of<mb::SyncError>([&] { sync.wait(scene.stream); }),
                 "wait: rank 0 of 2 finds its communicator aborted"));
  watchdog.join();
  CHECK(fake::calls["ncclCommAbort"] == 1);
}

TEST_CASE_TEMPLATE("a thread that aborts lets a call of NCCL of another thread end first", Sync, mb::NcclSync, GatherSync) {
  Scene scene;
  const Sync sync = make<Sync>(scene.communicator());
  std::atomic<bool> has_begun = false;
  fake::in_collective = [&] {
    has_begun = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  };
  std::thread watchdog([&] {
    while (!has_begun) std::this_thread::yield();
    sync.abort("a rank died");
  });
  start(sync, scene);
  watchdog.join();
  CHECK(fake::calls["ncclCommAbort"] == 1);
  CHECK(contains(error_of<mb::SyncError>([&] { start(sync, scene); }), "finds its communicator aborted"));
}

TEST_CASE("a call of NCCL that blocks for ever is aborted when the timeout is over, and says why") {
  Scene scene;
  const mb::NcclSync sync = make<mb::NcclSync>(scene.communicator(), 0.05);
  std::atomic<bool> has_begun = false;
  fake::in_collective = [&] {
    has_begun = true;
    while (!scene.communicator().aborted) std::this_thread::yield();
  };
  std::thread watchdog([&] {
    while (!has_begun) std::this_thread::yield();
    sync.abort("a rank died");
  });
  CHECK(contains(
      error_of<mb::SyncError>([&] { start(sync, scene); }),
      "start: rank 0 of 1 finds its communicator aborted: moe_balance: NcclSync::abort: rank 0 of 1 gives up: a rank died"));
  watchdog.join();
  CHECK(fake::calls_after_abort == std::vector<std::string>{"a collective"});
  fake::calls_after_abort.clear();
}

TEST_CASE("an abort that fails is said, too") {
  Scene scene;
  const mb::NcclSync sync = make<mb::NcclSync>(scene.communicator());
  fake::results["ncclCommAbort"] = {ncclInternalError};
  fake::results["ncclAllReduce"] = {ncclSystemError};
  CHECK(contains(error_of<mb::SyncError>([&] { start(sync, scene); }), "; aborting the communicator failed: an NCCL error"));
}

}  // namespace testing
