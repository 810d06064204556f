// The library as a subject of the recorded cases, on any engine. What a case says at run time becomes a Router's type here.
#pragma once

#include "call.hpp"
#include "golden_subject.hpp"

#include <cmath>
#include <string>
#include <type_traits>
#include <utility>

namespace golden {

namespace mb = moe_balance;

/// One answer: forward, loss, and backward once for each of the two gradients that cases record apart.
template <class Engine, class Router>
Answer ask(const Engine& engine, const Router& router, const Task& task) {
  testing::Inputs inputs;
  inputs.tokens = task.tokens;
  inputs.experts = task.experts;
  inputs.logits.assign(task.logits.begin(), task.logits.end());
  inputs.bias = task.bias;
  inputs.active = task.active;
  inputs.replay_experts.assign(task.replay_experts.begin(), task.replay_experts.end());
  inputs.replay_tokens = task.replay_tokens;
  inputs.load = task.load;
  inputs.sequences = task.sequences;
  inputs.layout = mb::Sequences::Layout::token_major;
  inputs.backward = task.loss != Loss::none;
  const testing::Outcome outcome = testing::train(engine, router, inputs);

  Answer answer;
  answer.experts = outcome.experts;
  answer.weights.assign(outcome.weights.begin(), outcome.weights.end());
  answer.counts = outcome.counts;
  answer.load = outcome.load;
  answer.loss = outcome.loss;
  answer.grad_logits_of_loss.assign(outcome.grad_logits.begin(), outcome.grad_logits.end());
  if (!task.grad_weights.empty()) {
    inputs.grad_weights.assign(task.grad_weights.begin(), task.grad_weights.end());
    inputs.loss_scale = 0.0f;
    inputs.backward = true;
    const testing::Outcome weighted = testing::train(engine, router, inputs);
    answer.grad_logits_of_weights.assign(weighted.grad_logits.begin(), weighted.grad_logits.end());
  }
  const testing::Outcome inference = testing::route(engine, router, inputs);
  if (inference.experts != outcome.experts || inference.weights_bytes != outcome.weights_bytes ||
      inference.counts != outcome.counts) {
    throw std::runtime_error("route and forward differ");
  }
  return answer;
}

/// All three losses of P in one router, the two that are not asked for with coefficient 0: one type instead of three.
template <class Engine, class Scoring, class Selection>
Answer ask_with_loss(const Engine& engine, Scoring scoring, Selection selection, Task task) {
  const mb::LossScale scale = task.per_token ? mb::LossScale::per_token : mb::LossScale::per_assignment;
  const auto coefficient = [&](Loss loss) { return task.loss == loss ? task.coefficient : 0.0f; };
  const mb::Combine balancer{mb::AuxLoss{.coefficient = coefficient(Loss::micro_batch), .scale = scale},
                             mb::SequenceLoss{.coefficient = coefficient(Loss::sequence), .scale = scale},
                             mb::GlobalBatchLoss{.coefficient = coefficient(Loss::global_batch), .scale = scale}};
  if (task.load.empty()) task.load.assign(static_cast<std::size_t>(task.experts), 0);
  return ask(engine, mb::Router{scoring, selection, balancer}, task);
}

/// Which routers are compiled into golden_test. On the CPU every K that models use, whatever golden/ holds; on a GPU, where each costs
/// nvcc ten seconds, what the cases in golden/ need.
template <class Engine>
struct Compiled {
  using K = std::integer_sequence<int, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16>;
  static constexpr bool groups(int) { return true; }
  static constexpr bool replay(int k) { return k == 6 || k == 8; }
  template <class Scoring>
  static constexpr bool plain(int) {
    return true;
  }
  template <class Scoring>
  static constexpr bool loss(int) {
    return !std::is_same_v<Scoring, mb::SoftmaxOverSelected>;
  }
};
template <class Engine>
  requires(!Engine::has_float64)
struct Compiled<Engine> {
  using K = std::integer_sequence<int, 1, 2, 4, 6, 8, 10, 12>;
  static constexpr bool groups(int k) { return k == 6 || k == 8; }
  static constexpr bool replay(int k) { return k == 6; }
  /// K = 1 is Llama 4's, K = 12 LongCat-Flash's.
  template <class Scoring>
  static constexpr bool plain(int k) {
    if (k == 12) return std::is_same_v<Scoring, mb::Softmax>;
    return k > 1 || std::is_same_v<Scoring, mb::Sigmoid>;
  }
  /// K = 1 is Switch's.
  template <class Scoring>
  static constexpr bool loss(int k) {
    if (k == 1) return std::is_same_v<Scoring, mb::Softmax>;
    return (k == 2 || k == 4 || k == 8) && !std::is_same_v<Scoring, mb::SoftmaxOverSelected>;
  }
};

template <int K, class Engine, class Scoring>
Answer ask_groups(const Engine& engine, Scoring scoring, const Task& task) {
  const mb::GroupLimitedTopK<K> selection{.groups = task.groups,
                                          .groups_kept = task.groups_kept,
                                          .group_score_top = task.group_score_top,
                                          .renormalise = task.renormalise,
                                          .scaling_factor = task.scaling_factor};
  if (task.loss != Loss::none) throw NotOffered("no group-limited router with a loss is compiled into golden_test");
  if constexpr (Compiled<Engine>::groups(K)) {
    if (task.replay_experts.empty()) return ask(engine, mb::Router{scoring, selection}, task);
  }
  if constexpr (Compiled<Engine>::replay(K) && !std::is_same_v<Scoring, mb::Softmax>) {
    if (!task.replay_experts.empty()) return ask(engine, mb::Router{scoring, mb::Replay{selection}}, task);
  }
  throw NotOffered("no group-limited router of this kind with K = " + std::to_string(K) + " is compiled into golden_test");
}

template <int K, class Engine, class Scoring>
Answer ask_plain(const Engine& engine, Scoring scoring, const Task& task) {
  const mb::TopK<K> selection{.renormalise = task.renormalise, .scaling_factor = task.scaling_factor};
  if (!task.replay_experts.empty())
    throw NotOffered("no ungrouped router that replays experts is compiled into golden_test");
  if constexpr (Compiled<Engine>::template plain<Scoring>(K)) {
    if (task.loss == Loss::none) return ask(engine, mb::Router{scoring, selection}, task);
  }
  if constexpr (Compiled<Engine>::template loss<Scoring>(K)) {
    if (task.loss != Loss::none) return ask_with_loss(engine, scoring, selection, task);
  }
  throw NotOffered("no ungrouped router of this kind with K = " + std::to_string(K) + " is compiled into golden_test");
}

template <int K, class Engine, class Scoring>
Answer ask_k(const Engine& engine, Scoring scoring, const Task& task) {
  return task.groups > 0 ? ask_groups<K>(engine, scoring, task) : ask_plain<K>(engine, scoring, task);
}

template <class Engine, class Scoring, int... K>
Answer ask_one_of(const Engine& engine, Scoring scoring, const Task& task, std::integer_sequence<int, K...>) {
  Answer answer;
  const bool found = ((task.k == K && (answer = ask_k<K>(engine, scoring, task), true)) || ...);
  if (!found) throw NotOffered("no router with K = " + std::to_string(task.k) + " is compiled into golden_test");
  return answer;
}

/// Each scoring is instantiated in a source file of its own (golden_<scoring>.cpp, .cu).
template <class Engine, class Scoring>
Answer ask_scoring(const Engine& engine, Scoring scoring, const Task& task) {
  return ask_one_of(engine, scoring, task, typename Compiled<Engine>::K{});
}

template <class Engine>
Answer ask_softmax(const Engine& engine, const Task& task) {
  return ask_scoring(engine, mb::Softmax{}, task);
}
template <class Engine>
Answer ask_softmax_over_selected(const Engine& engine, const Task& task) {
  return ask_scoring(engine, mb::SoftmaxOverSelected{}, task);
}
template <class Engine>
Answer ask_sigmoid(const Engine& engine, const Task& task) {
  return ask_scoring(engine, mb::Sigmoid{}, task);
}
template <class Engine>
Answer ask_sqrt_softplus(const Engine& engine, const Task& task) {
  return ask_scoring(engine, mb::SqrtSoftplus{}, task);
}

/// Memory of an engine for tasks of dispatch.
template <class Engine>
struct DispatchArrays {
  const Engine& engine;
  template <class T>
  using Array = typename Engine::template Array<T>;

