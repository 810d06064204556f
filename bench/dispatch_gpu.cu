// The permutation, by itself and fused with routing, what moves hidden states, noise, the loads of noisy top-k gating and Sinkhorn's scales, on the GPU.
#include "dispatch_step.hpp"
#include "gpu_timing.cuh"
#include "logits_step.hpp"

namespace microbenchmark {

namespace {

/// Registers one problem, whose calls a `StepOf` makes, warm and cold, and in a CUDA graph where calls are short.
template <class StepOf, class ProblemT>
void add_problem(const ProblemT& problem, bool by_default) {
  const auto add_one = [&](Cache cache, Launch launch) {
    add_case(problem.name(), by_default, cache, launch, [=](benchmark::State& state) {
      time_steps(state, problem.bytes(), problem.tokens, cache, launch,
                 [&](std::uint64_t seed, cudaStream_t stream) { return StepOf(problem, seed, stream); });
    });
  };
  if (problem.tokens <= decode_tokens) add_one(Cache::warm, Launch::graph);
  add_one(Cache::warm, Launch::stream);
  add_one(Cache::cold, Launch::stream);
}

bool add_all() {
  for (const DispatchWork work : all_dispatch_work) {
    for (const int experts : {64, 256, 512}) {
      for (const std::int64_t tokens : {64, 8192, 32768}) {
        DispatchProblem problem{work, tokens, experts};
        const bool typical = experts == 256;
        if (!problem.moves_states()) {
          add_problem<DispatchStep<cudaStream_t>>(problem, typical);
          continue;
        }
        for (const std::int64_t hidden : {2048, 7168}) {
          problem.hidden = hidden;
          problem.type = mb::DataType::bfloat16;
          add_problem<DispatchStep<cudaStream_t>>(problem, typical && hidden == 2048 && tokens == 8192);
        }
      }
    }
  }
  for (const LogitsWork work : all_logits_work) {
    for (const int experts : {64, 256, 512}) {
      for (const std::int64_t tokens : {64, 8192, 32768}) {
        add_problem<LogitsStep<cudaStream_t>>(LogitsProblem{work, tokens, experts}, experts == 256 && tokens == 8192);
      }
    }
  }
  return true;
}

const bool added = add_all();

}  // namespace

}  // namespace microbenchmark
