// The oracle as a subject of the recorded cases: what checks the library is itself checked against other systems' code.
#pragma once

#include "golden_subject.hpp"
#include "oracle.hpp"

#include <algorithm>
#include <cmath>

namespace golden {

class OracleSubject : public Subject {
 public:
  std::string name() const override { return "oracle"; }

  Answer answer(const Task& task) override {
    const oracle::Problem problem = problem_of(task);
    const std::vector<int> ids = oracle::choose(problem);
    const oracle::Evaluation evaluation = oracle::evaluate(problem, ids);
    Answer answer;
    answer.experts = ids;
    answer.weights = narrowed(evaluation.weights);
    answer.counts = evaluation.counts;

    oracle::Surroundings around;
    around.sequences = task.sequences;
    for (int t = 0; t < task.tokens; ++t) around.sequence_of_token.push_back(t % task.sequences);
    around.accumulated = evaluation.counts;
    for (std::size_t e = 0; e < task.load.size(); ++e) around.accumulated[e] += task.load[e];
    answer.load = around.accumulated;

    const std::vector<double> grad_weights(task.grad_weights.begin(), task.grad_weights.end());
    if (!grad_weights.empty()) {
      answer.grad_logits_of_weights = narrowed(oracle::gradient(problem, ids, grad_weights, {}, around, 0));
    }
    if (task.loss != Loss::none) {
      const oracle::Loss loss = loss_of(task);
      answer.loss = static_cast<float>(oracle::loss_value(problem, ids, evaluation, loss, around));
      answer.grad_logits_of_loss = narrowed(oracle::gradient(problem, ids, {}, {loss}, around, 1));
    }
    return answer;
  }

  std::vector<std::vector<float>> biases(const BiasTask& task) override {
    std::vector<double> bias(static_cast<std::size_t>(task.layers * task.experts), 0.0);
    std::vector<double> kept = bias;
    std::vector<std::vector<float>> result;
    for (const std::vector<std::int64_t>& counts : task.counts_per_step) {
      for (std::ptrdiff_t layer = 0; layer < task.layers; ++layer) {
        const std::ptrdiff_t first = layer * task.experts;
        std::vector<double> row(bias.begin() + first, bias.begin() + first + task.experts);
        const std::vector<std::int64_t> load(counts.begin() + first, counts.begin() + first + task.experts);
        const oracle::Centring centring = task.centres_step ? oracle::Centring::step : oracle::Centring::none;
        if (task.rule == BiasTask::Rule::smebu) {
          std::vector<double> means(kept.begin() + first, kept.begin() + first + task.experts);
          oracle::Smebu{task.update_rate, task.momentum, task.slope, centring}.step(row, means, load);
          std::copy(means.begin(), means.end(), kept.begin() + first);
        } else if (task.rule == BiasTask::Rule::proportional) {
          row = oracle::proportional_bias(row, load, task.update_rate, oracle::Unit::mean_load, centring);
        } else {
          row = oracle::next_bias(row, load, task.update_rate, centring);
        }
        std::copy(row.begin(), row.end(), bias.begin() + first);
      }
      result.push_back(narrowed(bias));
    }
    return result;
  }

  QuantileAnswer balance_quantiles(const QuantileTask& task) override {
    oracle::Problem problem;
    problem.tokens = task.tokens;
    problem.experts = task.experts;
    problem.k = task.k;
    problem.scoring = oracle::identity();
    problem.logits.assign(task.scores.begin(), task.scores.end());
    for (const float beta : task.beta) problem.bias.push_back(-static_cast<double>(beta));
    const std::vector<double> quantile = oracle::quantiles(oracle::margins(problem).of_token, task.k, task.experts);
    const std::vector<double> next =
        oracle::quantile_bias(problem.bias, quantile, static_cast<double>(task.ema), oracle::Centring::bias);
    QuantileAnswer answer{oracle::choose(problem), narrowed(quantile), {}};
    for (const double bias : next) answer.next_beta.push_back(static_cast<float>(-bias));
    return answer;
  }

  PermuteAnswer permute(const PermuteTask& task) override {
    PermuteAnswer answer;
    std::vector<double> combined(static_cast<std::size_t>(task.tokens) * static_cast<std::size_t>(task.hidden), 0.0);
    for (int e = 0; e < task.experts; ++e) {
      answer.counts.push_back(0);
      for (std::size_t slot = 0; slot < task.ids.size(); ++slot) {
        if (task.ids[slot] != e) continue;
        ++answer.counts.back();
        answer.slot_of_row.push_back(static_cast<std::int64_t>(slot));
        const std::size_t first = slot / static_cast<std::size_t>(task.k) * static_cast<std::size_t>(task.hidden);
        for (std::size_t c = 0; c < static_cast<std::size_t>(task.hidden); ++c) {
          answer.permuted.push_back(task.hidden_states[first + c]);
          combined[first + c] +=
              static_cast<double>(task.weights[slot]) * static_cast<double>(task.hidden_states[first + c]);
        }
      }
    }
    answer.combined = narrowed(combined);
    return answer;
  }

