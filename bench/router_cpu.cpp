// Forward and backward of routers on the CPU. A policy of your own goes in as one line of `registered`.
// Reports tokens/s and bytes/s, counting logits read once and outputs written once.
#include <moe_balance/moe_balance.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace {

namespace mb = moe_balance;

/// Memory of one training step.
template <class Router>
struct Step {
  Router router;
  std::int64_t tokens;
  int experts;
  std::vector<float> logits, weights, grad_weights, grad_logits;
  std::vector<std::int32_t> ids;
  mb::Bias<> bias;
  mb::Load<> load;
  mb::Saved<> saved;

  Step(const Router& r, std::int64_t t, int e)
      : router(r), tokens(t), experts(e), logits(size(t * e)), weights(size(t * r.k)), grad_weights(size(t * r.k)),
        grad_logits(size(t * e)), ids(size(t * r.k)), bias(e), load(e), saved(r, {t, e}) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& logit : logits) logit = normal(random);
    for (float& gradient : grad_weights) gradient = normal(random);
  }
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

  void forward(const mb::Host& host) {
    router.forward({.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
                    .experts = {ids.data(), tokens, router.k},
                    .weights = mb::MatrixView(weights.data(), tokens, router.k),
                    .bias = bias.ref(),
                    .load = load.ref(),
                    .saved = saved.ref()},
                   {}, host);
  }
  void backward(const mb::Host& host) {
    router.backward({.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
                     .experts = mb::MatrixView(ids.data(), tokens, router.k),
                     .grad_weights = mb::MatrixView<const float>(grad_weights.data(), tokens, router.k),
                     .grad_logits = mb::MatrixView(grad_logits.data(), tokens, experts),
                     .saved = saved.ref()},
                    {}, host);
  }
};

template <class Router>
void report(benchmark::State& state, std::int64_t tokens, int experts, int matrices) {
  const auto calls = static_cast<std::int64_t>(state.iterations());
  state.SetItemsProcessed(calls * tokens);
  state.SetBytesProcessed(calls * tokens * (std::int64_t{matrices} * experts * 4 + std::int64_t{Router::k} * 8));
}

/// Registers forward and backward of one router for several shapes and thread counts.
template <class Router>
void add(const std::string& name, const Router& router, const std::vector<int>& expert_counts) {
  for (const int experts : expert_counts) {
    for (const std::int64_t tokens : {16, 512, 4096, 16384}) {
      for (const int threads : {1, 0}) {
        const std::string shape = "/E" + std::to_string(experts) + "/T" + std::to_string(tokens) +
                                  (threads == 1 ? "/one_thread" : "/all_cores");
        const mb::Host host{.threads = threads};
        benchmark::RegisterBenchmark(("forward/" + name + shape).c_str(), [=](benchmark::State& state) {
          Step<Router> step(router, tokens, experts);
          for (auto _ : state) step.forward(host);
          report<Router>(state, tokens, experts, 1);
        })->UseRealTime();
        benchmark::RegisterBenchmark(("backward/" + name + shape).c_str(), [=](benchmark::State& state) {
          Step<Router> step(router, tokens, experts);
          step.forward(host);
          for (auto _ : state) step.backward(host);
          report<Router>(state, tokens, experts, 2);
        })->UseRealTime();
      }
    }
  }
}

void register_all() {
  add("softmax_top8_global_batch_loss", mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::GlobalBatchLoss{}}, {64, 128, 256, 512});
  add("softmax_top2", mb::Router{mb::Softmax{}, mb::TopK<2>{}}, {8});
  add("sigmoid_groups_top8_bias",
      mb::Router{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f}, mb::LossFreeBias{}},
      {256});
  add("softmax_over_selected_top4", mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<4>{}}, {128});
  add("sqrt_softplus_top6", mb::Router{mb::SqrtSoftplus{}, mb::TopK<6>{}}, {256});
  add("sigmoid_top16_bias", mb::Router{mb::Sigmoid{}, mb::TopK<16>{}, mb::LossFreeBias{}}, {896});
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
