// A byte-level transformer whose feed-forward blocks are mixtures of experts.
#pragma once

#include "balancing.hpp"

#include <torch/nn.h>

#include <functional>

namespace train_moe {

/// Routes [T, experts] logits of a layer: Balancing::forward in training, Balancing::route in evaluation.
using RouteLayer = std::function<Routed(const torch::Tensor& logits, int layer)>;

/// What the model says about a micro-batch.
struct Prediction {
  torch::Tensor logits;          ///< [sequences, length, 256]: of the next byte
  torch::Tensor balancing_loss;  ///< [1]: sum over layers; undefined in evaluation
  LayerCounts counts;            ///< [layers][experts]
};

/// K of E small feed-forward networks for every token, weighted by the router.
class MoeLayerImpl : public torch::nn::Module {
 public:
  MoeLayerImpl(const Options& options, int layer);
  /// Adds the tokens' counts and balancing loss to `prediction`. tokens: [T, width]; result: [T, width].
  torch::Tensor forward(const torch::Tensor& tokens, const RouteLayer& route, Prediction& prediction);

 private:
  int layer_;
  torch::nn::Linear gate_{nullptr};
  torch::Tensor up_;    ///< [experts, width, hidden]
  torch::Tensor down_;  ///< [experts, hidden, width]
};
TORCH_MODULE(MoeLayer);

/// Causal multi-head attention.
class AttentionImpl : public torch::nn::Module {
 public:
  explicit AttentionImpl(const Options& options);
  torch::Tensor forward(const torch::Tensor& input);  ///< [sequences, length, width], in and out

 private:
  int heads_;
  torch::nn::Linear query_key_value_{nullptr};
  torch::nn::Linear output_{nullptr};
  torch::Tensor mask_;  ///< [context, context]: 0 or -infinity
};
TORCH_MODULE(Attention);

/// x + attention(norm(x)), then x + experts(norm(x)).
class BlockImpl : public torch::nn::Module {
 public:
  BlockImpl(const Options& options, int layer);
  torch::Tensor forward(torch::Tensor input, const RouteLayer& route, Prediction& prediction);

 private:
  torch::nn::LayerNorm attention_norm_{nullptr};
  torch::nn::LayerNorm expert_norm_{nullptr};
  Attention attention_{nullptr};
  MoeLayer experts_{nullptr};
};
TORCH_MODULE(Block);

class ByteModelImpl : public torch::nn::Module {
 public:
  explicit ByteModelImpl(const Options& options);
  /// bytes: int64 [sequences, length], length at most the context.
  Prediction forward(const torch::Tensor& bytes, const RouteLayer& route);

 private:
  torch::nn::Embedding byte_{nullptr};
  torch::nn::Embedding position_{nullptr};
  std::vector<Block> blocks_;
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Linear output_{nullptr};
};
TORCH_MODULE(ByteModel);

}  // namespace train_moe
