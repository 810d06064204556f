// The layer on the CPU, with Eigen's matrix products.
#pragma once

#include "product_shape.hpp"

#include <moe_balance/moe_balance.hpp>

#include <Eigen/Core>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace moe_layer {

class EigenBackend {
 public:
  static constexpr const char* name = "CPU (Eigen)";

  template <class T>
  class Array {
   public:
    explicit Array(std::vector<T> values) : values_(std::move(values)) {}
    T* data() { return values_.data(); }
    std::vector<T> values() const { return values_; }

   private:
    std::vector<T> values_;
  };

  template <class T>
  Array<T> array(std::vector<T> values) const {
    return Array<T>(std::move(values));
  }
  moe_balance::Host place() const { return {}; }

  /// Row-major; a transposed operand is stored as its transpose. Not both: the layer has no such product.
  void multiply(const ProductShape& shape, const float* a, bool a_transposed, const float* b, bool b_transposed, float* c,
                bool add = false) const {
    using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    using Input = Eigen::Map<const Matrix>;
    const Input left = a_transposed ? Input(a, shape.inner, shape.rows) : Input(a, shape.rows, shape.inner);
    const Input right = b_transposed ? Input(b, shape.columns, shape.inner) : Input(b, shape.inner, shape.columns);
    Eigen::Map<Matrix> result(c, shape.rows, shape.columns);
    if (!add) result.setZero();
    if (a_transposed)
      result.noalias() += left.transpose() * right;
    else if (b_transposed)
      result.noalias() += left * right.transpose();
    else
      result.noalias() += left * right;
  }

  void silu(std::int64_t count, const float* x, float* y) const {
    for (std::int64_t i = 0; i < count; ++i) y[i] = x[i] / (1.0f + std::exp(-x[i]));
  }
  /// grad becomes grad * derivative at x.
  void silu_backward(std::int64_t count, const float* x, float* grad) const {
    for (std::int64_t i = 0; i < count; ++i) {
      const float sigmoid = 1.0f / (1.0f + std::exp(-x[i]));
      grad[i] *= sigmoid + x[i] * sigmoid * (1.0f - sigmoid);
    }
  }
};

}  // namespace moe_layer
