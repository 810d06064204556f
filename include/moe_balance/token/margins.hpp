// A token's margins, for rules of a bias that read them: each expert's score, without the bias, minus the token's threshold, the best ranking value that it
// left unchosen; or the score itself, where a rule asks for that. A pass of its own behind forward, which has written the ids: it alone counts E values for each token.
// Where many tokens are counted on a GPU the pass is two kernels: one finds thresholds, the other counts margins from them.
#pragma once

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/balancer/margin_scale.hpp>
#include <moe_balance/token/choice.hpp>
#include <moe_balance/token/forward.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Selections whose ids tell which ranking value is the best that is left: K by rank of all experts, in that order.
template <class TopKT>
inline constexpr bool has_margins = !is_narrowing<TopKT> && !is_replaying<TopKT> && !keeps_fewer<TopKT>;

/// What a token's margins are found from, one logit at a time.
template <class Real, class Scoring>
struct TokenThreshold {
  /// What score_of needs beside a logit. Nothing where logits rank: margins are of those.
  using Row = std::conditional_t<is_over_selected<Scoring>, NoRow, typename RowOf<Scoring, Real>::type>;
  Real value = quiet_nan<Real>;  ///< what is subtracted from scores; NaN where the token has no margins
  Row row{};

  [[nodiscard]] MOEB_INLINE bool has_margins() const { return value == value; }
  /// Of one expert, from its score, or its logit where those rank.
  [[nodiscard]] MOEB_INLINE float margin(Real score) const { return static_cast<float>(sub(score, value)); }
  /// The same from its logit.
  [[nodiscard]] MOEB_INLINE float margin_of_logit(const Scoring& scoring, Real logit) const {
    if constexpr (is_over_selected<Scoring>)
      return margin(logit);
    else
      return margin(score_of(scoring, logit, row));
  }
};

/// Thresholds of all tokens of a call, in memory that one kernel writes and the next one reads. Empty: margins are counted where their threshold is found.
template <class Scoring>
struct TokenThresholds {
  using Token = TokenThreshold<float, Scoring>;
  using Row = typename Token::Row;
  float* values = nullptr;  ///< [tokens]
  Row* rows = nullptr;      ///< [tokens], where scores need more than a logit

  /// A multiple of 16; the largest number there is for more tokens than a call takes, and for fewer than none.
  [[nodiscard]] static std::size_t bytes(std::int64_t tokens) {
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / (2 * (sizeof(float) + sizeof(Row)));
    if (tokens < 0 || tokens > most) return std::numeric_limits<std::size_t>::max();
    return value_bytes(tokens) + (has_rows ? rounded_up(static_cast<std::size_t>(tokens) * sizeof(Row)) : 0);
  }
  /// In so many bytes, 16-byte aligned.
  [[nodiscard]] static TokenThresholds of(void* memory, std::int64_t tokens) {
    auto* const bytes = static_cast<std::byte*>(memory);
    return {reinterpret_cast<float*>(bytes), has_rows ? reinterpret_cast<Row*>(bytes + value_bytes(tokens)) : nullptr};
  }
  [[nodiscard]] MOEB_INLINE bool empty() const { return values == nullptr; }
  /// Those from a token on.
  [[nodiscard]] MOEB_INLINE TokenThresholds from(std::int64_t token) const {
    return {values + token, has_rows ? rows + token : nullptr};
  }
  MOEB_INLINE void set(std::int64_t token, const Token& threshold) const {
    values[token] = threshold.value;
    if constexpr (has_rows) rows[token] = threshold.row;
  }
  [[nodiscard]] MOEB_INLINE Token operator[](std::int64_t token) const {
    Token threshold;
    threshold.value = values[token];
    if constexpr (has_rows) threshold.row = rows[token];
    return threshold;
  }

 private:
  static constexpr bool has_rows = !std::is_same_v<Row, NoRow>;
  static_assert(alignof(Row) <= 16);
  [[nodiscard]] static std::size_t rounded_up(std::size_t bytes) { return (bytes + 15) / 16 * 16; }
  [[nodiscard]] static std::size_t value_bytes(std::int64_t tokens) {
    return rounded_up(static_cast<std::size_t>(tokens) * sizeof(float));
  }
};

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
  TokenThresholds<Scoring> thresholds{};
  const std::uint8_t* balanced = nullptr;         ///< may be null; read where the balancer marks tokens only
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

