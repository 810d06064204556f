#include "model.hpp"

#include "experts.hpp"

#include <cmath>

namespace train_moe {
namespace {

using torch::Tensor;
namespace nn = torch::nn;

constexpr int byte_values = 256;

/// Normal values whose products with unit inputs are again of unit size.
Tensor random_matrices(int count, int rows, int columns) {
  return torch::randn({count, rows, columns}) / std::sqrt(static_cast<double>(rows));
}

nn::LayerNorm layer_norm(const Options& options) {
  return nn::LayerNorm(nn::LayerNormOptions({options.width}));
}

nn::Linear linear(int inputs, int outputs) {
  return nn::Linear(nn::LinearOptions(inputs, outputs).bias(false));
}

}  // namespace

MoeLayerImpl::MoeLayerImpl(const Options& options, int layer) : layer_(layer) {
  gate_ = register_module("gate", linear(options.width, options.experts));
  up_ = register_parameter("up", random_matrices(options.experts, options.width, options.hidden));
  down_ = register_parameter("down", random_matrices(options.experts, options.hidden, options.width));
}

Tensor MoeLayerImpl::forward(const Tensor& tokens, const RouteLayer& route, Prediction& prediction) {
  const Routed routed = route(gate_(tokens), layer_);
  prediction.counts.push_back(routed.counts);
  if (routed.loss.defined()) {
    prediction.balancing_loss = prediction.balancing_loss.defined() ? prediction.balancing_loss + routed.loss : routed.loss;
  }
  const SlotOrder order(routed.experts, routed.counts);
  const Tensor hidden = torch::silu(grouped_linear(order.dispatch(tokens), up_, order.offsets()));
  return order.combine(grouped_linear(hidden, down_, order.offsets()), routed.weights);
}

AttentionImpl::AttentionImpl(const Options& options) : heads_(options.heads) {
  query_key_value_ = register_module("query_key_value", linear(options.width, 3 * options.width));
  output_ = register_module("output", linear(options.width, options.width));
  mask_ = torch::full({options.context, options.context}, -INFINITY).triu(1);
}

Tensor AttentionImpl::forward(const Tensor& input) {
  const std::int64_t sequences = input.size(0), length = input.size(1), width = input.size(2);
  const std::int64_t head_width = width / heads_;
  // [3, sequences * heads, length, head_width]
  const Tensor split = query_key_value_(input)
                           .view({sequences, length, 3, heads_, head_width})
                           .permute({2, 0, 3, 1, 4})
                           .reshape({3, sequences * heads_, length, head_width});
  const Tensor mask = mask_.narrow(0, 0, length).narrow(1, 0, length);
  const Tensor similarity =
      torch::baddbmm(mask, split[0], split[1].transpose(1, 2), 1, 1 / std::sqrt(static_cast<double>(head_width)));
  const Tensor mixed = torch::bmm(similarity.softmax(-1), split[2]).view({sequences, heads_, length, head_width});
  return output_(mixed.transpose(1, 2).reshape({sequences, length, width}));
}

BlockImpl::BlockImpl(const Options& options, int layer) {
  attention_norm_ = register_module("attention_norm", layer_norm(options));
  attention_ = register_module("attention", Attention(options));
  expert_norm_ = register_module("expert_norm", layer_norm(options));
  experts_ = register_module("experts", MoeLayer(options, layer));
}

Tensor BlockImpl::forward(Tensor input, const RouteLayer& route, Prediction& prediction) {
  input = input + attention_(attention_norm_(input));
  const Tensor tokens = expert_norm_(input).view({-1, input.size(2)});
  return input + experts_(tokens, route, prediction).view_as(input);
}

ByteModelImpl::ByteModelImpl(const Options& options) {
  byte_ = register_module("byte", nn::Embedding(byte_values, options.width));
  position_ = register_module("position", nn::Embedding(options.context, options.width));
  for (int layer = 0; layer < options.layers; ++layer) {
    blocks_.push_back(register_module("block" + std::to_string(layer), Block(options, layer)));
  }
  norm_ = register_module("norm", layer_norm(options));
  output_ = register_module("output", linear(options.width, byte_values));
}

Prediction ByteModelImpl::forward(const Tensor& bytes, const RouteLayer& route) {
  Prediction prediction;
  Tensor state = byte_(bytes) + position_(torch::arange(bytes.size(1)));
  for (Block& block : blocks_) state = block(state, route, prediction);
  prediction.logits = output_(norm_(state));
  return prediction;
}

}  // namespace train_moe
