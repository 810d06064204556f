// Some tokens' forward passes side by side on a CPU thread, for few experts. For usual tokens only; others take forward_rows.hpp, with the same bits.
#pragma once

#include <moe_balance/token/chosen_in_lanes.hpp>
#include <moe_balance/token/forward.hpp>
#include <moe_balance/token/scores_in_lanes.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Usual tokens are active, choose by themselves, and have finite logits and weights. Left out are policies for which other things are needed: scorings of a
/// row that are not softmax, selections that exclude experts by rows only.
template <class Problem, class TileT>
class ForwardLanes {
  using Scoring = decltype(Problem::scoring);
  using TopKT = decltype(Problem::top_k);
  using Traits = BalancerTraits<decltype(Problem::balancer)>;
  using Scores = ScoresSideBySide<Scoring>;
  using Ranking = RankingKeys<Scoring, decltype(Problem::balancer), float>;
  static constexpr int k_count = TopKT::k;
  static constexpr int plain_count = counted_plain_choices<decltype(Problem::balancer), k_count>;
  /// Softmax over the selected has scores of its own, and those of all for losses only.
  static constexpr bool has_scores = !is_over_selected<Scoring> || Traits::losses + Traits::token_losses > 0;
  /// Whether probabilities are kept as sums of halves, see HostSink.
  static constexpr bool sums_units = Traits::losses > 0 && is_non_negative<Scoring>;

 public:
  static constexpr int capacity = Scores::capacity;  ///< most experts
  static constexpr bool serves =
      Scores::serves && (!is_narrowing<TopKT> || narrows_side_by_side<TopKT>)&&!is_replaying<TopKT>;

  /// Experts that a plain top-k chooses by a selection of its own. Without a bias, and where none is excluded, the routing's is one.
  static constexpr int plain_picks = Traits::plain_losses > 0 && (Traits::biases > 0 || is_narrowing<TopKT>) ? plain_count
                                                                                                             : 0;

  /// `set`: of the loop. With more experts than `capacity` nothing else may be called.
  template <class LayoutT>
  MOEB_INLINE ForwardLanes(InstructionSet set, const LayoutT& layout) : instructions_(set), scores_(set, layout.experts) {
    if (layout.experts <= capacity) clear();
  }

  /// The tokens rows[first] to rows[first + lane_count - 1]; false, and nothing was written, if one of them is not usual.
  template <class Sink>
  [[nodiscard]] MOEB_INLINE bool forward(const Problem& problem, const TileT& tile, const SegmentRows& rows,
                                         std::int64_t first, const float* bias, Sink& sink) {
    bool is_usual = false;
    const TileT own = tile;  // whose address is known here only: the loop's tile stays a constant
    run_apart_narrow([&]() MOEB_LAMBDA { is_usual = forward_here(problem, own, rows, first, bias, sink); });
    return is_usual;
  }

  /// Adds what was kept of the tokens' probabilities to the sink: before a segment ends.
  template <class Sink>
  MOEB_INLINE void carry(Sink& sink) {
    if constexpr (sums_units) {
      if (summed_ == 0) return;
      for (int e = 0; e < scores_.experts; ++e) {
        UnitBits sum{};
        for (int i = 0; i < lane_count; ++i) sum.high += high_[e][i];
        for (int i = 0; i < lane_count; ++i) sum.low += low_[e][i];
        sink.probability(e, sum.without_constants(static_cast<std::uint32_t>(summed_)).value());
      }
      clear();
    }
  }

 private:
  InstructionSet instructions_;
  int summed_ = 0;  ///< tokens whose probabilities are in high_ and low_
  Scores scores_;
  ChosenSideBySide<is_over_selected<Scoring>, k_count> chosen_;
  alignas(64) KeysSideBySide key_[capacity];
  alignas(64) KeysSideBySide plain_[Traits::plain_losses > 0 ? plain_count : 1];  ///< what a plain top-k chooses
  std::int32_t balanced_[Traits::marks_tokens ? lane_count : 1];                  ///< 1 for tokens that the losses see
  alignas(64) std::uint32_t high_[sums_units ? capacity : 1][lane_count];         ///< with low_, sums of UnitBits
  alignas(64) std::uint32_t low_[sums_units ? capacity : 1][lane_count];