  CapacityAnswer limit(const CapacityTask& task) override {
    CapacityAnswer answer{0, task.ids, task.weights, {}};
    answer.capacity = static_cast<std::int64_t>(
        std::ceil(task.tokens * task.k / static_cast<double>(task.experts) * task.capacity_factor));
    for (int e = 0; e < task.experts; ++e) {
      std::vector<std::size_t> slots;
      for (std::size_t slot = 0; slot < task.ids.size(); ++slot) {
        if (task.ids[slot] == e) slots.push_back(slot);
      }
      std::stable_sort(slots.begin(), slots.end(),
                       [&](std::size_t a, std::size_t b) { return task.weights[a] > task.weights[b]; });
      for (std::size_t i = static_cast<std::size_t>(answer.capacity); i < slots.size(); ++i) {
        answer.ids[slots[i]] = -1;
        answer.weights[slots[i]] = 0;
      }
      answer.kept_counts.push_back(std::min(answer.capacity, static_cast<std::int64_t>(slots.size())));
    }
    return answer;
  }

  /// As the source has it, in double.
  SinkhornAnswer sinkhorn(const SinkhornTask& task) override {
    const auto tokens = static_cast<std::size_t>(task.tokens);
    const auto experts = static_cast<std::size_t>(task.experts);
    std::vector<double> cost, d0(tokens), d1(experts, 1.0);
    for (const float logit : task.logits) cost.push_back(std::exp(static_cast<double>(logit)));
    double error = 1e9;
    while (error > static_cast<double>(task.tolerance)) {
      for (std::size_t t = 0; t < tokens; ++t) {
        double sum = 0;
        for (std::size_t e = 0; e < experts; ++e) sum += cost[t * experts + e] * d1[e];
        d0[t] = 1 / (static_cast<double>(tokens) * (sum + 1e-8));
      }
      error = 0;
      for (std::size_t e = 0; e < experts; ++e) {
        double sum = 0;
        for (std::size_t t = 0; t < tokens; ++t) sum += cost[t * experts + e] * d0[t];
        const double next = 1 / (static_cast<double>(experts) * (sum + 1e-8));
        error += std::abs(next - d1[e]) / static_cast<double>(experts);
        d1[e] = next;
      }
    }
    SinkhornAnswer answer;
    for (std::size_t t = 0; t < tokens; ++t) {
      const double* const row = cost.data() + t * experts;
      std::vector<double> values;
      for (std::size_t e = 0; e < experts; ++e) values.push_back(d1[e] * row[e] * d0[t]);
      for (const double value : values) answer.normalised.push_back(static_cast<float>(value));
      double sum = 0;
      for (std::size_t e = 0; e < experts; ++e) sum += row[e];
      for (int k = 0; k < task.k; ++k) {
        const auto best = static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
        values[best] = -1;
        answer.experts.push_back(static_cast<int>(best));
        answer.weights.push_back(
            static_cast<float>(task.scoring == Scoring::sigmoid ? row[best] / (1 + row[best]) : row[best] / sum));
      }
    }
    return answer;
  }

  PlacementAnswer place(const PlacementTask& task) override {
    PlacementAnswer answer;
    for (int t = 0; t < task.tokens; ++t) {
      for (int k = 0; k < task.k; ++k) {
        const auto slot = static_cast<std::size_t>(t * task.k + k);
        int id = task.ids[slot];
        if (id >= 0 && !task.replica_count.empty()) {
          const auto columns = task.logical_to_physical.size() / static_cast<std::size_t>(task.experts);
          const auto expert = static_cast<std::size_t>(id);
          id = task.logical_to_physical[expert * columns +
                                        static_cast<std::size_t>((task.rank + 23333 * t) % task.replica_count[expert])];
        }
        answer.ids.push_back(id);
        answer.weights.push_back(task.weights[slot]);
      }
      const bool active = task.active.empty() || task.active[static_cast<std::size_t>(t)] != 0;
      for (int s = 0; s < task.shared; ++s) {
        answer.ids.push_back(active ? task.experts + s : -1);
        answer.weights.push_back(active ? 1.0f : 0.0f);
      }
    }
    return answer;
  }

 private:
  static std::vector<float> narrowed(const std::vector<double>& values) { return {values.begin(), values.end()}; }

  static oracle::Problem problem_of(const Task& task) {
    oracle::Problem problem;
    problem.tokens = task.tokens;
    problem.experts = task.experts;
    problem.k = task.k;
    problem.logits.assign(task.logits.begin(), task.logits.end());
    problem.bias.assign(task.bias.begin(), task.bias.end());
    problem.active = task.active;
    problem.scoring = task.scoring == Scoring::softmax                 ? oracle::softmax()
                      : task.scoring == Scoring::softmax_over_selected ? oracle::softmax_over_selected()
                      : task.scoring == Scoring::sigmoid               ? oracle::sigmoid()
                                                                       : oracle::sqrt_softplus();
    problem.renormalise = task.renormalise;
    problem.scaling_factor = task.scaling_factor;
    problem.groups = task.groups;
    problem.groups_kept = task.groups_kept;
    problem.group_score_top = task.group_score_top;
    problem.replay = !task.replay_experts.empty();
    problem.replay_experts = task.replay_experts;
    problem.replay_tokens = task.replay_tokens;
    return problem;
  }

  static oracle::Loss loss_of(const Task& task) {
    switch (task.loss) {
      case Loss::sequence:
        return oracle::sequence_loss(task.coefficient, task.experts, task.k, task.per_token);
      case Loss::global_batch:
        return oracle::global_batch_loss(task.coefficient, task.experts, task.k, task.per_token);
      case Loss::z:
        return oracle::z_loss(task.coefficient);
      default:
        return oracle::aux_loss(task.coefficient, task.experts, task.k, task.per_token);
    }
  }
};

}  // namespace golden
