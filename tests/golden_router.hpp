// The library as a subject of the recorded cases, on any engine. What a case says at run time becomes a Router's type here.
#pragma once

#include "call.hpp"
#include "golden_subject.hpp"

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
  static constexpr bool loss(int) { return true; }
};
template <class Engine>
  requires(!Engine::has_float64)
struct Compiled<Engine> {
  using K = std::integer_sequence<int, 2, 4, 6, 8, 10>;
  static constexpr bool groups(int k) { return k == 6 || k == 8; }
  static constexpr bool replay(int k) { return k == 6; }
  static constexpr bool loss(int k) { return k == 2 || k == 4 || k == 8; }
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
  if (task.loss == Loss::none) return ask(engine, mb::Router{scoring, selection}, task);
  if constexpr (Compiled<Engine>::loss(K) && !std::is_same_v<Scoring, mb::SoftmaxOverSelected>) {
    return ask_with_loss(engine, scoring, selection, task);
  }
  throw NotOffered("no router with this loss and K = " + std::to_string(K) + " is compiled into golden_test");
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
    const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, mb::LossFreeBias{.update_rate = task.update_rate}};
    using Floats = typename Engine::template Array<float>;
    using Counts = typename Engine::template Array<std::int64_t>;
    const auto size = static_cast<std::size_t>(task.layers) * static_cast<std::size_t>(task.experts);
    Floats bias(engine_, std::vector<float>(size, 0.0f));
    const std::size_t bytes = router.workspace_bytes(mb::Shape{.tokens = 0, .experts = task.experts});
    typename Engine::template Array<std::max_align_t> scratch(engine_, std::vector<std::max_align_t>(bytes / 16 + 1));
    std::vector<std::vector<float>> result;
    for (const std::vector<std::int64_t>& counts : task.counts_per_step) {
      Counts load(engine_, counts);
      router.update(mb::BiasRef{bias.data(), task.experts, task.layers}, mb::LoadRef{load.data(), task.experts, task.layers},
                    mb::Workspace{scratch.data(), bytes}, engine_.place());
      engine_.wait();
      result.push_back(bias.values());
      if (load.values() != std::vector<std::int64_t>(size, 0)) throw std::runtime_error("update left counts in the load");
    }
    return result;
  }

 private:
  Engine engine_;
};

}  // namespace golden
