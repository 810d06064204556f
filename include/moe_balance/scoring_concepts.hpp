// What a scoring must offer, and what it may promise.
#pragma once

#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/tile.hpp>

#include <concepts>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Each expert's score from its logit alone: `score = scoring(logit)`, `scoring.derivative(logit, score)` its derivative.
/// Both take and return float; library policies are templates that serve double as well. A policy whose bits shall agree between CPU and GPU
/// computes with mb::mul, add, fma, exp, ...: compilers contract plain a * b + c differently.
template <class S>
concept ElementwiseScoring = std::is_trivially_copyable_v<S> && requires(const S scoring, float logit, float score) {
  { scoring(logit) } -> std::convertible_to<float>;
  { scoring.derivative(logit, score) } -> std::convertible_to<float>;
};

/// Scores that depend on the token's whole row. `prepare` writes a score for each slot and returns what `score` needs to compute any
/// one of them again; `backward` turns dL/dscores into dL/dlogits in place. NaN and -inf logits (padding is one of them) must take no part.
template <class S>
concept RowScoring = std::is_trivially_copyable_v<S> &&
    requires(const S scoring, const SerialTile tile, const Layout<SerialTile, 64> layout,
             const Slots<float, Layout<SerialTile, 64>> in, Slots<float, Layout<SerialTile, 64>> out,
             const typename S::template Row<float> row) {
  { scoring.prepare(tile, layout, in, out) } -> std::same_as<typename S::template Row<float>>;
  { scoring.score(1.0f, row) } -> std::same_as<float>;
  {scoring.backward(tile, layout, in, in, out, row)};
  { S::normalised } -> std::convertible_to<bool>;
};

/// What a Router takes as scoring.
template <class S>
concept ScoringPolicy = ElementwiseScoring<S> || RowScoring<S>;

/// Optional traits of a scoring, all false when absent. A derived class has its base's members: promises of the library's own classes are therefore not
/// members, and hold for these classes only.
/// normalised: a token's scores sum to 1, so that they are the loss's probabilities as they are.
template <class S>
inline constexpr bool is_normalised = false;
template <class S>
  requires requires {
    S::normalised;
  }
inline constexpr bool is_normalised<S> = S::normalised;
/// non_negative: a score is never below +0 (nor -0), and with `normalised` never above 1 by more than roundings; a logit that is not finite
/// has score 0, infinity or NaN then. GPU kernels rank and add up such scores with fewer instructions.
template <class S>
inline constexpr bool is_non_negative = false;
template <class S>
  requires requires {
    S::non_negative;
  }
inline constexpr bool is_non_negative<S> = S::non_negative;
/// finite_scores: where all of a token's logits are finite, so are its scores. The CPU's backward pass looks at each of them otherwise.
template <class S>
inline constexpr bool is_finitely_scoring = false;
template <class S>
  requires requires {
    S::finite_scores;
  }
inline constexpr bool is_finitely_scoring<S> = S::finite_scores;
/// over_selected: experts are ranked by logit + bias, and weights are computed among the chosen logits only.
template <class S>
inline constexpr bool is_over_selected = false;
template <class S>
  requires requires {
    S::over_selected;
  }
inline constexpr bool is_over_selected<S> = S::over_selected;

MOEB_NAMESPACE_END
