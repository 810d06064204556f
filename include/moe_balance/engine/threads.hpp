// Threads of the CPU engine: those of the caller's executor, or started for a call and joined before it returns. POSIX threads: std::thread cannot say where a thread starts, and
// <thread> would take a compiler 0.14 s in every file that includes the library.
#pragma once

#include <moe_balance/views.hpp>

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
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

/// Where a call's threads start: on another core than the calling thread's, if there are cores for all. Left alone, Linux often starts one on the
/// core of the thread that creates it, and moves it a whole call later. Once started they may run wherever the calling thread may.
class ThreadStart {
 public:
  explicit ThreadStart(int threads) {
    if (pthread_attr_init(&attributes_) != 0) return;
    is_valid_ = true;
#if MOEB_HAS_CPU_SETS
    const int own = sched_getcpu();
    if (own < 0 || sched_getaffinity(0, sizeof(cores_), &cores_) != 0 || CPU_COUNT(&cores_) < threads) return;
    cpu_set_t others = cores_;
    CPU_CLR(static_cast<std::size_t>(own), &others);
    is_apart_ = pthread_attr_setaffinity_np(&attributes_, sizeof(others), &others) == 0;
#else
    static_cast<void>(threads);
#endif
  }
  ThreadStart(const ThreadStart&) = delete;
  ThreadStart& operator=(const ThreadStart&) = delete;
  ~ThreadStart() {
    if (is_valid_) pthread_attr_destroy(&attributes_);
  }
  [[nodiscard]] const pthread_attr_t* attributes() const {
    return is_valid_ ? &attributes_ : nullptr;
  }

  /// Lets the thread that calls it, which has started, run on all cores.
  void release() const {
#if MOEB_HAS_CPU_SETS
    if (is_apart_) pthread_setaffinity_np(pthread_self(), sizeof(cores_), &cores_);
#endif
  }

 private:
  pthread_attr_t attributes_;
  bool is_valid_ = false;
#if MOEB_HAS_CPU_SETS
  cpu_set_t cores_;
  bool is_apart_ = false;
#endif
};
#undef MOEB_HAS_CPU_SETS

/// The threads of one call, a part each but for part 0; joined before this goes, also by an exception of the calling thread's part.
class PartThreads {
 public:
  PartThreads(int parts, const PartFunction& f) : start_(parts), threads_(static_cast<std::size_t>(parts - 1)) {
    for (; started_ < parts; ++started_) {
      Thread& thread = threads_[static_cast<std::size_t>(started_ - 1)];
      thread = {&f, &start_, started_, parts, {}};
      if (!start(thread, start_.attributes()) && !start(thread, nullptr)) break;
    }
  }
  PartThreads(const PartThreads&) = delete;
  PartThreads& operator=(const PartThreads&) = delete;
  ~PartThreads() {
    for (int part = 1; part < started_; ++part) pthread_join(threads_[static_cast<std::size_t>(part - 1)].id, nullptr);
  }
  /// The first part that the system refused a thread for.
  [[nodiscard]] int first_refused() const { return started_; }

 private:
  struct Thread {
    const PartFunction* f;
    const ThreadStart* start;
    int part;
    int parts;
    pthread_t id;
  };

  /// A sandbox may refuse a thread that comes with an affinity, and grant it without.
  [[nodiscard]] static bool start(Thread& thread, const pthread_attr_t* attributes) {
    return pthread_create(&thread.id, attributes, &PartThreads::run, &thread) == 0;
  }
  static void* run(void* thread) {
    const auto& own = *static_cast<const Thread*>(thread);
    own.start->release();
    (*own.f)(own.part, own.parts);
    return nullptr;
  }

  ThreadStart start_;
  std::vector<Thread> threads_;
  int started_ = 1;
};

/// Runs f(part, parts) on several threads; the calling thread takes part 0, and the parts of threads that could not be started.
inline void run_on_threads(int parts, const PartFunction& f) {
  const PartThreads others(parts, f);
  f(0, parts);
  for (int part = others.first_refused(); part < parts; ++part) f(part, parts);
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
