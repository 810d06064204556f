// The shapes that benchmarks cover, and the few of them that run when no filter asks for others.
#pragma once

#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <string>

namespace microbenchmark {

namespace mb = moe_balance;

inline constexpr std::int64_t token_counts[] = {1, 16, 64, 512, 4096, 8192, 32768, 131072};
inline constexpr int expert_counts[] = {8, 64, 128, 160, 256, 384, 512, 896};
inline constexpr mb::DataType element_types[] = {mb::DataType::float32, mb::DataType::bfloat16};
inline constexpr std::int64_t decode_tokens = 64;  ///< calls of at most this many tokens are also timed inside a CUDA graph
inline constexpr std::int64_t update_layers =
    61;  ///< update is timed on the state of a model of this many layers (DeepSeek-V3)

/// What is timed.
enum class Work : std::uint8_t { route, forward, backward, update };

[[nodiscard]] inline const char* name_of(Work work) {
  constexpr const char* names[] = {"route", "forward", "backward", "update"};
  return names[static_cast<int>(work)];
}

/// One size of one problem. For Work::update, `tokens` counts layers.
struct Problem {
  Work work = Work::forward;
  std::int64_t tokens = 0;
  int experts = 0;
  mb::DataType type = mb::DataType::float32;
};

/// "forward/NAME/float32/E256/T8192"; for update "update/NAME/E256/L61".
[[nodiscard]] inline std::string name_of(const Problem& problem, const std::string& router) {
  const std::string experts = "/E" + std::to_string(problem.experts);
  if (problem.work == Work::update) return "update/" + router + experts + "/L" + std::to_string(problem.tokens);
  return std::string(name_of(problem.work)) + "/" + router + "/" + mb::name_of(problem.type) + experts + "/T" +
         std::to_string(problem.tokens);
}

/// Bytes that the work must move: inputs read once, outputs written once. K ids of 4 bytes and K float32 weights per token; vectors
/// of E elements are left out, except for update, which reads and writes nothing else, and so are histograms of `bins` in forward, whose cells stay in cache.
[[nodiscard]] inline double bytes_of(const Problem& problem, int k, int bins) {
  const double rows = static_cast<double>(problem.tokens);
  const double matrix = rows * problem.experts * static_cast<double>(mb::size_of(problem.type));
  if (problem.work == Work::update)  // load: read, cleared; bias: read, written
    return rows * problem.experts * 2 * (8 * (1 + bins) + 4);
  return matrix * (problem.work == Work::backward ? 2 : 1) + rows * k * 8;
}

/// Whether `router` accepts this number of experts.
template <class Router>
[[nodiscard]] bool serves(const Router& router, int experts) {
  if (experts < Router::k + (Router::Traits::reads_margins ? 1 : 0)) return false;
  try {
    router.top_k.check("benchmark", experts);
    return true;
  } catch (const mb::InvalidArgument&) {
    return false;
  }
}

}  // namespace microbenchmark
