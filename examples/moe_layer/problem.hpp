// Sizes, parameters and gradients of the layer, in host memory. All matrices are row-major.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace moe_layer {

inline constexpr int K = 2;
inline constexpr float loss_coefficient = 1e-2f;

struct LayerShape {
  std::int64_t tokens = 96;
  std::int64_t experts = 8;
  std::int64_t hidden = 32;
  std::int64_t ffn = 48;
};

struct Problem {
  LayerShape shape;
  std::vector<float> x;       ///< [T, H]
  std::vector<float> gate;    ///< [E, H]
  std::vector<float> up;      ///< [E, H, F]
  std::vector<float> down;    ///< [E, F, H]
  std::vector<float> grad_y;  ///< [T, H]
};

struct Gradients {
  std::vector<float> x;
  std::vector<float> gate;
  std::vector<float> up;
  std::vector<float> down;
};

/// Normal values from a fixed seed; parameters of the size that keeps activations near 1.
inline Problem random_problem(const LayerShape& shape) {
  std::mt19937_64 random(7);
  const auto normals = [&](std::int64_t count, double deviation) {
    std::normal_distribution<double> normal(0.0, deviation);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = static_cast<float>(normal(random));
    return values;
  };
  const double h = static_cast<double>(shape.hidden);
  const double f = static_cast<double>(shape.ffn);
  const std::int64_t parameters = shape.experts * shape.hidden * shape.ffn;
  Problem problem{shape, {}, {}, {}, {}, {}};
  problem.x = normals(shape.tokens * shape.hidden, 1.0);
  problem.gate = normals(shape.experts * shape.hidden, 1.0 / std::sqrt(h));
  problem.up = normals(parameters, 1.0 / std::sqrt(h));
  problem.down = normals(parameters, 1.0 / std::sqrt(f));
  problem.grad_y = normals(shape.tokens * shape.hidden, 1.0);
  return problem;
}

}  // namespace moe_layer
