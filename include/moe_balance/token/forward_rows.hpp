// Some tokens' forward passes together, on a lane that has rows in memory: step by step, each over all tokens before the next one begins.
#pragma once

#include <moe_balance/numeric/select_from_memory.hpp>
#include <moe_balance/token/forward.hpp>
#include <moe_balance/token/segments.hpp>

#include <cstdint>
#include <type_traits>
#include <utility>

MOEB_NAMESPACE_BEGIN

/// A token has steps that begin or end in a long chain of dependent instructions, the selection most of all. Another token's steps do not wait for
/// them, and the selection's two sorts serve all tokens at once.
/// `Ranks`: see MemorySelection.
template <class Real, class Problem, class TileT, class LayoutT, int Most, bool Ranks>
class ForwardRows {
 public:
  static_assert(!LayoutT::in_registers);

  /// `instructions`: which a selection may use.
  MOEB_INLINE explicit ForwardRows(InstructionSet instructions) : selection_(instructions) {}

  /// The tokens rows[first] to rows[first + count - 1], count <= Most; each asks for the row that follows `ahead` later. `bias` and `sink` as in
  /// forward.hpp.
  template <class Sink>
  MOEB_INLINE void forward(const Problem& problem, const TileT& tile, const LayoutT& layout, const SegmentRows& rows,
                           std::int64_t first, int count, std::int64_t ahead, const float* bias, Sink& sink) {
    for (int r = 0; r < count; ++r) {
      prefetch_row<RowUse::read>(layout, problem.logits, rows[first + r + ahead]);
      auto& token = tokens_[r];
      token.token = rows[first + r];
      token.active = is_active(problem, token.token);
      if (!token.active) {
        store_nothing<Real>(problem, tile, token.token);
        continue;
      }
      score_active(problem, tile, layout, token.token, token);
      if (token.replayed) continue;
      candidate_keys(problem, tile, layout, token, is_regular(token.row), bias, token.keys);
      selection_.look(layout, r, token.keys);
    }
    const auto chooses = [&](int r) MOEB_EARLY_LAMBDA { return tokens_[r].active && !tokens_[r].replayed; };
    select(count, chooses);
    Chosen<Real, TileT, k_count> chosen[Most];
    for (int r = 0; r < count; ++r) {
      for (int k = 0; k < k_count; ++k) chosen[r].expert[k] = chooses(r) ? selection_.slot(r, k) : -1;
    }
    if constexpr (BalancerTraits<decltype(problem.balancer)>::plain_losses > 0)
      count_plain(problem, tile, layout, count, sink);
    sink.start_tokens(count);
    bool has_losses[Most] = {};
    bool have_numbers = count == Most;
    for (int r = 0; r < count; ++r) {
      auto& token = tokens_[r];
      if (token.active) {
        if (token.replayed) take_replayed(problem, tile, layout.experts, token.token, chosen[r], sink);
        has_losses[r] = weigh_active(problem, tile, layout, bias, token, chosen[r], sink);
      }
      have_numbers = have_numbers && has_losses[r] && has_numbers<LayoutT>(token.row);
    }
    const bool together = sums_together && have_numbers;
    if constexpr (sums_together) {
      if (together) add_probabilities_of_all(layout, sink, std::make_integer_sequence<int, Most>{});
    }
    for (int r = 0; r < count; ++r) {
      auto& token = tokens_[r];
      if (!has_losses[r]) continue;
      if (!together) add_probabilities(problem, tile, layout, token.finite, token.logits, token.scores, token.row, sink);
      add_token_losses(problem, tile, layout, token.token, token.logits, token.scores, token.row, sink);
    }
  }

 private:
  static constexpr int k_count = decltype(Problem::top_k)::k;
  static constexpr int plain_count = counted_plain_choices<decltype(Problem::balancer), k_count>;
  /// Whether scores are what losses sum up, and sums take those of all tokens at once: they are loaded and stored once then.
  static constexpr bool sums_together = std::is_same_v<Real, float> && shows_non_finite<decltype(Problem::scoring)> &&
                                        BalancerTraits<decltype(Problem::balancer)>::losses > 0;

  ForwardToken<Real, Problem, TileT, LayoutT> tokens_[Most];
  MemorySelection<LayoutT, Key<Real>, k_count, Most, Ranks> selection_;

  /// add_probabilities of all tokens, none of whose scores is infinite or NaN.
  template <class Sink, int... Row>
  MOEB_INLINE void add_probabilities_of_all(const LayoutT& layout, Sink& sink, std::integer_sequence<int, Row...>) const {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { sink.unit_probabilities(slot, tokens_[Row].scores[slot]...); });
  }

  /// The selection's steps after `look`, of the tokens that take part.
  template <class TakesPart>
  MOEB_INLINE void select(int count, const TakesPart& takes_part) {
    selection_.find_thresholds();
    for (int r = 0; r < count; ++r) {
      if (takes_part(r)) selection_.collect(r, tokens_[r].keys);
    }
    selection_.rank();
    for (int r = 0; r < count; ++r) {
      if (takes_part(r)) selection_.finish(r, tokens_[r].keys);
    }
  }

  /// count_plain_top_k of all tokens.
  template <class Sink>
  MOEB_INLINE void count_plain(const Problem& problem, const TileT& tile, const LayoutT& layout, int count, Sink& sink) {
    const auto takes_part = [&](int r)
                                MOEB_EARLY_LAMBDA { return tokens_[r].active && is_balanced(problem, tokens_[r].token); };
    for (int r = 0; r < count; ++r) {
      auto& token = tokens_[r];
      if (!takes_part(r)) continue;
      rank_keys(problem, tile, layout, token.token, token.logits, token.scores, is_regular(token.row), nullptr, token.keys);
      selection_.look(layout, r, token.keys);
    }
    select(count, takes_part);
    for (int r = 0; r < count; ++r) {
      for (int k = 0; k < plain_count && takes_part(r); ++k) sink.loss_count(selection_.slot(r, k));
    }
  }
};

MOEB_NAMESPACE_END
