// A Mixture-of-Experts layer without any framework: route, permute, an MLP per expert, combine, and the whole backward pass.
// `Backend` says where it runs and how it multiplies matrices: eigen_backend.hpp (CPU) or cublas_backend.cuh (GPU).
#pragma once

#include "problem.hpp"

#include <moe_balance/moe_balance.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moe_layer {

namespace mb = moe_balance;

/// Forward: logits = x gate^T; each token's K experts and weights; rows grouped by expert; hidden = rows up[e]; active = silu(hidden);
/// outputs = active down[e]; y = sum over k of weight * output. Backward: gradients of sum(y * grad_y) + balancing loss.
template <class Backend>
class Layer {
 public:
  Layer(const Backend& backend, const Problem& problem)
      : backend_(backend),
        shape_(problem.shape),
        x_(backend.array(problem.x)),
        gate_(backend.array(problem.gate)),
        up_(backend.array(problem.up)),
        down_(backend.array(problem.down)),
        rows_(mb::permutation_rows(shape_.tokens, K, shape_.experts)),
        logits_(floats(shape_.tokens * shape_.experts)),
        weights_(floats(shape_.tokens * K)),
        ids_(backend.array(std::vector<std::int32_t>(size(shape_.tokens * K)))),
        offsets_(longs(shape_.experts + 1)),
        row_of_slot_(longs(shape_.tokens * K)),
        slot_of_row_(longs(rows_)),
        inputs_(floats(rows_ * shape_.hidden)),
        hidden_(floats(rows_ * shape_.ffn)),
        active_(floats(rows_ * shape_.ffn)),
        outputs_(floats(rows_ * shape_.hidden)),
        y_(floats(shape_.tokens * shape_.hidden)),
        saved_(longs(static_cast<std::int64_t>(router_.saved_bytes(router_shape()) / sizeof(std::int64_t)))),
        scratch_(backend.array(std::vector<std::max_align_t>(
            mb::permutation_workspace_bytes(shape_.tokens, K, shape_.experts) / sizeof(std::max_align_t) + 1))) {}

  /// Returns y [T, H].
  std::vector<float> forward() {
    const auto place = backend_.place();
    const std::int64_t t = shape_.tokens;
    backend_.multiply({t, shape_.experts, shape_.hidden}, x_.data(), false, gate_.data(), true, logits_.data());
    router_.forward({.logits = logits(), .experts = {ids_.data(), t, K}, .weights = weights(), .saved = saved()}, {}, place);
    mb::permutation({.experts = ids(),
                     .offsets = {offsets_.data(), shape_.experts + 1},
                     .row_of_slot = {row_of_slot_.data(), t, K},
                     .slot_of_row = {slot_of_row_.data(), rows_}},
                    {scratch_.data(), mb::permutation_workspace_bytes(t, K, shape_.experts)}, place);
    mb::permute({.hidden = matrix(x_, t),
                 .slot_of_row = slot_of_row(),
                 .permuted = matrix(inputs_, rows_),
                 .top_k = K,
                 .row_of_slot = row_of_slot()},
                {}, place);
    // A grouped matrix product would read the offsets where they are; this loop of products needs them on the host.
    bounds_ = offsets_.values();
    for (std::int64_t e = 0; e < shape_.experts; ++e) {
      const std::int64_t first = bounds_[size(e)];
      const std::int64_t count = bounds_[size(e + 1)] - first;
      if (count == 0) continue;
      backend_.multiply({count, shape_.ffn, shape_.hidden}, row(inputs_, first, shape_.hidden), false, up(e), false,
                        row(hidden_, first, shape_.ffn));
      backend_.silu(count * shape_.ffn, row(hidden_, first, shape_.ffn), row(active_, first, shape_.ffn));
      backend_.multiply({count, shape_.hidden, shape_.ffn}, row(active_, first, shape_.ffn), false, down(e), false,
                        row(outputs_, first, shape_.hidden));
    }
    mb::combine(
        {.permuted = matrix(outputs_, rows_), .row_of_slot = row_of_slot(), .combined = matrix(y_, t), .weights = weights()},
        {}, place);
    return y_.values();
  }

