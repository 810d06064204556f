// What a backward call reads and writes, and how its views move on from token to token.
#pragma once

#include <moe_balance/token/forward_problem.hpp>
#include <moe_balance/token/saved.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

template <class Scoring, class TopKT, class Balancer>
struct BackwardProblem {
  Scoring scoring;
  TopKT top_k;
  Balancer balancer;
  ConstAnyMatrix logits;
  MatrixView<const std::int32_t> experts;
  ConstAnyMatrix grad_weights;  ///< null data: zeros
  AnyMatrix grad_logits;
  SavedView saved;
  const std::uint8_t* active;
  const std::int64_t* tokens_on_device;
  const float* grad_loss;
  float loss_scale;
  int ranks;
  Segments segments;
  bool logits_hold_quads;
  bool grad_holds_quads;
  std::int64_t first_token = 0;            ///< which of the call's tokens row 0 of the views is
  const std::uint8_t* balanced = nullptr;  ///< may be null; read where the balancer marks tokens only
};

/// How far a problem's views move on, see ForwardStep.
struct BackwardStep {
  std::int64_t tokens;
  std::int64_t active;
  std::int64_t logits_bytes;
  std::int64_t expert_ids;
  std::int64_t grad_weights_bytes;
  std::int64_t grad_logits_bytes;

  template <class Problem>
  MOEB_INLINE BackwardStep(const Problem& problem, std::int64_t token_count)
      : tokens(token_count),
        active(problem.active == nullptr ? 0 : token_count),
        logits_bytes(opaque(token_count * row_bytes(problem.logits))),
        expert_ids(opaque(token_count * problem.experts.stride)),
        grad_weights_bytes(opaque(problem.grad_weights.data == nullptr ? 0 : token_count * row_bytes(problem.grad_weights))),
        grad_logits_bytes(opaque(token_count * row_bytes(problem.grad_logits))) {}

  template <class Problem>
  MOEB_INLINE void advance(Problem& problem) const {
    problem.logits.data = static_cast<const std::byte*>(problem.logits.data) + logits_bytes;
    problem.experts.data += expert_ids;
    problem.grad_weights.data = static_cast<const std::byte*>(problem.grad_weights.data) + grad_weights_bytes;
    problem.grad_logits.data = static_cast<std::byte*>(problem.grad_logits.data) + grad_logits_bytes;
    problem.active += active;
    move_balanced(problem, tokens, problem);
    problem.first_token += tokens;
  }

  /// What a usual call's problem is from `row` on, see engine/usual_call.hpp.
  template <class Problem>
  MOEB_INLINE static void place(const Problem& problem, std::uint32_t row, std::uint32_t logits_bytes, Problem& own) {
    constexpr std::uint32_t k = decltype(problem.top_k)::k;
    own.logits.data = moved(problem.logits.data, row, logits_bytes);
    own.experts.data = moved(problem.experts.data, row, k * sizeof(std::int32_t));
    own.grad_weights.data = moved(problem.grad_weights.data, row, k * sizeof(float));
    own.grad_logits.data = moved(problem.grad_logits.data, row, logits_bytes);
    move_balanced(problem, row, own);
  }
};

MOEB_NAMESPACE_END
