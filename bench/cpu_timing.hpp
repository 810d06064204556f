// Times a router's calls on the CPU beside memcpy of as many bytes, in the same run.
#pragma once

#include "registry.hpp"
#include "step.hpp"

#include <moe_balance/engine/threads.hpp>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace microbenchmark {

[[nodiscard]] inline int cores() {
  return moe_balance::usable_cores();
}

/// Bytes per second, reads and writes counted, at which `threads` threads together copy memory when each moves its part of `bytes`
/// over and over: the median of five measurements of at least 4 ms.
[[nodiscard]] inline double measure_memcpy(double bytes, int threads) {
  const std::size_t part = std::max<std::size_t>(64, static_cast<std::size_t>(bytes / 2 / threads));
  std::vector<double> rates(static_cast<std::size_t>(threads) * 5);
  const auto copy_part = [&](std::size_t thread) {
    const mb::Buffer<std::byte> from(part), to(part);
    for (std::size_t measurement = 0; measurement < 5; ++measurement) {
      std::int64_t copies = 0;
      double seconds = 0;
      const auto start = std::chrono::steady_clock::now();
      do {
        std::memcpy(to.data(), from.data(), part);
        benchmark::ClobberMemory();
        ++copies;
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      } while (seconds < 4e-3);
      rates[measurement * static_cast<std::size_t>(threads) + thread] =
          2 * static_cast<double>(part) * static_cast<double>(copies) / seconds;
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(copy_part, static_cast<std::size_t>(thread));
  copy_part(0);
  for (std::thread& other : others) other.join();
  std::vector<double> sums;
  for (std::size_t measurement = 0; measurement < 5; ++measurement) {
    double sum = 0;
    for (int thread = 0; thread < threads; ++thread) {
      sum += rates[measurement * static_cast<std::size_t>(threads) + static_cast<std::size_t>(thread)];
    }
    sums.push_back(sum);
  }
  std::sort(sums.begin(), sums.end());
  return sums[2];
}

/// measure_memcpy, once per run, size and number of threads.
[[nodiscard]] inline double memcpy_rate(double bytes, int threads) {
  static std::map<std::pair<double, int>, double> known;
  const auto found = known.find({bytes, threads});
  if (found != known.end()) return found->second;
  return known[{bytes, threads}] = measure_memcpy(bytes, threads);
}

/// Times step.run(host) of what `make_step(host)` makes; each call moves `bytes` and serves `tokens`. `threads`: 0 for all cores.
template <class MakeStep>
void time_on_host(benchmark::State& state, double bytes, std::int64_t tokens, int threads, const MakeStep& make_step) {
  guarded(state, [&] {
    const mb::Host host{.threads = threads};
    const auto step = make_step(host);
    const auto start = std::chrono::steady_clock::now();
    for (auto _ : state) step.run(host);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const auto calls = static_cast<double>(state.iterations());
    state.SetItemsProcessed(state.iterations() * tokens);
    state.SetBytesProcessed(static_cast<std::int64_t>(calls * bytes));
    const double copy = memcpy_rate(bytes, threads == 0 ? cores() : threads);
    state.counters["copy_bytes_per_second"] = copy;
    state.counters["copy_percent"] = 100 * calls * bytes / seconds / copy;
  });
}

/// The processor, as /proc/cpuinfo names it.
[[nodiscard]] inline Machine host_machine() {
  std::ifstream file("/proc/cpuinfo");
  std::string cpu = "unknown";
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) {
      cpu = line.substr(line.find(':') + 2);
      break;
    }
  }
  return {"", {{"cpu", cpu}, {"cores", std::to_string(cores())}}};
}

/// "/one_thread" or "/all_cores".
[[nodiscard]] inline std::string name_of_threads(int threads) {
  return threads == 1 ? "/one_thread" : "/all_cores";
}

/// Registers a benchmark of the CPU.
template <class Run>
void add_host_case(const std::string& name, bool by_default, const Run& run) {
  registry().machine = host_machine;
  registry().cases.push_back(
      {name, by_default, run, [](benchmark::internal::Benchmark* it) { it->UseRealTime()->MinTime(0.2); }});
}

/// Registers one kind of work of a router on the CPU, on one thread and on all cores.
template <class Router>
void add_on_host(const std::string& name, const Router& router, Work work, const std::vector<int>& typical) {
  for_each_problem(router, work, typical, {64, 8192}, [&](const Problem& problem, bool by_default) {
    for (const int threads : {1, 0}) {
      if (work == Work::update && threads == 0) continue;
      add_host_case(name_of(problem, name) + (work == Work::update ? "" : name_of_threads(threads)),
                    by_default && problem.type == mb::DataType::float32, [=](benchmark::State& state) {
                      time_on_host(state, bytes_of(problem, Router::k, router.load_bins()), problem.tokens, threads,
                                   [&](const mb::Host& host) { return Step<Router, mb::Host>(router, problem, 1, host); });
                    });
    }
  });
}

}  // namespace microbenchmark
