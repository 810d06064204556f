// Runs the layer on a backend, prints how far it is from the reference, and says whether that is near enough.
#pragma once

#include "layer.hpp"
#include "reference.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

namespace moe_layer {

/// Largest difference relative to the largest value; infinite where a value is not finite.
inline double difference(const std::vector<float>& got, const std::vector<double>& want) {
  double largest = 0;
  double apart = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(got[i])) return HUGE_VAL;
    largest = std::max(largest, std::abs(want[i]));
    apart = std::max(apart, std::abs(static_cast<double>(got[i]) - want[i]));
  }
  return apart / largest;
}

inline bool report(const char* what, double apart) {
  constexpr double allowed = 1e-5;
  const bool near = apart <= allowed;
  std::printf("  %-16s differs by %.1e of its largest value%s\n", what, apart, near ? "" : "   TOO MUCH");
  return near;
}

/// 0 where everything agrees with the reference, else 1.
template <class Backend>
int check_layer(const Backend& backend, const LayerShape& shape) {
  const Problem problem = random_problem(shape);
  const Reference want = DenseLayer(problem).run();
  Layer<Backend> layer(backend, problem);
  const std::vector<float> y = layer.forward();
  const Gradients gradients = layer.backward(problem.grad_y);
  std::printf("%s: %lld tokens, %lld experts, K = %d, hidden %lld, inner %lld\n", Backend::name,
              static_cast<long long>(shape.tokens), static_cast<long long>(shape.experts), K,
              static_cast<long long>(shape.hidden), static_cast<long long>(shape.ffn));
  bool good = layer.chosen_experts() == want.experts;
  std::printf("  %s\n", good ? "every token has the experts of the reference" : "experts differ from the reference   WRONG");
  good = report("output", difference(y, want.y)) && good;
  good = report("balancing loss", std::abs(static_cast<double>(layer.loss()) - want.loss) / want.loss) && good;
  good = report("grad of x", difference(gradients.x, want.grad_x)) && good;
  good = report("grad of gate", difference(gradients.gate, want.grad_gate)) && good;
  good = report("grad of up", difference(gradients.up, want.grad_up)) && good;
  good = report("grad of down", difference(gradients.down, want.grad_down)) && good;
  const bool repeats = layer.forward() == y;
  if (!repeats) std::printf("  a second forward gave other bits   WRONG\n");
  return good && repeats ? 0 : 1;
}

}  // namespace moe_layer