  [[nodiscard]] Array<std::int64_t> longs(std::int64_t size) const {
    return {engine, std::vector<std::int64_t>(static_cast<std::size_t>(size), 77)};
  }
  [[nodiscard]] Array<std::int32_t> ints(std::int64_t size) const {
    return {engine, std::vector<std::int32_t>(static_cast<std::size_t>(size), 77)};
  }
  [[nodiscard]] Array<float> floats(std::int64_t size) const {
    return {engine, std::vector<float>(static_cast<std::size_t>(size), 77)};
  }
  [[nodiscard]] Array<std::int32_t> ids(const std::vector<int>& values) const {
    return {engine, {values.begin(), values.end()}};
  }
  [[nodiscard]] Array<std::max_align_t> scratch(std::size_t bytes) const {
    return {engine, std::vector<std::max_align_t>(bytes / 16 + 1)};
  }
};

template <class Engine>
PermuteAnswer permute_on(const Engine& engine, const PermuteTask& task) {
  const DispatchArrays<Engine> arrays{engine};
  const std::int64_t rows = mb::permutation_rows(task.tokens, task.k, task.experts);
  auto ids = arrays.ids(task.ids);
  auto offsets = arrays.longs(task.experts + 1);
  auto counts = arrays.longs(task.experts);
  auto row_of_slot = arrays.longs(rows);
  auto slot_of_row = arrays.longs(rows);
  const std::size_t bytes = mb::permutation_workspace_bytes(task.tokens, task.k, task.experts);
  auto scratch = arrays.scratch(bytes);
  const mb::MatrixView<std::int64_t> row_view(row_of_slot.data(), task.tokens, task.k);
  const mb::VectorView<std::int64_t> slot_view(slot_of_row.data(), rows);
  mb::permutation({.experts = {ids.data(), task.tokens, task.k},
                   .offsets = {offsets.data(), task.experts + 1},
                   .row_of_slot = row_view,
                   .slot_of_row = slot_view,
                   .counts = counts.data()},
                  {scratch.data(), bytes}, engine.place());
  typename Engine::template Array<float> hidden(engine, task.hidden_states);
  typename Engine::template Array<float> weights(engine, task.weights);
  auto permuted = arrays.floats(rows * task.hidden);
  auto combined = arrays.floats(std::int64_t{task.tokens} * task.hidden);
  const mb::MatrixView<float> permuted_view(permuted.data(), rows, task.hidden);
  mb::permute({.hidden = mb::MatrixView<const float>(hidden.data(), task.tokens, task.hidden),
               .slot_of_row = slot_view,
               .permuted = permuted_view,
               .top_k = task.k},
              {}, engine.place());
  mb::combine({.permuted = permuted_view,
               .row_of_slot = row_view,
               .combined = mb::MatrixView<float>(combined.data(), task.tokens, task.hidden),
               .weights = mb::MatrixView<const float>(weights.data(), task.tokens, task.k)},
              {}, engine.place());
  engine.wait();
  return {counts.values(), slot_of_row.values(), permuted.values(), combined.values()};
}

template <class Engine>
CapacityAnswer limit_on(const Engine& engine, const CapacityTask& task) {
  const DispatchArrays<Engine> arrays{engine};
  auto chosen = arrays.ids(task.ids);
  auto experts = arrays.ints(std::int64_t{task.tokens} * task.k);
  typename Engine::template Array<float> weights(engine, task.weights);
  auto kept = arrays.longs(task.experts);
  const std::size_t bytes = mb::capacity_workspace_bytes(task.tokens, task.k, task.experts);
  auto scratch = arrays.scratch(bytes);
  const std::int64_t capacity = mb::expert_capacity(task.tokens, task.k, task.experts, task.capacity_factor);
  mb::limit_to_capacity({.chosen = {chosen.data(), task.tokens, task.k},
                         .experts = {experts.data(), task.tokens, task.k},
                         .weights = mb::MatrixView<float>(weights.data(), task.tokens, task.k),
                         .expert_count = task.experts,
                         .capacity = capacity,
                         .kept_counts = kept.data()},
                        {scratch.data(), bytes}, engine.place());
  engine.wait();
  return {capacity, experts.values(), weights.values(), kept.values()};
}

template <class Engine>
PlacementAnswer place_on(const Engine& engine, const PlacementTask& task) {
  const DispatchArrays<Engine> arrays{engine};
  auto logical = arrays.ids(task.ids);
  auto ids = arrays.ids(task.ids);
  typename Engine::template Array<float> weights(engine, task.weights);
  if (!task.replica_count.empty()) {
    auto map = arrays.ids(task.logical_to_physical);
    auto replicas = arrays.ids(task.replica_count);
    const auto columns = static_cast<std::int64_t>(task.logical_to_physical.size()) / task.experts;
    mb::physical_experts({.experts = {logical.data(), task.tokens, task.k},
                          .physical_experts = {ids.data(), task.tokens, task.k},
                          .logical_to_physical = {map.data(), task.experts, columns},
                          .replica_count = {replicas.data(), task.experts},
                          .rank = task.rank},
                         {}, engine.place());
    engine.wait();
  }
  if (task.shared == 0) return {ids.values(), weights.values()};
  const std::int64_t width = task.k + task.shared;
  auto all_ids = arrays.ints(task.tokens * width);
  auto all_weights = arrays.floats(task.tokens * width);
  typename Engine::template Array<std::uint8_t> active(engine, task.active);
  mb::append_shared_experts({.experts = {ids.data(), task.tokens, task.k},
                             .weights = mb::MatrixView<const float>(weights.data(), task.tokens, task.k),
                             .all_experts = {all_ids.data(), task.tokens, width},
                             .all_weights = mb::MatrixView<float>(all_weights.data(), task.tokens, width),
                             .first_shared = task.experts,
                             .active = active.data()},
                            {}, engine.place());
  engine.wait();
  return {all_ids.values(), all_weights.values()};
}

/// log d1 after `most` iterations or fewer, and after how many.
template <class Engine>
std::pair<std::vector<float>, int> log_scale_of(const Engine& engine, const SinkhornTask& task, float tolerance, int most) {
  const DispatchArrays<Engine> arrays{engine};
  typename Engine::template Array<float> logits(engine, task.logits);
  auto log_scale = arrays.floats(task.experts);
  auto iterations = arrays.ints(1);
  const std::size_t bytes = mb::sinkhorn_workspace_bytes(task.experts);
  auto scratch = arrays.scratch(bytes);
  mb::sinkhorn({.logits = mb::MatrixView<const float>(logits.data(), task.tokens, task.experts),
                .log_scale = {log_scale.data(), task.experts},
                .tolerance = tolerance,
                .max_iterations = most,
                .iterations = iterations.data()},
               {scratch.data(), bytes}, engine.place());
  engine.wait();
  return {log_scale.values(), iterations.values()[0]};
}

/// What Megatron-Core returns has the d0 of the iteration's start beside the d1 of its end.
inline std::vector<float> normalised_by(const SinkhornTask& task, const std::vector<float>& before,
                                        const std::vector<float>& after) {
  const auto experts = static_cast<std::size_t>(task.experts);
  std::vector<float> result;
  for (std::size_t first = 0; first < task.logits.size(); first += experts) {
    const auto scaled = [&](const std::vector<float>& log_scale, std::size_t e) {
      return std::exp(static_cast<double>(task.logits[first + e]) + static_cast<double>(log_scale[e]));
    };
    double sum = 1e-8;
    for (std::size_t e = 0; e < experts; ++e) sum += scaled(before, e);
    for (std::size_t e = 0; e < experts; ++e) result.push_back(static_cast<float>(scaled(after, e) / (task.tokens * sum)));
  }
  return result;
}

/// Ids by logits beside log d1, then weights of these ids by the logits alone.
template <int K, class Engine, class Scoring>
SinkhornAnswer route_by_scales(const Engine& engine, Scoring scoring, const SinkhornTask& task,
                               const std::vector<float>& log_scale) {
  testing::Inputs inputs;
  inputs.tokens = task.tokens;
  inputs.experts = task.experts;
  inputs.logits.assign(task.logits.begin(), task.logits.end());
  inputs.bias = log_scale;
  inputs.backward = false;
  const mb::TopK<K> selection{.renormalise = false};
  inputs.replay_experts = testing::route(engine, mb::Router{mb::Identity{}, selection, mb::LossFreeBias{}}, inputs).experts;
  inputs.bias.clear();
  const testing::Outcome weighed = testing::route(engine, mb::Router{scoring, mb::Replay{selection}}, inputs);
  return {{}, {weighed.experts.begin(), weighed.experts.end()}, {weighed.weights.begin(), weighed.weights.end()}};
}

template <class Engine>
SinkhornAnswer sinkhorn_on(const Engine& engine, const SinkhornTask& task) {
  const auto [log_scale, iterations] = log_scale_of(engine, task, task.tolerance, 1000);
  std::vector<float> before(log_scale.size(), 0.0f);
  if (iterations > 1) before = log_scale_of(engine, task, 0.0f, iterations - 1).first;
  SinkhornAnswer answer;
  if (task.k == 1 && task.scoring == Scoring::sigmoid)
    answer = route_by_scales<1>(engine, mb::Sigmoid{}, task, log_scale);
  else if (task.k == 4 && task.scoring == Scoring::softmax)
    answer = route_by_scales<4>(engine, mb::Softmax{}, task, log_scale);
  else if (task.k == 8 && task.scoring == Scoring::softmax)
    answer = route_by_scales<8>(engine, mb::Softmax{}, task, log_scale);
  else
    throw NotOffered("no router of this kind is compiled into golden_test");
  answer.normalised = normalised_by(task, before, log_scale);
  return answer;
}

template <class Engine>
class RouterSubject : public Subject {
 public:
  explicit RouterSubject(Engine engine) : engine_(std::move(engine)) {}
  std::string name() const override { return Engine::label; }

