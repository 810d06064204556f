// What a run leaves behind: plain numbers, written by the training loop and read by the reports.
#pragma once

#include "metrics.hpp"

#include <string>
#include <vector>

namespace train_moe {

/// One optimizer step.
struct StepRecord {
  int step = 0;                  ///< from 1
  double bits_per_byte = 0;      ///< cross entropy on the step's training bytes
  double balancing_loss = 0;     ///< mean over micro-batches of the sum over layers
  std::vector<double> max_vio;   ///< [layers], of the step's tokens of all micro-batches ("batch")
  double micro_max_vio = 0;      ///< mean over micro-batches and layers
  double tokens_per_second = 0;  ///< since the start of the run
  double seconds = 0;            ///< since the start of the run
};

[[nodiscard]] inline double mean_max_vio(const StepRecord& record) {
  double sum = 0;
  for (const double value : record.max_vio) sum += value;
  return record.max_vio.empty() ? 0 : sum / static_cast<double>(record.max_vio.size());
}

/// How the model does on the held-out bytes of one domain.
struct DomainResult {
  std::string name;
  double bits_per_byte = 0;
  double top_mass = 0;  ///< normalised score that the K chosen experts hold together: mean over tokens and layers
  LayerCounts counts;   ///< [layers][experts]
};

struct RunResult {
  std::string balancer;
  std::vector<StepRecord> steps;
  std::vector<DomainResult> domains;
};

/// Of all held-out bytes together, mean of layers.
[[nodiscard]] inline double global_max_vio(const RunResult& run) {
  LayerCounts sum;
  for (const DomainResult& domain : run.domains) add(sum, domain.counts);
  return mean_of_layers(sum, max_vio);
}

/// Mean over domains.
[[nodiscard]] inline double validation_bits_per_byte(const RunResult& run) {
  double sum = 0;
  for (const DomainResult& domain : run.domains) sum += domain.bits_per_byte;
  return run.domains.empty() ? 0 : sum / static_cast<double>(run.domains.size());
}

}  // namespace train_moe
