// Runs all experts of a layer on the tokens that chose them: rows sorted by expert, one small matrix product for each.
#pragma once

#include "metrics.hpp"

#include <torch/types.h>

namespace train_moe {

/// A slot is one (token, k) pair; slots sorted by expert give every expert a contiguous run of rows.
class SlotOrder {
 public:
  /// experts: int32 [T, K], all in [0, E); counts: [E], how often each occurs in it.
  SlotOrder(const torch::Tensor& experts, const ExpertCounts& counts);

  /// [T, width] tokens to [T K, width] rows sorted by expert.
  [[nodiscard]] torch::Tensor dispatch(const torch::Tensor& tokens) const;

  /// [T K, width] rows back to their tokens, summed with their weights [T, K]: [T, width].
  [[nodiscard]] torch::Tensor combine(const torch::Tensor& rows, const torch::Tensor& weights) const;

  /// Expert e owns the rows offsets[e] to offsets[e + 1] - 1.
  [[nodiscard]] const std::vector<std::int64_t>& offsets() const { return offsets_; }

 private:
  std::int64_t slots_per_token_;
  std::vector<std::int64_t> offsets_;
  torch::Tensor slot_of_row_;
  torch::Tensor row_of_slot_;
};

/// rows[offsets[e] .. offsets[e + 1]) * weights[e] for each e. rows: [R, in], weights: [E, in, out], result: [R, out].
[[nodiscard]] torch::Tensor grouped_linear(const torch::Tensor& rows, const torch::Tensor& weights,
                                           const std::vector<std::int64_t>& offsets);

}  // namespace train_moe
