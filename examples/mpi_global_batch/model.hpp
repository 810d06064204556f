// A byte-level language model with one Mixture-of-Experts layer, small enough to be written by hand: the two last bytes' embeddings and
// those of the bytes before, as a bag, are added; the router chooses 2 of 8 linear experts, whose weighted outputs are the logits of the next byte.
#pragma once

#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace example {

namespace mb = moe_balance;

inline constexpr int context = 24;  // bytes that the model sees
inline constexpr int tables = 3;    // of embeddings: for the last byte, the one before, and all others
inline constexpr float bag = 0.3f;  // weight of the others
inline constexpr int symbols = 96;  // printable ASCII; all other bytes are one symbol
inline constexpr int width = 24;    // numbers per embedding
inline constexpr int experts = 8;
inline constexpr int chosen = 2;

/// One micro-batch: for each token its context and the byte that follows, as symbols.
struct Batch {
  std::vector<int> before;  ///< [T, context], the last byte first
  std::vector<int> next;    ///< [T]
  [[nodiscard]] int tokens() const { return static_cast<int>(next.size()); }
};

/// All weights in one vector, so that one all-reduce serves all gradients; the same on every rank.
class Model {
 public:
  explicit Model(std::uint64_t seed) : weights_(size()), gradients_(size()), squares_(size(), 1e-8f) {
    for (float& weight : weights_) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      weight = (static_cast<float>(seed >> 40) * 0x1p-24f - 0.5f) * 0.4f;
    }
  }

  /// Embeds the batch and writes the router's logits [T, experts].
  void route(const Batch& batch, std::vector<float>& logits) {
    const auto tokens = static_cast<std::size_t>(batch.tokens());
    hidden_.assign(tokens * width, 0.0f);
    logits.assign(tokens * experts, 0.0f);
    for (std::size_t t = 0; t < tokens; ++t) {
      float* const hidden = hidden_.data() + t * width;
      for (int c = 0; c < context; ++c) {
        const float* const embedding = weights_.data() + embedding_at(batch, t, c);
        for (int d = 0; d < width; ++d) hidden[d] += weight_of(c) * embedding[d];
      }
      multiply(weights_.data() + router_at(), hidden, experts, logits.data() + t * experts);
    }
  }

  /// The mean cross-entropy of the next byte; its gradients with respect to the weights, but for the router's part, which `grad_weights`
  /// [T, chosen] leads to.
  float learn(const Batch& batch, const std::vector<std::int32_t>& ids, const std::vector<float>& weights,
              std::vector<float>& grad_weights) {
    const auto tokens = static_cast<std::size_t>(batch.tokens());
    gradients_.assign(size(), 0.0f);
    grad_hidden_.assign(tokens * width, 0.0f);
    double loss = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      const float* const hidden = hidden_.data() + t * width;
      float outputs[chosen][symbols] = {};
      float gradient[symbols] = {};
      for (std::size_t k = 0; k < chosen; ++k) {
        multiply(weights_.data() + expert_at(ids[t * chosen + k]), hidden, symbols, outputs[k]);
        for (int s = 0; s < symbols; ++s) gradient[s] += weights[t * chosen + k] * outputs[k][s];
      }
      loss += cross_entropy(gradient, batch.next[t], static_cast<float>(tokens));
      for (std::size_t k = 0; k < chosen; ++k) {
        const std::size_t expert = expert_at(ids[t * chosen + k]);
        float sum = 0;
        for (int s = 0; s < symbols; ++s) sum += gradient[s] * outputs[k][s];
        grad_weights[t * chosen + k] = sum;
        backward(expert, hidden, gradient, weights[t * chosen + k], symbols, grad_hidden_.data() + t * width);
      }
    }
    return static_cast<float>(loss / static_cast<double>(tokens));
  }

  /// Adds the gradients of router and embeddings.
  void learn_routing(const Batch& batch, const std::vector<float>& grad_logits) {
    for (std::size_t t = 0; t < batch.next.size(); ++t) {
      float* const grad_hidden = grad_hidden_.data() + t * width;
      backward(router_at(), hidden_.data() + t * width, grad_logits.data() + t * experts, 1.0f, experts, grad_hidden);
      for (int c = 0; c < context; ++c) {
        float* const embedding = gradients_.data() + embedding_at(batch, t, c);
        for (int d = 0; d < width; ++d) embedding[d] += weight_of(c) * grad_hidden[d];
      }
    }
  }

  [[nodiscard]] std::vector<float>& gradients() { return gradients_; }

  /// Adagrad, from gradients that are means over ranks.
  void step(float rate) {
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      squares_[i] += gradients_[i] * gradients_[i];
      weights_[i] -= rate * gradients_[i] / std::sqrt(squares_[i]);
    }
  }

 private:
  static std::size_t size() { return expert_at(experts); }
  /// Position 0 is the last byte.
  static float weight_of(int position) { return position < tables - 1 ? 1.0f : bag; }
  static std::size_t embedding_at(const Batch& batch, std::size_t token, int position) {
    const int symbol = batch.before[token * context + static_cast<std::size_t>(position)];
    return static_cast<std::size_t>(std::min(position, tables - 1) * symbols + symbol) * width;
  }
  static std::size_t router_at() { return static_cast<std::size_t>(tables) * symbols * width; }
  static std::size_t expert_at(int expert) {
    return router_at() + static_cast<std::size_t>(width) * (experts + static_cast<std::size_t>(expert) * symbols);
  }

  /// out[o] += sum_d matrix[d, o] in[d].
  static void multiply(const float* matrix, const float* in, int outputs, float* out) {
    for (int d = 0; d < width; ++d) {
      for (int o = 0; o < outputs; ++o) out[o] += matrix[d * outputs + o] * in[d];
    }
  }

  /// The gradients of `multiply`, times `scale`: of the matrix at `at`, and of its input.
  void backward(std::size_t at, const float* in, const float* grad_out, float scale, int outputs, float* grad_in) {
    for (int d = 0; d < width; ++d) {
      const float* const matrix = weights_.data() + at + static_cast<std::size_t>(d * outputs);
      float* const grad_matrix = gradients_.data() + at + static_cast<std::size_t>(d * outputs);
      float sum = 0;
      for (int o = 0; o < outputs; ++o) {
        grad_matrix[o] += scale * in[d] * grad_out[o];
        sum += matrix[o] * grad_out[o];
      }
      grad_in[d] += scale * sum;
    }
  }

  /// -log softmax(logits)[next]; the logits become its gradient, divided by `tokens`.
  static double cross_entropy(float (&logits)[symbols], int next, float tokens) {
    float largest = logits[0];
    for (const float logit : logits) largest = std::max(largest, logit);
    float sum = 0;
    for (const float logit : logits) sum += std::exp(logit - largest);
    const float loss = std::log(sum) + largest - logits[next];
    for (float& logit : logits) logit = std::exp(logit - largest) / sum / tokens;
    logits[next] -= 1.0f / tokens;
    return static_cast<double>(loss);
  }

  std::vector<float> weights_, gradients_, squares_, hidden_, grad_hidden_;
};

}  // namespace example