  Answer answer(const Task& task) override {
    if (task.loss == Loss::z) {
      return ask(engine_, mb::Router{mb::Softmax{}, mb::TopK<1>{}, mb::ZLoss{.coefficient = task.coefficient}}, task);
    }
    switch (task.scoring) {
      case Scoring::softmax:
        return ask_softmax(engine_, task);
      case Scoring::softmax_over_selected:
        return ask_softmax_over_selected(engine_, task);
      case Scoring::sigmoid:
        return ask_sigmoid(engine_, task);
      default:
        return ask_sqrt_softplus(engine_, task);
    }
  }

  std::vector<std::vector<float>> biases(const BiasTask& task) override {
    const mb::Centring centring = task.centres_step ? mb::Centring::step : mb::Centring::none;
    if (task.rule == BiasTask::Rule::proportional)
      return biases_by(mb::ProportionalBias{.update_rate = task.update_rate, .centring = centring}, task);
    if (task.rule == BiasTask::Rule::smebu) {
      return biases_by(
          mb::SmebuBias{
              .update_rate = task.update_rate, .momentum = task.momentum, .slope = task.slope, .centring = centring},
          task);
    }
    return biases_by(mb::LossFreeBias{.update_rate = task.update_rate, .centring = centring}, task);
  }

  QuantileAnswer balance_quantiles(const QuantileTask& task) override {
    return task.k == 1 ? quantiles_of<1>(task) : quantiles_of<2>(task);
  }

