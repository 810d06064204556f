// The benchmarks of a program. They are collected before main and registered with Google Benchmark by benchmark_main.cpp: the default
// ones, or, when a filter asks, any of the full product of shapes.
#pragma once

#include "shapes.hpp"

#include <benchmark/benchmark.h>

#include <cmath>
#include <exception>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace microbenchmark {

/// One benchmark; `configure` sets what Google Benchmark should know about it (its timer, its iterations).
struct Case {
  std::string name;
  bool by_default = false;
  std::function<void(benchmark::State&)> run;
  void (*configure)(benchmark::internal::Benchmark*) = nullptr;
};

/// Where the benchmarks of this program run: its description for the report, or why they cannot run here.
struct Machine {
  std::string unavailable;
  std::map<std::string, std::string> description;
};

struct Registry {
  std::vector<Case> cases;
  Machine (*machine)() = nullptr;
};

[[nodiscard]] inline Registry& registry() {
  static Registry instance;
  return instance;
}

/// Runs `body`; what it throws becomes the benchmark's error.
template <class Body>
void guarded(benchmark::State& state, const Body& body) {
  try {
    body();
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}

/// The problems of one router: calls f(problem, by_default). `typical` are the numbers of experts that run by default.
template <class Router, class Function>
void for_each_problem(const Router& router, Work work, const std::vector<int>& typical,
                      const std::vector<std::int64_t>& default_tokens, const Function& f) {
  for (const int experts : expert_counts) {
    if (!serves(router, experts)) continue;
    const bool is_typical = std::find(typical.begin(), typical.end(), experts) != typical.end();
    if (work == Work::update) {
      f(Problem{work, update_layers, experts}, is_typical);
      continue;
    }
    for (const mb::DataType type : element_types) {
      for (const std::int64_t tokens : token_counts) {
        const bool is_default = std::find(default_tokens.begin(), default_tokens.end(), tokens) != default_tokens.end();
        f(Problem{work, tokens, experts, type}, is_typical && is_default);
      }
    }
  }
}

/// The element at share `p` of the ascending `values`.
[[nodiscard]] inline double quantile(const std::vector<double>& values, double p) {
  return values[static_cast<std::size_t>(std::lround(p * static_cast<double>(values.size() - 1)))];
}

}  // namespace microbenchmark
