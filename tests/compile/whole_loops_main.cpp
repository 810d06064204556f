// Runs the loops of whole_loops.cpp with each instruction set, for every type of logits, and exits with 1 where one gives other bits than the baseline's.
#include "whole_loops.hpp"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr std::int64_t tokens = 67;

struct Problem {
  int experts;
  int k;
  bool replays;
  mb::DataType type;
  std::vector<std::byte> logits, grad_weights;
  std::vector<std::int32_t> replayed;
  std::vector<std::uint8_t> replays_token;
};

/// All that a forward and a backward pass write.
struct Outputs {
  std::vector<std::int32_t> ids;
  std::vector<std::byte> weights, grad_logits;
  std::vector<std::int64_t> counts, load, saved;

  bool operator==(const Outputs&) const = default;
};

std::vector<std::byte> normal_numbers(std::mt19937& random, mb::DataType type, std::size_t count) {
  std::normal_distribution<float> normal;
  std::vector<std::byte> result(count * mb::size_of(type));
  for (std::size_t i = 0; i < count; ++i) {
    const float value = random() % 97 == 0 ? -1e30f : normal(random);
    const double wide = static_cast<double>(value);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint16_t upper = static_cast<std::uint16_t>(bits >> 16);  // of bfloat16; any bits but NaN will do for float16
    const std::uint16_t narrow = type == mb::DataType::bfloat16 ? upper : static_cast<std::uint16_t>(random() % 0x7000);
    const void* source = type == mb::DataType::float64   ? static_cast<const void*>(&wide)
                         : type == mb::DataType::float32 ? static_cast<const void*>(&value)
                                                         : static_cast<const void*>(&narrow);
    std::memcpy(&result[i * mb::size_of(type)], source, mb::size_of(type));
  }
  return result;
}

Problem problem_of(int experts, int k, bool replays, mb::DataType type) {
  std::mt19937 random(static_cast<unsigned>(experts + k));
  Problem problem{experts, k, replays, type, {}, {}, {}, {}};
  const auto slots = static_cast<std::size_t>(tokens * k);
  problem.logits = normal_numbers(random, type, static_cast<std::size_t>(tokens * experts));
  problem.grad_weights = normal_numbers(random, type, slots);
  if (!replays) return problem;
  for (std::size_t i = 0; i < slots; ++i) problem.replayed.push_back(static_cast<std::int32_t>(i) % k);
  for (std::int64_t t = 0; t < tokens; ++t) problem.replays_token.push_back(t % 3 == 0 ? 1 : 0);
  return problem;
}

template <class Function>
Outputs outputs_of(const Problem& problem, mb::InstructionSet instructions, const Function& run) {
  const auto slots = static_cast<std::size_t>(tokens * problem.k);
  const auto experts = static_cast<std::size_t>(problem.experts);
  Outputs out{std::vector<std::int32_t>(slots, -7),          std::vector<std::byte>(slots * mb::size_of(problem.type)),
              std::vector<std::byte>(problem.logits.size()), std::vector<std::int64_t>(experts, 1),
              std::vector<std::int64_t>(experts, 1),         std::vector<std::int64_t>(16 * experts + 64, 0)};
  std::vector<float> bias(experts);
  for (std::size_t e = 0; e < experts; ++e) bias[e] = static_cast<float>(e % 5) * 0.03f;
  mb::ForwardArgs forward;
  forward.logits = {problem.logits.data(), problem.type, tokens, problem.experts, problem.experts};
  forward.experts = {out.ids.data(), tokens, problem.k};
  forward.weights = {out.weights.data(), problem.type, tokens, problem.k, problem.k};
  forward.counts = out.counts.data();
  forward.bias = {bias.data(), problem.experts};
  forward.load = {out.load.data(), problem.experts};
  forward.saved = {out.saved.data(), out.saved.size() * sizeof(std::int64_t)};
  if (problem.replays) {
    forward.replay.experts = {problem.replayed.data(), tokens, problem.k};
    forward.replay.tokens = problem.replays_token.data();
  }
  mb::BackwardArgs backward;
  backward.logits = forward.logits;
  backward.experts = {out.ids.data(), tokens, problem.k};
  backward.grad_weights = {problem.grad_weights.data(), problem.type, tokens, problem.k, problem.k};
  backward.grad_logits = {out.grad_logits.data(), problem.type, tokens, problem.experts, problem.experts};
  backward.saved = forward.saved;
  run(forward, backward, mb::Host{.threads = 1, .instructions = instructions});
  return out;
}

/// How many results are not the baseline's, of every type and these numbers of experts.
template <class Function>
int differing(const char* name, const std::vector<int>& all_experts, int k, bool replays, const Function& run) {
  int result = 0;
  for (const mb::DataType type :
       {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16, mb::DataType::float64}) {
    for (const int experts : all_experts) {
      const Problem problem = problem_of(experts, k, replays, type);
      const Outputs want = outputs_of(problem, mb::InstructionSet::baseline, run);
      for (const mb::InstructionSet instructions :
           {mb::InstructionSet::automatic, mb::InstructionSet::x86_64_v3, mb::InstructionSet::x86_64_v4}) {
        if (outputs_of(problem, instructions, run) == want) continue;
        std::printf("%s, %d experts, type %d, instruction set %d: not the baseline's bits\n", name, experts,
                    static_cast<int>(type), static_cast<int>(instructions));
        ++result;
      }
    }
  }
  return result;
}

}  // namespace

int main() {
  const int bad = differing("softmax", {8, 32, 60, 64, 128, 257}, 8, false, run_softmax) +
                  differing("sqrt_softplus", {8, 32, 60, 64, 128, 257}, 6, false, run_sqrt_softplus) +
                  differing("a user's policy", {16, 32, 64, 128, 264}, 8, true, run_users_policy);  // eight groups
  return bad == 0 ? 0 : 1;
}