  PermuteAnswer permute(const PermuteTask& task) override { return permute_on(engine_, task); }
  CapacityAnswer limit(const CapacityTask& task) override { return limit_on(engine_, task); }
  SinkhornAnswer sinkhorn(const SinkhornTask& task) override { return sinkhorn_on(engine_, task); }
  PlacementAnswer place(const PlacementTask& task) override { return place_on(engine_, task); }

 private:
  /// Recorded quantiles lie between -1.16 and 1.38; a margin outside the bins counts as at their end, which moves no other. Half a bin is 2e-5, of which a
  /// tenth, 1 - ema, reaches the bias: 2e-6, what the recorded values are compared by.
  template <int K>
  QuantileAnswer quantiles_of(const QuantileTask& task) {
    if (task.k != K) throw NotOffered("top_k " + std::to_string(task.k));
    const mb::QuantileBias rule{
        .momentum = task.ema, .spacing = mb::MarginBins::even, .low = -1.2f, .high = 1.4f, .bins = 65536};
    const mb::Router router{mb::SoftmaxOverSelected{}, mb::TopK<K>{}, rule};
    std::vector<float> bias_values;
    for (const float beta : task.beta) bias_values.push_back(-beta);
    const auto slots = static_cast<std::size_t>(task.tokens * K);
    typename Engine::template Array<float> scores(engine_, task.scores), bias(engine_, bias_values);
    typename Engine::template Array<float> weights(engine_, std::vector<float>(slots));
    typename Engine::template Array<std::int32_t> experts(engine_, std::vector<std::int32_t>(slots, -7));
    const auto cells = static_cast<std::size_t>(task.experts) * static_cast<std::size_t>(1 + rule.bins);
    typename Engine::template Array<std::int64_t> load(engine_, std::vector<std::int64_t>(cells, 0));
    const mb::BiasRef bias_ref(bias.data(), task.experts);
    const mb::LoadRef load_ref = mb::LoadRef::with_bins(load.data(), rule.bins, task.experts);
    mb::ForwardArgs args;
    args.logits = mb::MatrixView<const float>(scores.data(), task.tokens, task.experts);
    args.experts = {experts.data(), task.tokens, K};
    args.weights = mb::MatrixView<float>(weights.data(), task.tokens, K);
    args.bias = bias_ref;
    args.load = load_ref;
    const std::size_t bytes = router.workspace_bytes({.tokens = task.tokens, .experts = task.experts});
    typename Engine::template Array<std::max_align_t> scratch(engine_, std::vector<std::max_align_t>(bytes / 16 + 1));
    router.forward(args, {scratch.data(), bytes}, engine_.place());
    router.update(bias_ref, load_ref, {}, engine_.place());
    engine_.wait();
    const std::vector<std::int32_t> ids = experts.values();
    QuantileAnswer answer{{ids.begin(), ids.end()}, {}, {}};
    for (const float value : bias.values()) answer.next_beta.push_back(-value);
    return answer;
  }

