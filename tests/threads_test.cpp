// The CPU engine's threads: every part runs once, whatever the system grants; they start on other cores than the caller's and may then run on all;
// as many are used as the caller may have cores; they have stack enough; and what parts throw leaves the call. The program's own pthread_create stands before the C library's, to refuse and to look.
#include <moe_balance/engine/threads.hpp>

#include <doctest/doctest.h>

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

namespace mb = moe_balance;

int threads_granted = 1 << 30;
int threads_started = 0;
bool refuses_affinity = false;
int starts_on_own_core = 0;   ///< threads that may start on the core of the thread that creates them
std::size_t least_stack = 0;  ///< of the threads that were started

}  // namespace

extern "C" int pthread_create(pthread_t* id, const pthread_attr_t* attributes, void* (*function)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (threads_started == threads_granted) return EAGAIN;
  cpu_set_t cores;
  const bool is_told = attributes != nullptr && pthread_attr_getaffinity_np(attributes, sizeof(cores), &cores) == 0;
  const bool apart = is_told && !CPU_ISSET(static_cast<std::size_t>(sched_getcpu()), &cores);
  if (apart && refuses_affinity) return EPERM;
  ++threads_started;
  if (!apart) ++starts_on_own_core;
  std::size_t stack = 0;
  if (attributes != nullptr) pthread_attr_getstacksize(attributes, &stack);
  least_stack = std::min(least_stack, stack);
  return create(id, attributes, function, argument);
}

namespace {

/// How often each part ran, of a call with `parts` parts for which the system grants `granted` threads; starts_on_own_core is counted anew.
std::vector<int> runs_of(int parts, int granted) {
  threads_granted = granted;
  threads_started = 0;
  starts_on_own_core = 0;
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(parts));
  std::atomic<int> wrong_totals{0};
  mb::run_parallel(mb::Host{}, parts, [&](int part, int all) {
    ++runs[static_cast<std::size_t>(part)];
    if (all != parts) ++wrong_totals;
  });
  CHECK(wrong_totals == 0);
  return {runs.begin(), runs.end()};
}

/// The calling thread on `count` of its cores, until the end of the scope.
class OnCores {
 public:
  explicit OnCores(int count) {
    REQUIRE(sched_getaffinity(0, sizeof(before_), &before_) == 0);
    cpu_set_t some;
    CPU_ZERO(&some);
    for (std::size_t core = 0; core < CPU_SETSIZE && CPU_COUNT(&some) < count; ++core) {
      if (CPU_ISSET(core, &before_)) CPU_SET(core, &some);
    }
    REQUIRE(sched_setaffinity(0, sizeof(some), &some) == 0);
  }
  OnCores(const OnCores&) = delete;
  OnCores& operator=(const OnCores&) = delete;
  ~OnCores() { sched_setaffinity(0, sizeof(before_), &before_); }

 private:
  cpu_set_t before_;
};

}  // namespace

TEST_CASE("every part runs once, on as many threads as there are parts") {
  for (const int parts : {1, 2, 3, 7, 64}) {
    CAPTURE(parts);
    CHECK(runs_of(parts, 1 << 30) == std::vector<int>(static_cast<std::size_t>(parts), 1));
    CHECK(threads_started == parts - 1);
  }
}

TEST_CASE("parts of threads that the system refuses run on the calling thread") {
  for (const int granted : {0, 1, 5}) {
    CAPTURE(granted);
    CHECK(runs_of(7, granted) == std::vector<int>(7, 1));
    CHECK(threads_started == granted);
  }
}

TEST_CASE("one part runs on the calling thread") {
  const pthread_t caller = pthread_self();
  bool same = false;
  mb::run_parallel(mb::Host{}, 1, [&](int, int) { same = pthread_equal(caller, pthread_self()) != 0; });
  CHECK(same);
}

TEST_CASE("an exception of the calling thread's part leaves when the other parts have ended") {
  std::atomic<int> ended{0};
  const auto throws_in_part_0 = [&](int part, int) {
    if (part == 0) throw std::runtime_error("part 0");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    ++ended;
  };
  threads_granted = 1 << 30;
  CHECK_THROWS_WITH(mb::run_parallel(mb::Host{}, 4, throws_in_part_0), "part 0");
  CHECK(ended == 3);
}

