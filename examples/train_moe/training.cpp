#include "training.hpp"

#include "balancing.hpp"
#include "evaluation.hpp"
#include "model.hpp"

#include <torch/nn/functional/loss.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include <chrono>
#include <cmath>
#include <mutex>
#include <numbers>

namespace train_moe {
namespace {

using torch::Tensor;
using Clock = std::chrono::steady_clock;

constexpr int warm_up_steps = 20;
constexpr double largest_gradient_norm = 1.0;

/// Linear warm-up, then a cosine that ends at a tenth of the peak.
double learning_rate(const Options& options, int step) {
  if (step < warm_up_steps) return options.learning_rate * (step + 1) / warm_up_steps;
  const double progress = static_cast<double>(step - warm_up_steps) / std::max(1, options.steps - warm_up_steps);
  return options.learning_rate * (0.55 + 0.45 * std::cos(std::numbers::pi * progress));
}

void set_learning_rate(torch::optim::Optimizer& optimizer, double rate) {
  for (auto& group : optimizer.param_groups()) static_cast<torch::optim::AdamWOptions&>(group.options()).lr(rate);
}

class Run {
 public:
  Run(BalancerKind kind, const std::vector<Domain>& domains, const Options& options)
      : domains_(domains),
        options_(options),
        balancing_(kind, options),
        random_(options.seed),
        model_(make_model(options)),
        optimizer_(model_->parameters(), torch::optim::AdamWOptions(options.learning_rate).betas({0.9, 0.95})),
        start_(Clock::now()) {}

  /// One optimizer step: a micro-batch of each domain, gradients added up. False when it was told to stop before the end.
  bool step(int index, const Observers& observers, StepRecord& record) {
    optimizer_.zero_grad();
    record.step = index + 1;
    for (const Domain* domain : shuffled_domains()) {
      add_micro_batch(*domain, record);
      if (observers.should_stop()) return false;
    }
    finish_step(index, record);
    return true;
  }

  std::vector<DomainResult> evaluate() { return train_moe::evaluate(model_, balancing_, domains_, options_); }

 private:
  /// The same seed gives the same parameters whatever the balancer. Torch's generator is one for all runs side by side.
  static ByteModel make_model(const Options& options) {
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    torch::manual_seed(options.seed);
    return ByteModel(options);
  }

  /// In a new order every step: with a fixed one the first micro-batches would see only their own domain in the global-batch
  /// buffer, which is empty at the start of a step.
  std::vector<const Domain*> shuffled_domains() {
    std::vector<const Domain*> order;
    for (const Domain& domain : domains_) order.push_back(&domain);
    shuffle(order, random_);
    return order;
  }

  void add_micro_batch(const Domain& domain, StepRecord& record) {
    const Sequences batch = to_tensors(random_batch(domain, options_.sequences, options_.context + 1, random_));
    const auto route = [this](const Tensor& logits, int layer) { return balancing_.forward(logits, layer); };
    const Prediction prediction = model_(batch.inputs, route);
    const Tensor loss = cross_entropy(prediction.logits, batch.targets);
    const auto parts = static_cast<double>(domains_.size());
    ((loss + prediction.balancing_loss.squeeze()) / parts).backward();
    record.bits_per_byte += loss.item<double>() / std::numbers::ln2 / parts;
    record.balancing_loss += prediction.balancing_loss.item<double>() / parts;
    record.micro_max_vio += mean_of_layers(prediction.counts, max_vio) / parts;
    tokens_ += batch.inputs.numel();
  }

  void finish_step(int index, StepRecord& record) {
    torch::nn::utils::clip_grad_norm_(model_->parameters(), largest_gradient_norm);
    set_learning_rate(optimizer_, learning_rate(options_, index));
    optimizer_.step();
    for (const ExpertCounts& counts : balancing_.load()) record.max_vio.push_back(max_vio(counts));
    balancing_.end_step(static_cast<double>(index + 1) / options_.steps);
    record.seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    record.tokens_per_second = static_cast<double>(tokens_) / record.seconds;
  }

  const std::vector<Domain>& domains_;
  const Options& options_;
  Balancing balancing_;
  std::mt19937_64 random_;
  ByteModel model_;
  torch::optim::AdamW optimizer_;
  Clock::time_point start_;
  std::int64_t tokens_ = 0;
};

}  // namespace

RunResult train(BalancerKind kind, const std::vector<Domain>& domains, const Options& options, const Observers& observers) {
  RunResult result{.balancer = name_of(kind), .steps = {}, .domains = {}};
  Run run(kind, domains, options);
  for (int index = 0; index < options.steps; ++index) {
    StepRecord record;
    if (!run.step(index, observers, record)) break;
    result.steps.push_back(record);
    observers.after_step(record);
  }
  if (!result.steps.empty()) result.domains = run.evaluate();
  return result;
}

}  // namespace train_moe