  template <class Balancer>
  std::vector<std::vector<float>> biases_by(const Balancer& balancer, const BiasTask& task) {
    const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, balancer};
    using Floats = typename Engine::template Array<float>;
    using Counts = typename Engine::template Array<std::int64_t>;
    const auto size = static_cast<std::size_t>(task.layers) * static_cast<std::size_t>(task.experts);
    constexpr int memory = mb::bias_memory<Balancer>;
    Floats bias(engine_, std::vector<float>((1 + memory) * size, 0.0f));
    const std::size_t bytes = router.workspace_bytes(mb::Shape{.tokens = 0, .experts = task.experts});
    typename Engine::template Array<std::max_align_t> scratch(engine_, std::vector<std::max_align_t>(bytes / 16 + 1));
    std::vector<std::vector<float>> result;
    for (const std::vector<std::int64_t>& counts : task.counts_per_step) {
      Counts load(engine_, counts);
      router.update(mb::BiasRef(bias.data(), task.experts, task.layers).with_memory(memory),
                    mb::LoadRef{load.data(), task.experts, task.layers}, mb::Workspace{scratch.data(), bytes},
                    engine_.place());
      engine_.wait();
      result.push_back(bias.values());
      result.back().resize(size);
      if (load.values() != std::vector<std::int64_t>(size, 0)) throw std::runtime_error("update left counts in the load");
    }
    return result;
  }

  Engine engine_;
};

}  // namespace golden
