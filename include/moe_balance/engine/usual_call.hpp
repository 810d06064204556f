// The call that training and inference make: float32 weights, dense rows of aligned quads, one segment or equally long ones. A kernel of its own knows
// all that when it is compiled; what a caller may decide otherwise costs a token a fifth of its instructions.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Whether a call is one.
template <class Problem>
[[nodiscard]] bool is_usual(const Problem& problem) {
  constexpr int k = decltype(problem.top_k)::k;
  constexpr std::int64_t most_tokens = std::int64_t{1} << 30;  // rows are counted in 32 bits
  const std::int64_t experts = problem.logits.columns;
  const bool has_whole_quads = experts % 4 == 0 && problem.logits.stride == experts;
  const bool lies_in_order = problem.segments.sequences.layout == Sequences::Layout::sequence_major;
  if (!has_whole_quads || !lies_in_order) return false;
  if (problem.logits.rows > most_tokens || problem.experts.stride != k) return false;
  if constexpr (requires { problem.grad_logits; }) {
    const bool has_weights = problem.grad_weights.data != nullptr && problem.grad_weights.type == DataType::float32;
    return has_weights && problem.grad_weights.stride == k && problem.grad_logits.type == problem.logits.type &&
           problem.grad_logits.stride == experts && problem.logits_hold_quads && problem.grad_holds_quads;
  } else {
    constexpr bool has_bias = BalancerTraits<decltype(problem.balancer)>::biases > 0;
    return (problem.bias != nullptr) == has_bias && problem.weights.type == DataType::float32 &&
           problem.weights.stride == k && problem.rows_hold_quads;
  }
}

/// The same problem, with constants for what is_usual has seen.
template <class Problem>
[[nodiscard]] MOEB_HOST_DEVICE inline Problem as_usual(Problem problem) {
  constexpr int k = decltype(problem.top_k)::k;
  problem.logits.stride = problem.logits.columns;
  problem.experts.stride = k;
  problem.segments.sequences.layout = Sequences::Layout::sequence_major;
  if constexpr (requires { problem.grad_logits; }) {
    if (problem.grad_weights.data == nullptr) __builtin_unreachable();
    problem.grad_weights.type = DataType::float32;
    problem.grad_weights.stride = k;
    problem.grad_logits.type = problem.logits.type;
    problem.grad_logits.stride = problem.logits.columns;
    problem.logits_hold_quads = true;
    problem.grad_holds_quads = true;
  } else {
    using Traits = BalancerTraits<decltype(problem.balancer)>;
    if constexpr (!Traits::reads_sequences) {  // for backward, too, on sm_90 four bytes of its registers would not have room
      problem.segments.sequences.count = 1;
      problem.segments.length = problem.segments.tokens;
    }
    if constexpr (Traits::biases == 0)
      problem.bias = nullptr;
    else if (problem.bias == nullptr)
      __builtin_unreachable();
    problem.weights.type = DataType::float32;
    problem.weights.stride = k;
    problem.rows_hold_quads = true;
  }
  return problem;
}

MOEB_NAMESPACE_END