  template <class Sink>
  [[nodiscard]] MOEB_INLINE bool forward_here(const Problem& problem, const TileT& tile, const SegmentRows& rows,
                                              std::int64_t first, const float* bias, Sink& sink) {
    for (int i = 0; i < lane_count; ++i) {
      if (!is_active(problem, rows[first + i])) return false;
    }
    if (!scores_.load(problem.logits, rows, first)) return false;
    if constexpr (has_scores) scores_.find(problem.scoring);
    find_keys(bias);
    if constexpr (narrows_side_by_side<TopKT>) problem.top_k.narrow_side_by_side(scores_.experts, key_);
    select(bias != nullptr);
    if constexpr (Traits::plain_losses > 0) select_plain(bias != nullptr);
    if constexpr (keeps_fewer<TopKT>) {
      if (!empty_unkept(problem.top_k, bias)) return false;
    }
    if (!chosen_.weigh(problem.top_k.weighting())) return false;
    store(problem, rows, first);
    int balanced = lane_count;
    if constexpr (Traits::marks_tokens) {
      balanced = 0;
      for (int i = 0; i < lane_count; ++i) {
        balanced_[i] = is_balanced(problem, rows[first + i]) ? 1 : 0;
        balanced += balanced_[i];
      }
    }
    for (int i = 0; i < lane_count; ++i) {
      for (int k = 0; k < k_count; ++k) {
        if (keeps_fewer<TopKT> && !chosen_.is_used(k, i)) continue;
        sink.count(chosen_.expert[k][i]);
        if constexpr (Traits::marks_tokens) {
          if (is_marked(i)) sink.load_count(chosen_.expert[k][i]);
        }
      }
    }
    if constexpr (Traits::plain_losses > 0) {
      for (int i = 0; i < lane_count; ++i) {
        for (int k = 0; k < plain_count && is_marked(i); ++k) sink.loss_count(plain_[k][i]);
      }
    }
    if constexpr (Traits::arrival_losses > 0) count_arrivals(problem, sink);
    sink.tokens_apart(balanced);
    if (balanced == 0) return true;
    if constexpr (Traits::losses > 0) add_probabilities(sink);
    if constexpr (Traits::token_losses > 0) add_token_losses(problem, tile, sink);
    return true;
  }

  /// Whether the load and the losses see a lane's token.
  [[nodiscard]] MOEB_INLINE bool is_marked([[maybe_unused]] int lane) const {
    if constexpr (Traits::marks_tokens)
      return balanced_[lane] != 0;
    else
      return true;
  }

  MOEB_INLINE void clear() {
    summed_ = 0;
    for (int e = 0; e < (sums_units ? scores_.experts : 0); ++e) {
      for (int i = 0; i < lane_count; ++i) high_[e][i] = 0;
      for (int i = 0; i < lane_count; ++i) low_[e][i] = 0;
    }
  }

  /// What experts are ranked by, but for the bias.
  [[nodiscard]] MOEB_INLINE const NumbersSideBySide* ranked() const {
    return is_over_selected<Scoring> ? scores_.logit : scores_.score;
  }

  /// As rank_keys, of logits that are finite.
  MOEB_INLINE void find_keys(const float* bias) {
    const NumbersSideBySide* const value = ranked();
    for (int e = 0; e < scores_.experts; ++e) {
      if (bias != nullptr) {
        const float added = bias[e];
        for (int i = 0; i < lane_count; ++i) {
          const float ranking = Ranking::with_bias(value[e][i], added);
          key_[e][i] = choose(ranking != ranking, nan_key<Key<float>>, Ranking::of_sum(ranking));
        }
      } else {
        for (int i = 0; i < lane_count; ++i)
          key_[e][i] = choose(value[e][i] != value[e][i], nan_key<Key<float>>, Ranking::of_value(value[e][i]));
      }
    }
  }

  /// Fills chosen_, but for factors. A key tells what it was made of, but for a bias and the sign of a score that is 0.
  MOEB_INLINE void select(bool has_bias) {
    alignas(64) KeysSideBySide best[k_count];
    select_in_lanes<k_count>(instructions_, key_, scores_.experts, chosen_.expert, best);
    if (!has_bias && (Ranking::are_non_negative || is_over_selected<Scoring>)) {
      for (int k = 0; k < k_count; ++k) {
        for (int i = 0; i < lane_count; ++i) chosen_.score[k][i] = value_of_key<float>(best[k][i]);
      }
    } else {
      for (int k = 0; k < k_count; ++k) {
        for (int i = 0; i < lane_count; ++i) chosen_.score[k][i] = ranked()[chosen_.expert[k][i]][i];
      }
    }
  }