TEST_CASE(
    "of several parts' exceptions the lowest part's leaves when all parts have ended, also those of threads that were "
    "refused") {
  for (const int granted : {0, 1, 2, 3, 1 << 30}) {
    CAPTURE(granted);
    threads_granted = granted;
    threads_started = 0;
    std::atomic<int> ended{0};
    const auto throws = [&](int part, int) {
      if (part == 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      ++ended;
      if (part >= 2) throw std::runtime_error("part " + std::to_string(part));
    };
    CHECK_THROWS_WITH(mb::run_parallel(mb::Host{}, 6, throws), "part 2");
    CHECK(ended == 6);
  }
  threads_granted = 1 << 30;
}

TEST_CASE("a part may throw anything, and its exception stays what it was") {
  CHECK_THROWS_AS(mb::run_parallel(mb::Host{}, 3,
                                   [](int part, int) {
                                     if (part == 1) throw 7;
                                   }),
                  int);
}

namespace {

/// The calling program's default for threads, until the end of the scope.
class DefaultStack {
 public:
  explicit DefaultStack(std::size_t bytes) {
    pthread_getattr_default_np(&before_);
    pthread_attr_t attributes;
    pthread_getattr_default_np(&attributes);
    pthread_attr_setstacksize(&attributes, bytes);
    REQUIRE(pthread_setattr_default_np(&attributes) == 0);
    pthread_attr_destroy(&attributes);
  }
  DefaultStack(const DefaultStack&) = delete;
  DefaultStack& operator=(const DefaultStack&) = delete;
  ~DefaultStack() {
    pthread_setattr_default_np(&before_);
    pthread_attr_destroy(&before_);
  }

 private:
  pthread_attr_t before_;
};

}  // namespace

TEST_CASE(
    "threads have stack enough where the C library gives little, as musl's 128 KiB, and what it gives where that is more") {
  for (const bool refuses : {false, true}) {
    refuses_affinity = refuses;
    const DefaultStack musl(std::size_t{128} << 10);
    least_stack = std::size_t{1} << 40;
    CHECK(runs_of(3, 1 << 30) == std::vector<int>(3, 1));
    CHECK(least_stack == std::size_t{1} << 20);

    const DefaultStack large(std::size_t{16} << 20);
    least_stack = std::size_t{1} << 40;
    CHECK(runs_of(3, 1 << 30) == std::vector<int>(3, 1));
    CHECK(least_stack == std::size_t{16} << 20);
  }
  refuses_affinity = false;
}

TEST_CASE("usable_cores counts the cores that the calling thread may run on") {
  const int all = mb::usable_cores();
  CHECK(all >= 1);
  const OnCores one(1);
  CHECK(mb::usable_cores() == 1);
}

TEST_CASE("threads start on other cores than the caller's, where there are enough, and may then run on all of them") {
  const int cores = mb::usable_cores();
  if (cores < 2) {
    MESSAGE("one core: nothing to see");
    return;
  }
  CHECK(runs_of(cores, 1 << 30) == std::vector<int>(static_cast<std::size_t>(cores), 1));
  CHECK(starts_on_own_core == 0);
  std::atomic<int> fewer{0};
  mb::run_parallel(mb::Host{}, cores, [&](int, int) { fewer += mb::usable_cores() != cores ? 1 : 0; });
  CHECK(fewer == 0);

  SUBCASE("a sandbox that refuses threads with an affinity: threads without") {
    refuses_affinity = true;
    CHECK(runs_of(cores, 1 << 30) == std::vector<int>(static_cast<std::size_t>(cores), 1));
    refuses_affinity = false;
    CHECK(threads_started == cores - 1);
    CHECK(starts_on_own_core == cores - 1);
  }
  SUBCASE("more threads than cores: some on the caller's, too") {
    runs_of(cores + 1, 1 << 30);
    CHECK(starts_on_own_core == cores);
  }
  SUBCASE("a caller that has one core") {
    const OnCores one(1);
    CHECK(runs_of(2, 1 << 30) == std::vector<int>(2, 1));
    CHECK(starts_on_own_core == 1);
  }
}
