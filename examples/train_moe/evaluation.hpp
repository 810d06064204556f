// The model on held-out bytes, and what training shares with that.
#pragma once

#include "model.hpp"
#include "results.hpp"
#include "text.hpp"

namespace train_moe {

/// A batch as the model takes it: each byte and the one that follows it.
struct Sequences {
  torch::Tensor inputs;   ///< int64 [sequences, length - 1]
  torch::Tensor targets;  ///< int64 [sequences, length - 1]
};

[[nodiscard]] Sequences to_tensors(const Batch& batch);

/// Mean over all bytes, in nats. logits: [sequences, length, 256].
[[nodiscard]] torch::Tensor cross_entropy(const torch::Tensor& logits, const torch::Tensor& targets);

/// Predicts held-out bytes of every domain; leaves parameters, bias and load as they are.
[[nodiscard]] std::vector<DomainResult> evaluate(ByteModel model, Balancing& balancing, const std::vector<Domain>& domains,
                                                 const Options& options);

}  // namespace train_moe