  Gradients backward(const std::vector<float>& grad_y_values) {
    const auto place = backend_.place();
    const std::int64_t t = shape_.tokens;
    Array grad_y = backend_.array(grad_y_values);
    Array grad_outputs = floats(rows_ * shape_.hidden);
    Array grad_hidden = floats(rows_ * shape_.ffn);
    Array grad_inputs = floats(rows_ * shape_.hidden);
    Array grad_weights = floats(t * K);
    Array grad_logits = floats(t * shape_.experts);
    Array grad_x = floats(t * shape_.hidden);
    Array grad_gate = floats(shape_.experts * shape_.hidden);
    Array grad_up = floats(shape_.experts * shape_.hidden * shape_.ffn);
    Array grad_down = floats(shape_.experts * shape_.hidden * shape_.ffn);
    mb::combine_backward({.grad_combined = matrix(grad_y, t),
                          .row_of_slot = row_of_slot(),
                          .slot_of_row = slot_of_row(),
                          .grad_permuted = matrix(grad_outputs, rows_),
                          .weights = weights(),
                          .permuted = matrix(outputs_, rows_),
                          .grad_weights = mb::MatrixView<float>(grad_weights.data(), t, K)},
                         {}, place);
    for (std::int64_t e = 0; e < shape_.experts; ++e) {
      const std::int64_t first = bounds_[size(e)];
      const std::int64_t count = bounds_[size(e + 1)] - first;
      if (count == 0) continue;
      const std::int64_t matrix_size = e * shape_.hidden * shape_.ffn;
      float* outputs = row(grad_outputs, first, shape_.hidden);
      float* hidden = row(grad_hidden, first, shape_.ffn);
      backend_.multiply({shape_.ffn, shape_.hidden, count}, row(active_, first, shape_.ffn), true, outputs, false,
                        grad_down.data() + matrix_size);
      backend_.multiply({count, shape_.ffn, shape_.hidden}, outputs, false, down(e), true, hidden);
      backend_.silu_backward(count * shape_.ffn, row(hidden_, first, shape_.ffn), hidden);
      backend_.multiply({shape_.hidden, shape_.ffn, count}, row(inputs_, first, shape_.hidden), true, hidden, false,
                        grad_up.data() + matrix_size);
      backend_.multiply({count, shape_.hidden, shape_.ffn}, hidden, false, up(e), true,
                        row(grad_inputs, first, shape_.hidden));
    }
    mb::permute_backward(
        {.grad_permuted = matrix(grad_inputs, rows_), .row_of_slot = row_of_slot(), .grad_hidden = matrix(grad_x, t)}, {},
        place);
    router_.backward({.logits = logits(),
                      .experts = ids(),
                      .grad_weights = mb::MatrixView<const float>(grad_weights.data(), t, K),
                      .grad_logits = mb::MatrixView<float>(grad_logits.data(), t, shape_.experts),
                      .saved = saved()},
                     {}, place);
    backend_.multiply({shape_.experts, shape_.hidden, t}, grad_logits.data(), true, x_.data(), false, grad_gate.data());
    backend_.multiply({t, shape_.hidden, shape_.experts}, grad_logits.data(), false, gate_.data(), false, grad_x.data(),
                      true);
    return {grad_x.values(), grad_gate.values(), grad_up.values(), grad_down.values()};
  }

  /// The value of the balancing loss of the last forward.
  float loss() {
    Array value = floats(1);
    router_.loss({.saved = saved(), .experts = static_cast<int>(shape_.experts), .value = value.data()}, {},
                 backend_.place());
    return value.values()[0];
  }

  std::vector<std::int32_t> chosen_experts() const { return ids_.values(); }

 private:
  using Array = typename Backend::template Array<float>;
  using Longs = typename Backend::template Array<std::int64_t>;

  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  Array floats(std::int64_t n) const { return backend_.array(std::vector<float>(size(n))); }
  Longs longs(std::int64_t n) const { return backend_.array(std::vector<std::int64_t>(size(n))); }
  mb::Shape router_shape() const { return {shape_.tokens, static_cast<int>(shape_.experts)}; }
  mb::SavedRef saved() { return {saved_.data(), router_.saved_bytes(router_shape())}; }
  mb::MatrixView<float> matrix(Array& array, std::int64_t rows) { return {array.data(), rows, shape_.hidden}; }
  mb::MatrixView<float> weights() { return {weights_.data(), shape_.tokens, K}; }
  mb::MatrixView<const float> logits() { return {logits_.data(), shape_.tokens, shape_.experts}; }
  mb::MatrixView<const std::int32_t> ids() { return {ids_.data(), shape_.tokens, K}; }
  mb::MatrixView<const std::int64_t> row_of_slot() { return {row_of_slot_.data(), shape_.tokens, K}; }
  mb::VectorView<const std::int64_t> slot_of_row() { return {slot_of_row_.data(), rows_}; }
  static float* row(Array& array, std::int64_t index, std::int64_t columns) { return array.data() + index * columns; }
  const float* up(std::int64_t e) { return up_.data() + e * shape_.hidden * shape_.ffn; }
  const float* down(std::int64_t e) { return down_.data() + e * shape_.hidden * shape_.ffn; }

  Backend backend_;
  LayerShape shape_;
  mb::Router<mb::Softmax, mb::TopK<K>, mb::AuxLoss> router_{
      mb::Softmax{}, mb::TopK<K>{}, mb::AuxLoss{.coefficient = loss_coefficient}, {}};
  Array x_, gate_, up_, down_;
  std::int64_t rows_;
  Array logits_, weights_;
  typename Backend::template Array<std::int32_t> ids_;
  Longs offsets_, row_of_slot_, slot_of_row_;
  Array inputs_, hidden_, active_, outputs_, y_;
  Longs saved_;
  typename Backend::template Array<std::max_align_t> scratch_;
  std::vector<std::int64_t> bounds_;
};

}  // namespace moe_layer
