// The memory of one call on logits before a router sees them, in a place (Host or cudaStream_t), and the call.
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
  sinkhorn  ///< as many iterations as LogitsProblem says, whatever they change
};
inline constexpr LogitsWork all_logits_work[] = {LogitsWork::gumbel_noise, LogitsWork::normal_noise, LogitsWork::sinkhorn};

struct LogitsProblem {
  static constexpr int iterations = 10;
  LogitsWork work = LogitsWork::gumbel_noise;
  std::int64_t tokens = 0;
  int experts = 0;

  /// "gumbel_noise/float32/E256/T8192".
  [[nodiscard]] std::string name() const {
    constexpr const char* names[] = {"gumbel_noise", "normal_noise", "sinkhorn"};
    return std::string(names[static_cast<int>(work)]) + "/float32/E" + std::to_string(experts) + "/T" +
           std::to_string(tokens);
  }
  /// Bytes that the work must move: logits read once, by each iteration, and noisy ones written once.
  [[nodiscard]] double bytes() const {
    const double matrix = static_cast<double>(tokens) * experts * 4;
    return matrix * (work == LogitsWork::sinkhorn ? iterations : 2);
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
        log_scale_(static_cast<std::size_t>(problem.experts), place),
        workspace_(mb::sinkhorn_workspace_bytes(problem.experts), place) {
    Filler<Place>::fill(logits_.data(), mb::DataType::float32, logits_.size(), seed, place);
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
                             .log_scale = {log_scale_.data(), problem_.experts},
                             .tolerance = 0,
                             .max_iterations = LogitsProblem::iterations},
                            {workspace_.data(), workspace_.bytes()}, place);
    }
  }

 private:
  [[nodiscard]] mb::MatrixView<float> matrix(const mb::Buffer<float, Place>& buffer) const {
    return {buffer.data(), problem_.tokens, problem_.experts};
  }
  void add_noise(mb::NoiseKind kind, const Place& place) const {
    mb::add_noise({.logits = matrix(logits_), .noisy = matrix(noisy_), .noise = {.kind = kind}}, {}, place);
  }

  LogitsProblem problem_;
  mb::Buffer<float, Place> logits_;
  mb::Buffer<float, Place> noisy_;
  mb::Buffer<float, Place> log_scale_;
  mb::Buffer<std::byte, Place> workspace_;
};

}  // namespace microbenchmark
