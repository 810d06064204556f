// The memory of one call on logits beside a router, in a place (Host or cudaStream_t), and the call.
#pragma once

#include "step.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace microbenchmark {

/// What is timed.
enum class LogitsWork : std::uint8_t {
  gumbel_noise,
  normal_noise,
  sinkhorn,     ///< as many iterations as LogitsProblem says, whatever they change
  smooth_load,  ///< of noisy top-k gating; with its backward pass, which has the gradients of logits and noisy logits
  smooth_load_backward
};
inline constexpr LogitsWork all_logits_work[] = {LogitsWork::gumbel_noise, LogitsWork::normal_noise, LogitsWork::sinkhorn,
                                                 LogitsWork::smooth_load, LogitsWork::smooth_load_backward};

struct LogitsProblem {
  static constexpr int iterations = 10;
  static constexpr int top_k = 2;  ///< of noisy top-k gating
  LogitsWork work = LogitsWork::gumbel_noise;
  std::int64_t tokens = 0;
  int experts = 0;

  /// "gumbel_noise/float32/E256/T8192".
  [[nodiscard]] std::string name() const {
    constexpr const char* names[] = {"gumbel_noise", "normal_noise", "sinkhorn", "smooth_load", "smooth_load_backward"};
    return std::string(names[static_cast<int>(work)]) + "/float32/E" + std::to_string(experts) + "/T" +
           std::to_string(tokens);
  }
  [[nodiscard]] bool reads_noisy() const {
    return work == LogitsWork::smooth_load || work == LogitsWork::smooth_load_backward;
  }
  /// Bytes that the work must move: logits read once, by each iteration, noisy ones read or written once, gradients of both written once.
  [[nodiscard]] double bytes() const {
    const double matrix = static_cast<double>(tokens) * experts * 4;
    const int matrices = work == LogitsWork::sinkhorn ? iterations : work == LogitsWork::smooth_load_backward ? 4 : 2;
    return matrix * matrices;
  }
};

/// Inputs and outputs of one call; the constructor fills them.
template <class Place>
class LogitsStep {
 public:
  LogitsStep(const LogitsProblem& problem, std::uint64_t seed, const Place& place)
      : problem_(problem),
        logits_(static_cast<std::size_t>(problem.tokens * problem.experts), place),
        noisy_(problem.work == LogitsWork::sinkhorn ? 0 : logits_.size(), place),
        of_experts_(static_cast<std::size_t>(problem.experts), place),
        load_(of_experts_.size(), place),
        grad_logits_(problem.work == LogitsWork::smooth_load_backward ? logits_.size() : 0, place),
        grad_noisy_(grad_logits_.size(), place),
        workspace_(mb::sinkhorn_workspace_bytes(problem.experts), place) {
    Filler<Place>::fill(logits_.data(), mb::DataType::float32, logits_.size(), seed, place);
    if (!problem.reads_noisy()) return;
    add_noise(mb::NoiseKind::normal, place);
    mb::smooth_load({.choice = choice(), .load = {load_.data(), problem.experts}}, {}, place);
    mb::load_loss({.load = {load_.data(), problem.experts}, .grad_load = {of_experts_.data(), problem.experts}}, {}, place);
  }

  /// Runs (Host) or enqueues (cudaStream_t) the work once.
  void run(const Place& place) const {
    switch (problem_.work) {
      case LogitsWork::gumbel_noise:
        return add_noise(mb::NoiseKind::gumbel, place);
      case LogitsWork::normal_noise:
        return add_noise(mb::NoiseKind::normal, place);
      case LogitsWork::sinkhorn:
        return mb::sinkhorn({.logits = matrix(logits_),
                             .log_scale = {of_experts_.data(), problem_.experts},
                             .tolerance = 0,
                             .max_iterations = LogitsProblem::iterations},
                            {workspace_.data(), workspace_.bytes()}, place);
      case LogitsWork::smooth_load:
        return mb::smooth_load({.choice = choice(), .load = {load_.data(), problem_.experts}}, {}, place);
      case LogitsWork::smooth_load_backward:
        return mb::smooth_load_backward({.choice = choice(),
                                         .grad_load = {of_experts_.data(), problem_.experts},
                                         .grad_logits = matrix(grad_logits_),
                                         .grad_noisy = matrix(grad_noisy_)},
                                        {}, place);
    }
  }

 private:
  [[nodiscard]] mb::MatrixView<float> matrix(const mb::Buffer<float, Place>& buffer) const {
    return {buffer.data(), problem_.tokens, problem_.experts};
  }
  void add_noise(mb::NoiseKind kind, const Place& place) const {
    mb::add_noise({.logits = matrix(logits_), .noisy = matrix(noisy_), .noise = {.kind = kind}}, {}, place);
  }

  [[nodiscard]] mb::NoisyChoice choice() const {
    return {.logits = matrix(logits_), .noisy = matrix(noisy_), .top_k = LogitsProblem::top_k};
  }

  LogitsProblem problem_;
  mb::Buffer<float, Place> logits_;
  mb::Buffer<float, Place> noisy_;
  mb::Buffer<float, Place> of_experts_;  ///< scales, or gradients of loads
  mb::Buffer<std::int64_t, Place> load_;
  mb::Buffer<float, Place> grad_logits_;
  mb::Buffer<float, Place> grad_noisy_;
  mb::Buffer<std::byte, Place> workspace_;
};

}  // namespace microbenchmark
