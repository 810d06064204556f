// A token's margins, for rules of a bias that read them: each expert's score, without the bias, minus the token's threshold, the best ranking value that it
// left unchosen; or the score itself, where a rule asks for that. A pass of its own behind forward, which has written the ids: it alone counts E values for each token.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/token/choice.hpp>
#include <moe_balance/token/forward.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Selections whose ids tell which ranking value is the best that is left: K by rank of all experts, in that order.
template <class TopKT>
inline constexpr bool has_margins = !is_narrowing<TopKT> && !is_replaying<TopKT> && !keeps_fewer<TopKT>;

template <class Scoring, class TopKT, class Balancer>
struct MarginProblem {
  Scoring scoring;
  TopKT top_k;
  Balancer balancer;
  ConstAnyMatrix logits;
  MatrixView<const std::int32_t>
      experts;              ///< as chosen, best first, before a capacity drops any; -1 where a token is not active
  const float* bias;        ///< null: none
  std::int64_t* histogram;  ///< [E, bins], see MarginView
  bool rows_hold_quads;
  const std::uint8_t* active = nullptr;  ///< with tokens_on_device, read where margins are scores
  const std::int64_t* tokens_on_device = nullptr;
  static constexpr std::int64_t first_token = 0;  ///< for is_active: row 0 is the call's first token
};

/// The largest ranking value behind that of the last chosen expert; -infinity where none is a number.
template <class Real, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE Real best_behind(const TileT& tile, const LayoutT& layout, std::int32_t last,
                                           const Slots<Key<Real>, LayoutT>& keys) {
  Key<Real> last_key = excluded_key<Key<Real>>;
  if constexpr (LayoutT::in_registers) {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { last_key = layout.is_expert(slot, last) ? keys[slot] : last_key; });
    last_key = tile.maximum(last_key);
  } else {
    last_key = keys[last];
  }
  Slots<Real, LayoutT> behind;
  for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
    const bool ties = both(keys[slot] == last_key, LayoutT::offset(slot) > last - layout.base());
    const bool is_behind =
        both(keys[slot] > nan_key<Key<Real>>, static_cast<int>(keys[slot] < last_key) | static_cast<int>(ties));
    behind[slot] = choose(is_behind, value_of_key<Real>(keys[slot]), -infinity<Real>);
  });
  return maximum_of(tile, layout, behind, [](Real value) MOEB_LAMBDA { return value; });
}

/// Whether a logit is NaN or +infinity.
template <class Real, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE bool has_broken_logit(const TileT& tile, const LayoutT& layout, Slots<Real, LayoutT>& logits) {
  if constexpr (!LayoutT::in_registers) {  // whose padding is NaN
    for_each_padding_slot(layout, [&](int slot) MOEB_LAMBDA { logits[slot] = -infinity<Real>; });
  }
  return maximum_of(tile, layout, logits,
                    [](Real logit) MOEB_LAMBDA { return choose(logit < infinity<Real>, Real(0), Real(1)); }) > Real(0);
}

/// Calls add(cell) for the cell of the histogram, expert * bins + bin, that each expert's margin is counted in. `bias` has a value for every slot's expert, padding included. Nothing
/// of tokens that are not active, that have a logit of NaN or +infinity, or that leave no finite ranking value.
template <class Real, class Problem, class TileT, class LayoutT, class Add>
MOEB_INLINE void add_margins(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                             const float* bias, const Add& add) {
  using Scoring = decltype(problem.scoring);
  constexpr int k_count = decltype(problem.top_k)::k;
  constexpr bool reads_scores = BalancerTraits<decltype(problem.balancer)>::reads_scores;
  std::int32_t last = 0;
  if constexpr (reads_scores) {
    if (!is_active(problem, token)) return;
  } else {
    last = problem.experts.data[token * problem.experts.stride + k_count - 1];
    if (last < 0 || last >= layout.experts) return;
  }
  Slots<Real, LayoutT> logits;
  Slots<Real, LayoutT> scores;
  [[maybe_unused]] Slots<Key<Real>, LayoutT> keys;
  load_row(layout, problem.logits, token, problem.rows_hold_quads, logits);
  if (has_broken_logit(tile, layout, logits)) return;
  if constexpr (!is_over_selected<Scoring>) {
    [[maybe_unused]] const auto row = score_row<Real>(problem, tile, layout, token, problem.rows_hold_quads, logits, scores);
  }
  Real threshold = 0;
  if constexpr (!reads_scores) {
    rank_keys(problem, tile, layout, token, logits, scores, false, bias, keys);
    threshold = best_behind<Real>(tile, layout, last, keys);
    if (!is_finite(threshold)) return;
  }
  for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
    if constexpr (BiasFromMargins<std::remove_cvref_t<decltype(part)>>) {
      const int bins = static_cast<int>(part.bins);
      const auto bin_of = [&](Real score) MOEB_LAMBDA {
        const int bin = static_cast<int>(part.bin_of(static_cast<float>(sub(score, threshold))));
        return bin < 0 ? 0 : bin >= bins ? bins - 1 : bin;
      };
      const auto cell = [&](int expert, int bin) MOEB_LAMBDA { return static_cast<std::int64_t>(expert) * bins + bin; };
      if constexpr (!LayoutT::in_registers) {  // first all bins, in vectors
        Slots<std::int32_t, LayoutT> bin;
        for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
          bin[slot] = bin_of(is_over_selected<Scoring> ? logits[slot] : scores[slot]);
        });
        for (int expert = 0; expert < layout.experts; ++expert) add(cell(expert, bin[expert]));
      } else {
        const auto count = [&](int slot, Real score) MOEB_LAMBDA {
          if (layout.holds_expert(slot)) add(cell(layout.expert(slot), bin_of(score)));
        };
        if constexpr (is_over_selected<Scoring>)
          for_each_logit(tile, layout, problem.logits, token, problem.rows_hold_quads, logits, count);
        else
          for_each_slot(layout, [&](int slot) MOEB_LAMBDA { count(slot, scores[slot]); });
      }
    }
  });
}

MOEB_NAMESPACE_END
