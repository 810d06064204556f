#include "evaluation.hpp"

#include <torch/nn/functional/loss.h>

#include <numbers>

namespace train_moe {
namespace {

using torch::Tensor;

constexpr int validation_sequences = 192;
constexpr int sequences_at_once = 32;

/// Normalised score of the chosen experts together: mean over tokens.
double chosen_mass(const Tensor& scores, const Tensor& experts) {
  return scores.gather(1, experts.to(torch::kInt64)).sum(1).mean().item<double>();
}

DomainResult evaluate_domain(ByteModel model, Balancing& balancing, const Domain& domain, const Options& options) {
  const Sequences all = to_tensors(validation_batch(domain, validation_sequences, options.context + 1));
  DomainResult result{.name = domain.name, .counts = {}};
  const std::int64_t count = all.inputs.size(0);
  for (std::int64_t first = 0; first < count; first += sequences_at_once) {
    const std::int64_t part = std::min<std::int64_t>(sequences_at_once, count - first);
    const double weight = static_cast<double>(part) / static_cast<double>(count);
    const auto route = [&](const Tensor& logits, int layer) {
      const Routed routed = balancing.route(logits, layer);
      result.top_mass += weight * chosen_mass(balancing.normalised_scores(logits), routed.experts) / options.layers;
      return routed;
    };
    const Prediction prediction = model(all.inputs.narrow(0, first, part), route);
    const Tensor loss = cross_entropy(prediction.logits, all.targets.narrow(0, first, part));
    result.bits_per_byte += weight * loss.item<double>() / std::numbers::ln2;
    add(result.counts, prediction.counts);
  }
  return result;
}

}  // namespace

Sequences to_tensors(const Batch& batch) {
  const Tensor bytes = torch::empty({batch.sequences, batch.length}, torch::kInt64);
  std::copy(batch.bytes.begin(), batch.bytes.end(), bytes.data_ptr<std::int64_t>());
  return {bytes.narrow(1, 0, batch.length - 1).contiguous(), bytes.narrow(1, 1, batch.length - 1).contiguous()};
}

Tensor cross_entropy(const Tensor& logits, const Tensor& targets) {
  return torch::nn::functional::cross_entropy(logits.view({-1, logits.size(2)}), targets.view({-1}));
}

std::vector<DomainResult> evaluate(ByteModel model, Balancing& balancing, const std::vector<Domain>& domains,
                                   const Options& options) {
  const torch::NoGradGuard no_gradients;
  std::vector<DomainResult> results;
  for (const Domain& domain : domains) results.push_back(evaluate_domain(model, balancing, domain, options));
  return results;
}

}  // namespace train_moe
