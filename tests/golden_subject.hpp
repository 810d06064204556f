// What a recorded case asks, and who answers: the library on a CPU, the library on a GPU, or the oracle.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace golden {

/// A case that the subject does not offer; the message is the reason.
struct NotOffered : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Scoring { softmax, softmax_over_selected, sigmoid, sqrt_softplus };
enum class Loss { none, micro_batch, sequence, global_batch, z };

/// One forward call, and what to ask about it. Empty vectors are arguments left out.
struct Task {
  int tokens = 0;
  int experts = 0;
  int k = 1;
  Scoring scoring = Scoring::softmax;
  bool renormalise = true;
  float scaling_factor = 1.0f;
  int groups = 0;
  int groups_kept = 0;
  int group_score_top = 2;
  Loss loss = Loss::none;
  float coefficient = 0.0f;
  bool per_token = false;
  int sequences = 1;  ///< token t belongs to sequence t % sequences
  std::vector<float> logits;
  std::vector<float> bias;
  std::vector<std::uint8_t> active;
  std::vector<std::uint8_t> replay_tokens;
  std::vector<int> replay_experts;
  std::vector<float> grad_weights;
  std::vector<std::int64_t> load;  ///< counts that lie in the load already (global-batch loss)
};

struct Answer {
  std::vector<int> experts;
  std::vector<float> weights;
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> load;
  std::vector<float> grad_logits_of_weights;  ///< where grad_weights were given
  float loss = 0.0f;
  std::vector<float> grad_logits_of_loss;  ///< where there is a loss
};

/// Bias updates over some steps, all layers in one block.
struct BiasTask {
  int layers = 1;
  int experts = 0;
  float update_rate = 1e-3f;
  enum class Rule { sign, proportional, smebu };
  Rule rule = Rule::sign;                                  ///< proportional: to the error relative to the mean
  float momentum = 0;                                      ///< of smebu
  float slope = 0;                                         ///< of smebu
  bool centres_step = false;                               ///< the mean of a layer's steps is taken off them
  std::vector<std::vector<std::int64_t>> counts_per_step;  ///< [steps][layers * experts]
};

/// One step of quantile balancing: scores rank as they are, beside a bias of -beta.
struct QuantileTask {
  int tokens = 0;
  int experts = 0;
  int k = 1;
  float ema = 0;
  std::vector<float> scores;
  std::vector<float> beta;
};

struct QuantileAnswer {
  std::vector<int> experts;
  std::vector<float> quantile;  ///< empty: of a subject that does not say it
  std::vector<float> next_beta;
};

/// Hidden states to their experts' rows and back.
struct PermuteTask {
  int tokens = 0;
  int experts = 0;
  int k = 1;
  int hidden = 1;
  std::vector<int> ids;
  std::vector<float> weights;
  std::vector<float> hidden_states;
};

struct PermuteAnswer {
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> slot_of_row;
  std::vector<float> permuted;
  std::vector<float> combined;
};

/// The best slots of each expert, up to its capacity.
struct CapacityTask {
  int tokens = 0;
  int experts = 0;
  int k = 1;
  double capacity_factor = 1.0;
  std::vector<int> ids;
  std::vector<float> weights;
};

struct CapacityAnswer {
  std::int64_t capacity = 0;
  std::vector<int> ids;
  std::vector<float> weights;
  std::vector<std::int64_t> kept_counts;
};

/// Replicas of experts, and shared experts appended; either may be absent.
struct PlacementTask {
  int tokens = 0;
  int experts = 0;
  int k = 1;
  int rank = 0;
  int shared = 0;
  std::vector<int> ids;
  std::vector<float> weights;
  std::vector<std::uint8_t> active;
  std::vector<int> logical_to_physical;  ///< [E, replicas]
  std::vector<int> replica_count;
};

struct PlacementAnswer {
  std::vector<int> ids;  ///< [T, K + shared]
  std::vector<float> weights;
};

/// Routing by Sinkhorn: the K best of d1 C d0 beside each other, weighed by the logits as they are.
struct SinkhornTask {
  int tokens = 0;
  int experts = 0;
  int k = 1;
  float tolerance = 1e-4f;
  Scoring scoring = Scoring::softmax;  ///< of the weights: softmax over all experts, or sigmoid
  std::vector<float> logits;
};

struct SinkhornAnswer {
  std::vector<float> normalised;  ///< [T, E]: d1_j C_tj d0_t
  std::vector<int> experts;
  std::vector<float> weights;
};

struct Subject {
  virtual ~Subject() = default;
  virtual std::string name() const = 0;
  virtual Answer answer(const Task& task) = 0;
  virtual std::vector<std::vector<float>> biases(const BiasTask& task) = 0;
  virtual QuantileAnswer balance_quantiles(const QuantileTask& task) = 0;
  virtual PermuteAnswer permute(const PermuteTask& task) = 0;
  virtual CapacityAnswer limit(const CapacityTask& task) = 0;
  virtual SinkhornAnswer sinkhorn(const SinkhornTask& task) = 0;
  virtual PlacementAnswer place(const PlacementTask& task) = 0;
};

}  // namespace golden
