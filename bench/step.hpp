// The memory of one call of a router in a place (Host or cudaStream_t), and the call.
#pragma once

#include "shapes.hpp"

#include <cstddef>
#include <cstdint>

namespace microbenchmark {

/// Element `index` of a reproducible matrix of about standard normal values: the same bits in every place.
[[nodiscard]] MOEB_HOST_DEVICE inline float pseudo_normal(std::uint64_t index, std::uint64_t seed) {
  std::uint64_t bits = index + seed * 0x9e3779b97f4a7c15u;  // splitmix64
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  bits ^= bits >> 31;
  const auto sum = static_cast<std::int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
  return static_cast<float>(sum - 2 * 0xffff) * (1.0f / 37837.0f);  // four uniform 16-bit numbers deviate by 37837
}

/// Writes element `index` as `type`.
MOEB_HOST_DEVICE inline void store(void* data, mb::DataType type, std::uint64_t index, float value) {
  if (type == mb::DataType::bfloat16) {
    static_cast<mb::bfloat16*>(data)[index] = mb::to_bfloat16(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

/// Fills memory where calls run; specialised for Host here and for cudaStream_t in gpu_timing.cuh.
template <class Place>
struct Filler;

template <>
struct Filler<mb::Host> {
  static void fill(void* data, mb::DataType type, std::size_t size, std::uint64_t seed, const mb::Host& /*host*/) {
    for (std::size_t i = 0; i < size; ++i) store(data, type, i, pseudo_normal(i, seed));
  }
};

/// Inputs, outputs and state of one router's calls of one size. Rows are dense; weights are float32, gradients of the logits' type.
/// The constructor fills the inputs; for backward it also runs forward. Nothing here synchronises.
template <class Router, class Place>
class Step {
 public:
  Step(const Router& router, const Problem& problem, std::uint64_t seed, const Place& place)
      : router_(router),
        problem_(problem),
        logits_(bytes(elements()), place),
        grad_weights_(problem.work == Work::backward ? choices() : 0, place),
        grad_logits_(problem.work == Work::backward ? bytes(elements()) : 0, place),
        weights_(choices(), place),
        ids_(choices(), place),
        bias_(router, problem.experts, layers(), place),
        load_(router, problem.experts, layers(), place),
        saved_(router, shape(), place),
        workspace_(router.workspace_bytes(shape()), place) {
    Filler<Place>::fill(logits_.data(), problem.type, elements(), seed, place);
    if (problem.work == Work::backward) {
      Filler<Place>::fill(grad_weights_.data(), mb::DataType::float32, choices(), seed + 1, place);
      forward(place);
    }
  }

  /// Runs (Host) or enqueues (cudaStream_t) the work once.
  void run(const Place& place) const {
    switch (problem_.work) {
      case Work::route:
        if constexpr (has_balancer) route(place);
        break;
      case Work::forward:
        forward(place);
        break;
      case Work::backward:
        backward(place);
        break;
      case Work::update:
        if constexpr (has_bias) router_.update(bias_.ref(), load_.ref(), workspace(), place);
        break;
    }
  }

  /// route does what forward does where there is nothing to balance.
  static constexpr bool has_balancer = Router::loss_count > 0 || Router::Traits::biases > 0;
  static constexpr bool has_bias = Router::Traits::biases > 0;

 private:
  [[nodiscard]] mb::Shape shape() const {
    return {problem_.work == Work::update ? 0 : problem_.tokens, problem_.experts, 1};
  }
  [[nodiscard]] std::int64_t layers() const { return problem_.work == Work::update ? problem_.tokens : 1; }
  [[nodiscard]] std::size_t elements() const {
    return static_cast<std::size_t>(shape().tokens) * static_cast<std::size_t>(problem_.experts);
  }
  [[nodiscard]] std::size_t choices() const { return static_cast<std::size_t>(shape().tokens * Router::k); }
  [[nodiscard]] std::size_t bytes(std::size_t size) const { return size * mb::size_of(problem_.type); }
  [[nodiscard]] mb::Workspace workspace() const { return {workspace_.data(), workspace_.bytes()}; }
  [[nodiscard]] mb::AnyMatrix matrix(const mb::Buffer<std::byte, Place>& buffer) const {
    return {buffer.data(), problem_.type, problem_.tokens, problem_.experts, problem_.experts};
  }
  [[nodiscard]] mb::MatrixView<float> weights() const { return {weights_.data(), problem_.tokens, Router::k}; }
  [[nodiscard]] mb::MatrixView<std::int32_t> ids() const { return {ids_.data(), problem_.tokens, Router::k}; }
  [[nodiscard]] mb::BiasRef bias() const { return has_bias ? bias_.ref() : mb::BiasRef{}; }

  void route(const Place& place) const {
    router_.route({.logits = matrix(logits_), .experts = ids(), .weights = weights(), .bias = bias()}, workspace(), place);
  }
  void forward(const Place& place) const {
    router_.forward({.logits = matrix(logits_),
                     .experts = ids(),
                     .weights = weights(),
                     .bias = bias(),
                     .load = load_.ref(),
                     .saved = saved_.ref()},
                    workspace(), place);
  }
  void backward(const Place& place) const {
    router_.backward({.logits = matrix(logits_),
                      .experts = ids(),
                      .grad_weights = mb::MatrixView(grad_weights_.data(), problem_.tokens, Router::k),
                      .grad_logits = matrix(grad_logits_),
                      .saved = saved_.ref()},
                     workspace(), place);
  }

  Router router_;
  Problem problem_;
  mb::Buffer<std::byte, Place> logits_;
  mb::Buffer<float, Place> grad_weights_;
  mb::Buffer<std::byte, Place> grad_logits_;
  mb::Buffer<float, Place> weights_;
  mb::Buffer<std::int32_t, Place> ids_;
  mb::Bias<Place> bias_;
  mb::Load<Place> load_;
  mb::Saved<Place> saved_;
  mb::Buffer<std::byte, Place> workspace_;
};

}  // namespace microbenchmark