/// A token's threshold. It has no margins where it is not active or not balanced, where it has a logit of NaN or +infinity, and where it leaves no finite ranking value. `logits` and
/// `scores` are the token's where it has some. `bias` has a value for every slot's expert, padding included.
template <class Real, class Problem, class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE auto find_threshold(const Problem& problem, const TileT& tile, const LayoutT& layout,
                                              std::int64_t token, const float* bias, Slots<Real, LayoutT>& logits,
                                              Slots<Real, LayoutT>& scores) {
  using Scoring = decltype(problem.scoring);
  constexpr int k_count = decltype(problem.top_k)::k;
  constexpr bool reads_scores = BalancerTraits<decltype(problem.balancer)>::reads_scores;
  TokenThreshold<Real, Scoring> threshold;
  std::int32_t last = 0;
  if (!is_balanced(problem, token)) return threshold;
  if constexpr (reads_scores) {
    if (!is_active(problem, token)) return threshold;
  } else {
    last = problem.experts.data[token * problem.experts.stride + k_count - 1];
    if (last < 0 || last >= layout.experts) return threshold;
  }
  load_row(tile, layout, problem.logits, token, problem.rows_hold_quads, logits);
  if (has_broken_logit(tile, layout, logits)) return threshold;
  if constexpr (!is_over_selected<Scoring>) {
    threshold.row = score_row<Real>(problem, tile, layout, token, problem.rows_hold_quads, logits, scores);
  }
  if constexpr (reads_scores) {
    threshold.value = Real(0);
  } else {
    Slots<Key<Real>, LayoutT> keys;
    rank_keys(problem, tile, layout, token, logits, scores, false, bias, keys);
    const Real best = best_behind<Real>(tile, layout, last, keys);
    threshold.value = choose(is_finite(best), best, quiet_nan<Real>);
  }
  return threshold;
}

/// The bin that a margin counts in, whatever a user's rule says.
template <class Binning>
[[nodiscard]] MOEB_INLINE int bin_of_margin(const Binning& binning, int bins, float margin) {
  const int bin = static_cast<int>(binning.bin_of(margin));
  return bin < 0 ? 0 : bin >= bins ? bins - 1 : bin;
}

/// Calls f(binning, bins) for the part of the balancer whose rule reads margins.
template <class Problem, class Function>
MOEB_INLINE void with_binning(const Problem& problem, const Function& f) {
  for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
    if constexpr (BiasFromMargins<std::remove_cvref_t<decltype(part)>>) f(binning_of(part), static_cast<int>(part.bins));
  });
}

/// Calls add(cell) for the cell of the histogram, expert * bins + bin, that each expert's margin is counted in, of a token that has margins. `logits` and `scores`
/// as find_threshold left them.
template <class Real, class Problem, class TileT, class LayoutT, class Add>
MOEB_INLINE void add_margins(const Problem& problem, const TileT& tile, const LayoutT& layout, std::int64_t token,
                             const TokenThreshold<Real, decltype(Problem::scoring)>& threshold,
                             const Slots<Real, LayoutT>& logits, const Slots<Real, LayoutT>& scores, const Add& add) {
  using Scoring = decltype(problem.scoring);
  with_binning(problem, [&](const auto& binning, int bins) MOEB_LAMBDA {
    const auto cell = [&](int expert, int bin) MOEB_LAMBDA { return static_cast<std::int64_t>(expert) * bins + bin; };
    if constexpr (!LayoutT::in_registers) {  // first all bins, in vectors
      Slots<std::int32_t, LayoutT> bin;
      for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
        bin[slot] = bin_of_margin(binning, bins, threshold.margin(is_over_selected<Scoring> ? logits[slot] : scores[slot]));
      });
      for (int expert = 0; expert < layout.experts; ++expert) add(cell(expert, bin[expert]));
    } else {
      const auto count = [&](int slot, Real score) MOEB_LAMBDA {
        if (layout.holds_expert(slot)) add(cell(layout.expert(slot), bin_of_margin(binning, bins, threshold.margin(score))));
      };
      if constexpr (is_over_selected<Scoring>)
        for_each_logit(tile, layout, problem.logits, token, problem.rows_hold_quads, logits, count);
      else
        for_each_slot(layout, [&](int slot) MOEB_LAMBDA { count(slot, scores[slot]); });
    }
  });
}

MOEB_NAMESPACE_END
