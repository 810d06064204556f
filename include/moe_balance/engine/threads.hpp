// Threads of the CPU engine: those of the caller's executor, or started for a call and joined before it returns. POSIX threads: std::thread cannot say where a thread starts, and
// <thread> would take a compiler 0.14 s in every file that includes the library.
#pragma once

#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/views.hpp>

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <vector>

#if defined(__GLIBC__) && defined(CPU_COUNT)
#define MOEB_HAS_CPU_SETS 1
#else
#define MOEB_HAS_CPU_SETS 0
#endif

MOEB_NAMESPACE_BEGIN

/// The cores that the calling thread may run on, 1 or more.
[[nodiscard]] inline int usable_cores() {
#if MOEB_HAS_CPU_SETS
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) == 0) return CPU_COUNT(&cores);
#endif
  return std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
}

/// f(part, parts) without f's type, so that starting threads is compiled once in a file and not once for every loop. Refers to f.
class PartFunction {
 public:
  template <class Function>
  explicit PartFunction(const Function& f)
      : function_(&f),
        call_([](const void* function, int part, int parts) { (*static_cast<const Function*>(function))(part, parts); }) {}
  void operator()(int part, int parts) const { call_(function_, part, parts); }

 private:
  const void* function_;
  void (*call_)(const void*, int, int);
};

/// Attributes of a thread that has stack enough for a part: the C library's own where they say more, but some say 128 KiB.
class ThreadAttributes {
 public:
  ThreadAttributes() {
    is_valid_ = pthread_attr_init(&attributes_) == 0;
    std::size_t own = 0;
    if (is_valid_ && pthread_attr_getstacksize(&attributes_, &own) == 0 && own < host_tuning.thread_stack_bytes) {
      pthread_attr_setstacksize(&attributes_, host_tuning.thread_stack_bytes);
    }
  }
  ThreadAttributes(const ThreadAttributes&) = delete;
  ThreadAttributes& operator=(const ThreadAttributes&) = delete;
  ~ThreadAttributes() {
    if (is_valid_) pthread_attr_destroy(&attributes_);
  }
  [[nodiscard]] pthread_attr_t* get() { return is_valid_ ? &attributes_ : nullptr; }

 private:
  pthread_attr_t attributes_;
  bool is_valid_;
};

/// Where a call's threads start: on another core than the calling thread's, if there are cores for all. Left alone, Linux often starts one on the
/// core of the thread that creates it, and moves it a whole call later. Once started they may run wherever the calling thread may.
class ThreadStart {
 public:
  explicit ThreadStart(int threads) {
#if MOEB_HAS_CPU_SETS
    const int own = sched_getcpu();
    if (own < 0 || sched_getaffinity(0, sizeof(cores_), &cores_) != 0 || CPU_COUNT(&cores_) < threads) return;
    cpu_set_t others = cores_;
    CPU_CLR(static_cast<std::size_t>(own), &others);
    is_apart_ = apart_.get() != nullptr && pthread_attr_setaffinity_np(apart_.get(), sizeof(others), &others) == 0;
#else
    static_cast<void>(threads);
#endif
  }
  ThreadStart(const ThreadStart&) = delete;
  ThreadStart& operator=(const ThreadStart&) = delete;

  /// Whether it has started. A sandbox may refuse a thread that comes with an affinity, and grant it without.
  [[nodiscard]] bool start(pthread_t& id, void* (*function)(void*), void* argument) {
#if MOEB_HAS_CPU_SETS
    if (is_apart_ && pthread_create(&id, apart_.get(), function, argument) == 0) return true;
#endif
    return pthread_create(&id, anywhere_.get(), function, argument) == 0;
  }

  /// Lets the thread that calls it, which has started, run on all cores.
  void release() const {
#if MOEB_HAS_CPU_SETS
    if (is_apart_) pthread_setaffinity_np(pthread_self(), sizeof(cores_), &cores_);
#endif
  }

 private:
  ThreadAttributes anywhere_;
#if MOEB_HAS_CPU_SETS
  ThreadAttributes apart_;
  cpu_set_t cores_;
  bool is_apart_ = false;
#endif
};
#undef MOEB_HAS_CPU_SETS

/// Part 0's neighbours, each on a thread; joined before this goes, also by an exception of the calling thread's part.
class PartThreads {
 public:
  PartThreads(int parts, const PartFunction& f) : start_(parts), threads_(static_cast<std::size_t>(parts - 1)) {
    for (Thread& thread : threads_) thread = {&f, &start_, static_cast<int>(&thread - threads_.data()) + 1, parts, {}, {}};
    while (started_ < threads_.size() && start_.start(threads_[started_].id, &PartThreads::run, &threads_[started_])) {
      ++started_;
    }
  }
  PartThreads(const PartThreads&) = delete;
  PartThreads& operator=(const PartThreads&) = delete;
  ~PartThreads() { join(); }

  /// Runs the parts that the system refused threads for, awaits the others, and rethrows what the first of those that threw has thrown.
  void finish() {
    for (std::size_t i = started_; i < threads_.size(); ++i) threads_[i].run_part();
    join();
    for (const Thread& thread : threads_) thread.rethrow();
  }

 private:
  struct Thread {
    const PartFunction* f;
    const ThreadStart* start;
    int part;
    int parts;
    pthread_t id;
    std::exception_ptr thrown;  ///< by a policy of the user's

    void run_part() {
#if defined(__cpp_exceptions)
      try {
        (*f)(part, parts);
      } catch (...) {
        thrown = std::current_exception();
      }
#else
      (*f)(part, parts);
#endif
    }
    void rethrow() const {
#if defined(__cpp_exceptions)
      if (thrown != nullptr) std::rethrow_exception(thrown);
#endif
    }
  };

  static void* run(void* thread) {
    auto& own = *static_cast<Thread*>(thread);
    own.start->release();
    own.run_part();
    return nullptr;
  }
  void join() {
    for (; joined_ < started_; ++joined_) pthread_join(threads_[joined_].id, nullptr);
  }

  ThreadStart start_;
  std::vector<Thread> threads_;
  std::size_t started_ = 0;  ///< the first ones
  std::size_t joined_ = 0;   ///< the first ones
};

/// Runs f(part, parts) on several threads; the calling thread takes part 0, and the parts of threads that could not be started. What a part throws leaves
/// when all have ended; of several, what the lowest has thrown.
inline void run_on_threads(int parts, const PartFunction& f) {
  PartThreads others(parts, f);
  f(0, parts);
  others.finish();
}

/// Runs f(part, parts) on the executor's threads.
inline void run_on_executor(const Executor& executor, int parts, const PartFunction& f) {
  struct Work {
    const PartFunction& f;
    int parts;
  };
  const Work work{f, parts};
  const Executor::Part part = [](const void* given, int index) {
    const auto& [function, count] = *static_cast<const Work*>(given);
    function(index, count);
  };
  executor.run(executor.context, parts, part, &work);
}

/// f(0, 1) on the calling thread, or f(part, parts) where `host` says.
template <class Function>
void run_parallel(const Host& host, int parts, const Function& f) {
  if (parts == 1)
    f(0, 1);
  else if (host.executor.run != nullptr)
    run_on_executor(host.executor, parts, PartFunction(f));
  else
    run_on_threads(parts, PartFunction(f));
}

MOEB_NAMESPACE_END
