// What the forward pass knows of a call, and how a tile moves on in it.
#pragma once

#include <moe_balance/token/row_io.hpp>
#include <moe_balance/token/segments.hpp>

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/tile/opaque.hpp>
#include <moe_balance/views.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// All that the forward pass needs to know; trivially copyable, so that it is a kernel's parameter as it is.
template <class Scoring, class TopKT, class Balancer>
struct ForwardProblem {
  Scoring scoring;
  TopKT top_k;
  Balancer balancer;
  ConstAnyMatrix logits;
  MatrixView<std::int32_t> experts;
  AnyMatrix weights;
  const float* bias;
  const std::uint8_t* active;
  const std::int64_t* tokens_on_device;
  ReplayRef replay;
  Segments segments;
  bool rows_hold_quads;
  std::int64_t first_token = 0;                ///< which of the call's tokens row 0 of the views is
  float largest_token_loss = most_token_loss;  ///< see numeric/fixed_point.hpp
  const std::uint8_t* balanced = nullptr;      ///< may be null; read where the balancer marks tokens only
};

/// Where calls mark balanced tokens: `own` has the marks from so many tokens on.
template <class Problem>
MOEB_INLINE void move_balanced(const Problem& problem, std::int64_t tokens, Problem& own) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::marks_tokens)
    own.balanced = problem.balanced == nullptr ? nullptr : problem.balanced + tokens;
}
/// Whether the load and the losses see a token.
template <class Problem>
[[nodiscard]] MOEB_INLINE bool is_balanced([[maybe_unused]] const Problem& problem, [[maybe_unused]] std::int64_t row) {
  if constexpr (BalancerTraits<decltype(problem.balancer)>::marks_tokens)
    return problem.balanced == nullptr || problem.balanced[row] != 0;
  else
    return true;
}

/// An address so many rows of so many bytes further on.
template <class T>
[[nodiscard]] MOEB_INLINE T* moved(T* data, std::uint32_t rows, std::uint32_t row_bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(data) + static_cast<std::uint64_t>(rows) * row_bytes);
}

/// How far a problem's views move on with so many tokens. Rows that are a fixed step apart are reached by additions, where a row's address anew
/// is a multiplication of 64 bits for each view.
struct ForwardStep {
  std::int64_t tokens;
  std::int64_t active;
  std::int64_t logits_bytes;
  std::int64_t expert_ids;
  std::int64_t weights_bytes;

  template <class Problem>
  MOEB_INLINE ForwardStep(const Problem& problem, std::int64_t token_count)
      : tokens(token_count),
        active(problem.active == nullptr ? 0 : token_count),
        logits_bytes(opaque(token_count * row_bytes(problem.logits))),
        expert_ids(opaque(token_count * problem.experts.stride)),
        weights_bytes(opaque(token_count * row_bytes(problem.weights))) {}

  /// The same problem with so many rows fewer in front.
  template <class Problem>
  MOEB_INLINE void advance(Problem& problem) const {
    problem.logits.data = static_cast<const std::byte*>(problem.logits.data) + logits_bytes;
    problem.experts.data += expert_ids;
    problem.weights.data = static_cast<std::byte*>(problem.weights.data) + weights_bytes;
    problem.active += active;
    if constexpr (is_replaying<decltype(problem.top_k)>) {
      problem.replay.experts.data += tokens * problem.replay.experts.stride;
      problem.replay.tokens += problem.replay.tokens == nullptr ? 0 : tokens;
    }
    move_balanced(problem, tokens, problem);
    problem.first_token += tokens;
  }

  /// What a usual call's problem is from `row` on, see engine/usual_call.hpp.
  template <class Problem>
  MOEB_INLINE static void place(const Problem& problem, std::uint32_t row, std::uint32_t logits_bytes, Problem& own) {
    constexpr std::uint32_t k = decltype(problem.top_k)::k;
    own.logits.data = moved(problem.logits.data, row, logits_bytes);
    own.experts.data = moved(problem.experts.data, row, k * sizeof(std::int32_t));
    own.weights.data = moved(problem.weights.data, row, k * sizeof(float));
    if constexpr (is_replaying<decltype(problem.top_k)>) {
      own.replay.experts.data = problem.replay.experts.data + row * problem.replay.experts.stride;
      own.replay.tokens = problem.replay.tokens == nullptr ? nullptr : problem.replay.tokens + row;
    }
    move_balanced(problem, row, own);
  }
};

/// Whether a token may be one that is not active.
template <class Problem>
[[nodiscard]] MOEB_INLINE bool has_masks(const Problem& problem) {
  return problem.active != nullptr || problem.tokens_on_device != nullptr;
}
/// The same problem, that is known to have none.
template <class Problem>
[[nodiscard]] MOEB_INLINE Problem without_masks(Problem problem) {
  problem.active = nullptr;
  problem.tokens_on_device = nullptr;
  return problem;
}
template <class Problem>
[[nodiscard]] MOEB_INLINE bool is_active(const Problem& problem, std::int64_t row) {
  return (problem.active == nullptr || problem.active[row] != 0) &&
         (problem.tokens_on_device == nullptr || problem.first_token + row < *problem.tokens_on_device);
}

MOEB_NAMESPACE_END
