// GroupLimitedTopK: experts lie in `groups` equal groups (one per node or device); a token first chooses `groups_kept` groups, then its
// K experts inside them, so that it travels to few places.
// A group's score is the sum of its best `group_score_top` ranking values: 2 in DeepSeek-V3, 1 in DeepSeek-V2, K / groups_kept in
// Megatron-Core. Experts of other groups rank below everything, also where ranking values are negative or NaN.
// Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.3; DeepSeek-V3, arXiv 2412.19437, section 2.1.2.
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/top_k_concepts.hpp>
#include <moe_balance/topk/groups_on_cpu.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <int K>
struct GroupLimitedTopK {
  static_assert(K >= 1 && K <= max_top_k, "GroupLimitedTopK chooses 1 to 32 experts per token");
  static constexpr int k = K;
  static constexpr int max_groups = GroupsOfRow::most;                     ///< most groups
  static constexpr int max_group_score_top = GroupsOfRow::most_score_top;  ///< largest group_score_top

  int groups = 8;               ///< equal groups of neighbouring experts, 1 to 32, a divisor of E
  int groups_kept = 4;          ///< together at least K experts
  int group_score_top = 2;      ///< best values that a group's score sums: 2 in DeepSeek-V3, 1 in V2
  bool renormalise = true;      ///< where K > 1
  float scaling_factor = 1.0f;  ///< multiplies every weight

  [[nodiscard]] MOEB_INLINE constexpr Weighting weighting() const { return {renormalise, scaling_factor}; }

  void check(const char* call, int experts) const {
    MOEB_EXPECTS(groups >= 1 && groups <= max_groups && experts % groups == 0, call, "top_k.groups", groups,
                 "a divisor of the ", experts, " experts, 1 to ", max_groups);
    const int size = experts / groups;
    MOEB_EXPECTS(groups_kept >= 1 && groups_kept <= groups && groups_kept * size >= K, call, "top_k.groups_kept",
                 groups_kept, "1 to ", groups, " groups of ", size, " experts, together at least K = ", K);
    const int most = size < max_group_score_top ? size : max_group_score_top;
    MOEB_EXPECTS(group_score_top >= 1 && group_score_top <= most, call, "top_k.group_score_top", group_score_top, "1 to ",
                 most);
    MOEB_EXPECTS(is_finite(scaling_factor), call, "top_k.scaling_factor", std::to_string(scaling_factor), "finite numbers");
  }

