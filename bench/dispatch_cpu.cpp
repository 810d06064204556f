// The permutation, by itself and fused with routing, what moves hidden states, noise, the loads of noisy top-k gating and Sinkhorn's scales, on the CPU.
#include "cpu_timing.hpp"
#include "dispatch_step.hpp"
#include "logits_step.hpp"

namespace microbenchmark {

namespace {

/// Registers one problem, whose calls a `StepOf` makes, on one thread and on all cores.
template <class StepOf, class ProblemT>
void add_problem(const ProblemT& problem, bool by_default) {
  for (const int threads : {1, 0}) {
    add_host_case(problem.name() + name_of_threads(threads), by_default, [=](benchmark::State& state) {
      time_on_host(state, problem.bytes(), problem.tokens, threads,
                   [&](const mb::Host& host) { return StepOf(problem, 1, host); });
    });
  }
}

bool add_all() {
  for (const int experts : {8, 64, 256, 512}) {
    for (const std::int64_t tokens : {64, 8192, 32768}) {
      const bool typical = experts == 256 && tokens == 8192;
      for (const LogitsWork work : all_logits_work) {
        add_problem<LogitsStep<mb::Host>>(LogitsProblem{work, tokens, experts}, typical);
      }
      for (const DispatchWork work : all_dispatch_work) {
        DispatchProblem problem{work, tokens, experts};
        if (problem.moves_states()) problem.hidden = 512;
        add_problem<DispatchStep<mb::Host>>(problem, typical);
      }
    }
  }
  return true;
}

const bool added = add_all();

}  // namespace

}  // namespace microbenchmark