  /// Fills plain_. Without a bias, and where none is excluded, select has found the same.
  MOEB_INLINE void select_plain(bool has_bias) {
    if (has_bias || is_narrowing<TopKT>) {
      alignas(64) KeysSideBySide best[plain_count];
      find_keys(nullptr);
      select_in_lanes<plain_count>(instructions_, key_, scores_.experts, plain_, best);
    } else {
      __builtin_memcpy(plain_, chosen_.expert, sizeof(plain_));
    }
  }

  /// Of the chosen; false if a token's weights, before any slot is empty, are not finite.
  [[nodiscard]] MOEB_INLINE bool empty_unkept(const TopKT& top_k, const float* bias) {
    alignas(64) NumbersSideBySide logit[is_over_selected<Scoring> ? k_count : 1];
    if constexpr (is_over_selected<Scoring>) __builtin_memcpy(logit, chosen_.score, sizeof(logit));
    if (!chosen_.weigh(top_k.weighting())) return false;
    chosen_.template empty_unkept<Ranking>(top_k, bias, logit);
    return true;
  }

  MOEB_INLINE void store(const Problem& problem, const SegmentRows& rows, std::int64_t first) const {
    const float scaling = problem.top_k.weighting().scaling_factor;
    alignas(64) NumbersSideBySide weight[k_count];
    for (int k = 0; k < k_count; ++k) {
      NumbersSideBySide
          product;  // which no function has seen: a compiler cannot tell `weight` from what it is computed from
      for (int i = 0; i < lane_count; ++i) product[i] = chosen_.weight(k, i, scaling);
      for (int i = 0; i < lane_count; ++i) weight[k][i] = product[i];
    }
    for (int i = 0; i < lane_count; ++i) {
      std::int32_t* const ids = problem.experts.data + rows[first + i] * problem.experts.stride;
      for (int k = 0; k < k_count; ++k) ids[k] = chosen_.expert[k][i];
    }
    store_side_by_side(problem.weights, rows, first, weight);
  }

  /// count_arrivals_of.
  template <class Sink>
  MOEB_INLINE void count_arrivals(const Problem& problem, Sink& sink) const {
    for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
      if constexpr (counts_arrivals<std::remove_cvref_t<decltype(part)>>) {
        alignas(64) KeysSideBySide arrived[k_count];
        chosen_.find_arrivals(scores_.experts / static_cast<int>(part.devices), arrived);
        for (int i = 0; i < lane_count; ++i) {
          for (int k = 0; k < k_count && is_marked(i); ++k) sink.arrivals_of(chosen_.expert[k][i], arrived[k][i]);
        }
      }
    });
  }

  template <class Sink>
  MOEB_INLINE void add_probabilities(Sink& sink) {
    alignas(64) NumbersSideBySide inverse;
    if constexpr (!Scores::is_softmax) scores_.silence();
    if constexpr (!is_normalised<Scoring>) {
      scores_.add_up([&](int e, int i) MOEB_LAMBDA { return scores_.score[e][i]; }, inverse);
      for (int i = 0; i < lane_count; ++i) inverse[i] = inverse_of_sum(inverse[i]);
    }
    for (int e = 0; e < scores_.experts; ++e) {
      for (int i = 0; i < lane_count; ++i) {
        const float of_token = is_normalised<Scoring> ? scores_.score[e][i] : mul(scores_.score[e][i], inverse[i]);
        const float probability = choose(is_marked(i), of_token, 0.0f);
        if constexpr (sums_units) {
          const UnitBits bits = unit_to_bits(probability);
          high_[e][i] += bits.high;
          low_[e][i] += bits.low;
        } else {
          sink.probability(e, to_fixed<probability_fraction_bits>(probability));
        }
      }
    }
    if constexpr (sums_units) {
      summed_ += lane_count;
      if (summed_ == most_unit_sums) carry(sink);
    }
  }

  /// Scores are overwritten.
  template <class Sink>
  MOEB_INLINE void add_token_losses(const Problem& problem, const TileT& tile, Sink& sink) {
    alignas(64) NumbersSideBySide log_of_sum;
    alignas(64) NumbersSideBySide entropy = {};
    scores_.find_softmax_for_losses();
    if constexpr (Traits::entropy_losses > 0)
      scores_.find_entropies(log_of_sum, entropy);
    else
      scores_.find_logarithms(log_of_sum);
    for (int i = 0; i < lane_count; ++i) {
      if (is_marked(i)) add_losses_of_token(problem, tile, add(scores_.maximum[i], log_of_sum[i]), entropy[i], sink);
    }
  }
};

MOEB_NAMESPACE_END