  /// Excludes the keys of all groups but the `groups_kept` best; equal group scores go to the smaller group.
  MOEB_NO_EXECUTION_CHECK
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT& tile, const LayoutT& layout, Keys& keys) const {
    constexpr bool is_row_of_floats = !LayoutT::in_registers && std::is_same_v<Real, float>;
    if constexpr (is_row_of_floats) {
      if (groups_kept == groups) return;
      if (group_score_top <= 2) return exclude_groups(groups_of(layout.experts), &keys[0]);
    }
    // Where a lane has more keys, their best ones would not fit its registers beside them.
    if constexpr (LayoutT::in_registers && LayoutT::capacity <= 32) {
      const int shift = shift_of_lanes<TileT>(layout.experts);
      if (4 * groups << shift == layout.experts && group_score_top <= 2) {
        return narrow_by_neighbours<Real, TileT, LayoutT>(tile, shift, keys);
      }
    }
    const int size = layout.experts / groups;
    std::uint32_t kept;
    if (!is_row_of_floats && group_score_top <= 2)
      kept = kept_groups<2, Real>(tile, layout, keys, size);
    else
      kept = kept_groups<max_group_score_top, Real>(tile, layout, keys, size);
    // expert / size by multiplication: exact, because experts <= 32 * size.
    const auto reciprocal = ((1u << 22) + static_cast<std::uint32_t>(size) - 1) / static_cast<std::uint32_t>(size);
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA {
      const std::uint32_t group = (static_cast<std::uint32_t>(layout.expert(slot)) * reciprocal) >> 22;
      keys[slot] =
          ((kept >> (group & 31u)) & 1u) != 0 ? keys[slot] : excluded_key<Key<Real>>;  // padding is excluded already
    });
  }

  /// The same on a CPU thread, of rows side by side: keys[e][i] is row i's.
  MOEB_INLINE void narrow_side_by_side(int experts, KeysSideBySide* keys) const {
    if (groups_kept < groups) exclude_groups_side_by_side(groups_of(experts), keys);
  }

 private:
  [[nodiscard]] MOEB_INLINE GroupsOfRow groups_of(int experts) const {
    return {groups, groups_kept, group_score_top, experts / groups};
  }

  /// s, where a group's quads would lie on 2^s lanes: the largest with 4 * groups * 2^s <= experts, of one tile at most.
  template <class TileT>
  [[nodiscard]] MOEB_INLINE int shift_of_lanes(int experts) const {
    int shift = 0;
    MOEB_UNROLL
    for (int i = 1; 1 << i <= TileT::width; ++i) shift += static_cast<int>(4 * groups << i <= experts);
    return shift;
  }

  /// Where groups are a power of two of quads, on neighbouring lanes of registers, and their scores are of two values at most, all are scored
  /// at once by a few exchanges between neighbours. DeepSeek-V3's 8 groups of 32 experts are such.
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow_by_neighbours(const TileT& tile, int shift, Keys& keys) const {
    constexpr int quads = LayoutT::capacity / 4;
    Best<2, Key<Real>> best[quads];
    MOEB_UNROLL
    for (int i = 0; i < quads; ++i) best[i] = best_of_quad<Real>(keys, 4 * i);
    MOEB_UNROLL
    for (int distance = 1; distance < TileT::width; distance *= 2) {
      if (distance >> shift != 0) break;
      MOEB_UNROLL
      for (int i = 0; i < quads; ++i) best[i] = best_of_pairs(best[i], neighbours(tile, best[i], distance));
    }
    Key<Real> score[quads];  // of the group that has the lane's quad i
    MOEB_UNROLL
    for (int i = 0; i < quads; ++i) {
      const Real first = add(Real(0), value_of_key<Real>(best[i].key[0]));
      score[i] = ordered_key(group_score_top == 1 ? first : add(first, value_of_key<Real>(best[i].key[1])));
    }
    const std::uint32_t kept = best_groups(tile, gathered_scores<Real>(tile, 1 << shift, score));
    MOEB_UNROLL
    for (int i = 0; i < quads; ++i) {
      const int group = (tile.lane() + TileT::width * i) >> shift;  // 32 and more for padding, which is excluded already
      const bool stays = ((kept >> (group & 31)) & 1u) != 0;
      MOEB_UNROLL
      for (int j = 4 * i; j < 4 * i + 4; ++j) keys[j] = stays ? keys[j] : excluded_key<Key<Real>>;
    }
  }

  template <class Key>
  [[nodiscard]] MOEB_INLINE static Key larger_key(Key a, Key b) {
    return a > b ? a : b;
  }
  template <class Key>
  [[nodiscard]] MOEB_INLINE static Key smaller_key(Key a, Key b) {
    return a < b ? a : b;
  }

  /// The two best of two pairs of keys, each in order.
  template <class BestT>
  [[nodiscard]] MOEB_INLINE static BestT best_of_pairs(const BestT& a, const BestT& b) {
    BestT result;
    result.key[0] = larger_key(a.key[0], b.key[0]);
    result.key[1] = larger_key(smaller_key(a.key[0], b.key[0]), larger_key(a.key[1], b.key[1]));
    return result;
  }

  template <class Real, class Keys>
  [[nodiscard]] MOEB_INLINE static auto best_of_quad(const Keys& keys, int slot) {
    Best<2, Key<Real>> pairs[2];
    MOEB_UNROLL
    for (int i = 0; i < 2; ++i) {
      pairs[i].key[0] = larger_key(keys[slot + 2 * i], keys[slot + 2 * i + 1]);
      pairs[i].key[1] = smaller_key(keys[slot + 2 * i], keys[slot + 2 * i + 1]);
    }
    return best_of_pairs(pairs[0], pairs[1]);
  }

  template <class TileT, class BestT>
  [[nodiscard]] MOEB_INLINE static BestT neighbours(const TileT& tile, const BestT& best, int distance) {
    BestT result;
    MOEB_UNROLL
    for (int i = 0; i < 2; ++i) result.key[i] = tile.shuffle_xor(best.key[i], distance);
    return result;
  }

  template <int Local, class Key>
  struct GroupScores {
    Key score[Local];  ///< of groups lane, lane + width, ...
  };

  template <class Real, class TileT, int Quads>
  [[nodiscard]] MOEB_INLINE auto gathered_scores(const TileT& tile, int lanes, const Key<Real> (&of_quad)[Quads]) const {
    GroupScores<max_groups / TileT::width, Key<Real>> result;
    MOEB_UNROLL
    for (int r = 0; r < max_groups / TileT::width; ++r) {
      const int group = tile.lane() + TileT::width * r;
      const int first_quad = group * lanes;
      result.score[r] = excluded_key<Key<Real>>;
      MOEB_UNROLL
      for (int i = 0; i < Quads; ++i) {
        const Key<Real> key = tile.shuffle(of_quad[i], first_quad % TileT::width);
        result.score[r] = first_quad / TileT::width == i && group < groups ? key : result.score[r];
      }
    }
    return result;
  }

  /// The best `Count` keys seen, in order.
  template <int Count, class Key>
  struct Best {
    Key key[Count];

    MOEB_INLINE constexpr Best() {
      MOEB_UNROLL
      for (int i = 0; i < Count; ++i) key[i] = excluded_key<Key>;
    }
    MOEB_INLINE void insert(Key value) {
      MOEB_UNROLL
      for (int i = 0; i < Count; ++i) {
        const Key larger = value > key[i] ? value : key[i];
        value = value > key[i] ? key[i] : value;
        key[i] = larger;
      }
    }
    MOEB_INLINE void remove_first() {
      MOEB_UNROLL
      for (int i = 0; i + 1 < Count; ++i) key[i] = key[i + 1];
      key[Count - 1] = excluded_key<Key>;
    }
  };

  /// The lane's best keys of experts first to last - 1. A lane with slots in memory keeps eight running bests, which vectorise.
  template <int Count, class Real, class LayoutT, class Keys>
  [[nodiscard]] MOEB_INLINE Best<Count, Key<Real>> best_of_lane(const LayoutT& layout, const Keys& keys, int first,
                                                                int last) const {
    using LaneKey = Key<Real>;
    constexpr int columns = LayoutT::in_registers ? 1 : 8;
    LaneKey best[Count][columns];
    for (int i = 0; i < Count; ++i) {
      for (int c = 0; c < columns; ++c) best[i][c] = excluded_key<LaneKey>;
    }
    const int first_slot = LayoutT::in_registers ? 0 : first / columns * columns;
    const int last_slot = LayoutT::in_registers ? LayoutT::capacity : last;
    const int first_offset = first - layout.base();
    const int last_offset = last - layout.base();
    MOEB_UNROLL
    for (int slot = first_slot; slot < last_slot; slot += columns) {
      LaneKey value[columns];
      MOEB_UNROLL
      for (int c = 0; c < columns; ++c) {
        const int offset = LayoutT::offset(slot + c);
        value[c] = both(offset >= first_offset, offset < last_offset) ? keys[slot + c] : excluded_key<LaneKey>;
      }
      MOEB_UNROLL
      for (int i = 0; i < Count; ++i) {
        MOEB_UNROLL
        for (int c = 0; c < columns; ++c) {
          const LaneKey larger = value[c] > best[i][c] ? value[c] : best[i][c];
          value[c] = value[c] > best[i][c] ? best[i][c] : value[c];
          best[i][c] = larger;
        }
      }
    }
    Best<Count, LaneKey> result;
    MOEB_UNROLL
    for (int i = 0; i < Count; ++i) {
      MOEB_UNROLL
      for (int c = 0; c < columns; ++c) result.insert(best[i][c]);
    }
    return result;
  }

  /// Sum of the group's best values in descending order, the same on every lane.
  template <int Count, class Real, class TileT, class LayoutT, class Keys>
  [[nodiscard]] MOEB_INLINE Real group_score(const TileT& tile, const LayoutT& layout, const Keys& keys, int first,
                                             int last) const {
    auto best = best_of_lane<Count, Real>(layout, keys, first, last);
    Real sum = 0;
    MOEB_NO_UNROLL
    for (int i = 0; i < group_score_top; ++i) {
      const Key<Real> key = tile.maximum(best.key[0]);
      const int owner = tile.minimum(best.key[0] == key ? tile.lane() : TileT::width);
      sum = add(sum, value_of_key<Real>(key));
      if (owner == tile.lane()) best.remove_first();
    }
    return sum;
  }

  /// A bit for each group that is kept.
  template <int Count, class Real, class TileT, class LayoutT, class Keys>
  [[nodiscard]] MOEB_INLINE std::uint32_t kept_groups(const TileT& tile, const LayoutT& layout, const Keys& keys,
                                                      int size) const {
    constexpr int local = max_groups / TileT::width;
    GroupScores<local, Key<Real>> scores;
    MOEB_UNROLL
    for (int r = 0; r < local; ++r) scores.score[r] = excluded_key<Key<Real>>;
    MOEB_NO_UNROLL
    for (int group = 0; group < groups; ++group) {
      const Key<Real> key = ordered_key(group_score<Count, Real>(tile, layout, keys, group * size, (group + 1) * size));
      MOEB_UNROLL
      for (int r = 0; r < local; ++r) {
        scores.score[r] = group == tile.lane() + TileT::width * r ? key : scores.score[r];
      }
    }
    return best_groups(tile, scores);
  }

  template <class TileT, class Key, int Local>
  [[nodiscard]] MOEB_INLINE std::uint32_t best_groups(const TileT& tile, GroupScores<Local, Key> scores) const {
    Key(&score)[Local] = scores.score;
    std::uint32_t kept = 0;
    MOEB_NO_UNROLL
    for (int round = 0; round < groups_kept; ++round) {
      Key best = excluded_key<Key>;
      MOEB_UNROLL
      for (int r = 0; r < Local; ++r) best = score[r] > best ? score[r] : best;
      best = tile.maximum(best);
      std::int32_t group = max_groups;
      MOEB_UNROLL
      for (int r = Local - 1; r >= 0; --r) group = score[r] == best ? tile.lane() + TileT::width * r : group;
      group = tile.minimum(group);
      kept |= 1u << group;
      MOEB_UNROLL
      for (int r = 0; r < Local; ++r) {
        score[r] = group == tile.lane() + TileT::width * r ? excluded_key<Key> : score[r];
      }
    }
    return kept;
  }
};
/// See concepts.hpp.
template <int K>
inline constexpr bool narrows_side_by_side<GroupLimitedTopK<K>> = true;
static_assert(TopKPolicy<GroupLimitedTopK<8>>);

MOEB_NAMESPACE_END
