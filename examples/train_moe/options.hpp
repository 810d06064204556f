// What the command line can say.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace train_moe {

/// Experts per token. Router takes it at compile time.
inline constexpr int experts_per_token = 4;

enum class BalancerKind { none, micro_batch, global_batch, loss_free };

[[nodiscard]] const char* name_of(BalancerKind kind);

/// A domain that the user named: a folder (or one file) of text.
struct NamedFolder {
  std::string name;
  std::string path;
};

struct Options {
  std::vector<NamedFolder> domains;     ///< empty: the five default domains
  std::vector<BalancerKind> balancers;  ///< in the order in which they run
  std::string output = "train_moe_results";
  std::uint64_t seed = 1;
  int steps = 600;
  int threads = 0;  ///< runs side by side, each on one core; 0: as many as there are cores
  int experts = 16;
  int layers = 2;
  int width = 96;
  int hidden = 64;  ///< of one expert
  int heads = 4;
  int context = 64;
  int sequences = 8;               ///< of one micro-batch
  std::int64_t bytes = 1'500'000;  ///< read per domain
  double learning_rate = 6e-3;
  double coefficient = 0.1;  ///< of the auxiliary losses
  double first_bias_rate = 1e-2;
  double last_bias_rate = 1e-3;
  bool help = false;
};

/// Reads argv; throws UsageError with one line that names the option, its value and what is allowed.
[[nodiscard]] Options parse_options(int argc, const char* const* argv);

[[nodiscard]] std::string help_text();

}  // namespace train_moe
