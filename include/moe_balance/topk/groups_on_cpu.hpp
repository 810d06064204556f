// Which groups of experts a token may choose from, on a CPU thread: of a row in memory, and of rows side by side. No step is a branch on a key. Results are
// those of GroupLimitedTopK's other ways.
#pragma once

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/select_in_lanes.hpp>
#include <moe_balance/numeric/transpose.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The groups of a row, as GroupLimitedTopK has them.
struct GroupsOfRow {
  static constexpr int most = 32;           ///< groups
  static constexpr int most_score_top = 8;  ///< values in a group's score

  int groups;     ///< 1 to `most`
  int kept;       ///< best groups, 1 to `groups`
  int score_top;  ///< best values that a group's score sums
  int size;       ///< experts in each
};

/// A vector of keys, one of them a column; any processor's vectors make it up.
using EightColumns = std::int32_t __attribute__((vector_size(32)));
/// Half of them.
using FourColumns = std::int32_t __attribute__((vector_size(16)));
/// Columns of EightColumns.
inline constexpr int column_count = 8;

/// The two best keys of each column. Vectors go by reference: compilers warn of those that functions return.
template <class Keys>
struct BestOfColumns {
  Keys first;   ///< the best
  Keys second;  ///< the best but one

  /// One more key in each column.
  __attribute__((always_inline)) void insert(const Keys& key) {
    const Keys smaller = first > key ? key : first;
    first = first > key ? first : key;
    second = second > smaller ? second : smaller;
  }
  /// Other keys' two best.
  __attribute__((always_inline)) void merge(const BestOfColumns& other) {
    insert(other.first);
    second = second > other.second ? second : other.second;
  }
};

/// Calls f(slot, inside) for each eight slots of a group from `slot` on; of the last eight some may be others', where `inside` is 0 and not -1. Up to seven
/// slots behind a row's last one must be there.
template <class Function>
__attribute__((always_inline)) inline void for_each_eight(int first, int size, const Function& f) {
  constexpr EightColumns column = {0, 1, 2, 3, 4, 5, 6, 7};
  int i = 0;
  for (; i + column_count <= size; i += column_count) f(first + i, EightColumns{} - 1);
  if (i < size) f(first + i, column < size - i);
}

/// The two best keys of a group, in four columns.
__attribute__((always_inline)) inline void find_best_of_group(const std::int32_t* keys, int first, int size,
                                                              FourColumns& best, FourColumns& second) {
  const EightColumns none = EightColumns{} + excluded_key<std::int32_t>;
  BestOfColumns<EightColumns> of_eight{none, none};
  for_each_eight(first, size, [&](int slot, const EightColumns& inside) MOEB_LAMBDA {
    EightColumns key;
    __builtin_memcpy(&key, keys + slot, sizeof(key));
    of_eight.insert(inside != 0 ? key : none);
  });
  BestOfColumns<FourColumns> half[2];
  std::int32_t column[2][column_count];
  __builtin_memcpy(column[0], &of_eight.first, sizeof(of_eight.first));
  __builtin_memcpy(column[1], &of_eight.second, sizeof(of_eight.second));
  for (int h = 0; h < 2; ++h) {
    __builtin_memcpy(&half[h].first, column[0] + 4 * h, sizeof(FourColumns));
    __builtin_memcpy(&half[h].second, column[1] + 4 * h, sizeof(FourColumns));
  }
  half[0].merge(half[1]);
  best = half[0].first;
  second = half[0].second;
}

/// The key of the score of a group whose best keys are `first` and `second`.
[[nodiscard]] MOEB_INLINE std::int32_t group_score_key(int score_top, std::int32_t first, std::int32_t second) {
  const float one = add(0.0f, value_of_key<float>(first));
  const float two = add(one, value_of_key<float>(second));
  const float score = choose(score_top == 1, one, two);
  return choose(score != score, nan_key<std::int32_t>, key_of_number(score));
}

/// score[g]: group g's score's key.
__attribute__((always_inline)) inline void find_group_scores(const std::int32_t* keys, const GroupsOfRow& row,
                                                             std::int32_t* score) {
  for (int g = 0; g < row.groups; g += 4) {
    FourColumns first[4];
    FourColumns second[4];
    for (int i = 0; i < 4; ++i) {
      const int group = g + i < row.groups ? g + i : g;
      find_best_of_group(keys, group * row.size, row.size, first[i], second[i]);
    }
    transpose_four(first[0], first[1], first[2], first[3]);
    transpose_four(second[0], second[1], second[2], second[3]);
    BestOfColumns<FourColumns> best{first[0], second[0]};
    for (int i = 1; i < 4; ++i) best.merge({first[i], second[i]});
    std::int32_t best_key[2][4];
    __builtin_memcpy(best_key[0], &best.first, sizeof(best.first));
    __builtin_memcpy(best_key[1], &best.second, sizeof(best.second));
    for (int i = 0; i < 4; ++i) score[g + i] = group_score_key(row.score_top, best_key[0][i], best_key[1][i]);
  }
}

/// stays[g]: -1 if group g is one of the best `kept`, of equal ones the first, else 0.
__attribute__((always_inline)) inline void find_kept_groups(const GroupsOfRow& row, const std::int32_t* score,
                                                            std::int32_t* stays) {
  EightColumns group = {0, 1, 2, 3, 4, 5, 6, 7};
  for (int g = 0; g < row.groups; g += column_count, group += column_count) {
    EightColumns own;
    __builtin_memcpy(&own, score + g, sizeof(own));
    EightColumns better{};  // minus their number
    for (int other = 0; other < row.groups; ++other) {
      const EightColumns its = EightColumns{} + score[other];
      better += (its > own) | ((its == own) & (group > other));
    }
    const EightColumns result = better > -row.kept;
    __builtin_memcpy(stays + g, &result, sizeof(result));
  }
}

/// Makes excluded_key of the keys of all groups but the best, whose scores are of one value or two.
__attribute__((always_inline)) inline void exclude_groups(const GroupsOfRow& row, std::int32_t* keys) {
  alignas(64) std::int32_t score[GroupsOfRow::most];
  alignas(64) std::int32_t stays[GroupsOfRow::most];
  for (int g = 0; g < GroupsOfRow::most; ++g) score[g] = excluded_key<std::int32_t>;
  find_group_scores(keys, row, score);
  find_kept_groups(row, score, stays);
  const EightColumns none = EightColumns{} + excluded_key<std::int32_t>;
  for (int g = 0; g < row.groups; ++g) {
    const EightColumns left_out = EightColumns{} + ~stays[g];
    for_each_eight(g * row.size, row.size, [&](int slot, const EightColumns& inside) MOEB_LAMBDA {
      EightColumns key;
      __builtin_memcpy(&key, keys + slot, sizeof(key));
      key = (inside & left_out) != 0 ? none : key;
      __builtin_memcpy(keys + slot, &key, sizeof(key));
    });
  }
}

/// score[g][i]: the key of group g's score in row i.
MOEB_INLINE void find_group_scores_side_by_side(const GroupsOfRow& row, const KeysSideBySide* keys, KeysSideBySide* score) {
  for (int g = 0; g < row.groups; ++g) {
    alignas(64) KeysSideBySide best[GroupsOfRow::most_score_top];
    for (int t = 0; t < row.score_top; ++t) {
      for (int i = 0; i < lane_count; ++i) best[t][i] = excluded_key<std::int32_t>;
    }
    for (int e = g * row.size; e < (g + 1) * row.size; ++e) {
      alignas(64) KeysSideBySide key;
      for (int i = 0; i < lane_count; ++i) key[i] = keys[e][i];
      for (int t = 0; t < row.score_top; ++t) {
        for (int i = 0; i < lane_count; ++i) {
          const std::int32_t smaller = smaller_of(key[i], best[t][i]);
          best[t][i] = larger_of(key[i], best[t][i]);
          key[i] = smaller;
        }
      }
    }
    alignas(64) float sum[lane_count] = {};
    for (int t = 0; t < row.score_top; ++t) {
      for (int i = 0; i < lane_count; ++i) sum[i] = add(sum[i], value_of_key<float>(best[t][i]));
    }
    for (int i = 0; i < lane_count; ++i)
      score[g][i] = choose(sum[i] != sum[i], nan_key<std::int32_t>, key_of_number(sum[i]));
  }
}

/// exclude_groups for rows side by side, with scores of any number of values.
MOEB_INLINE void exclude_groups_side_by_side(const GroupsOfRow& row, KeysSideBySide* keys) {
  alignas(64) KeysSideBySide score[GroupsOfRow::most];
  find_group_scores_side_by_side(row, keys, score);
  for (int g = 0; g < row.groups; ++g) {
    alignas(64) KeysSideBySide better = {};  // groups
    for (int other = 0; other < row.groups; ++other) {
      const std::int32_t wins_ties = other < g ? 1 : 0;
      for (int i = 0; i < lane_count; ++i) {
        const std::int32_t is_better = score[other][i] > score[g][i] ? 1 : 0;
        const std::int32_t is_equal = score[other][i] == score[g][i] ? 1 : 0;
        better[i] += is_better | (is_equal & wins_ties);
      }
    }
    for (int e = g * row.size; e < (g + 1) * row.size; ++e) {
      for (int i = 0; i < lane_count; ++i) keys[e][i] = choose(better[i] < row.kept, keys[e][i], excluded_key<std::int32_t>);
    }
  }
}

MOEB_NAMESPACE_END
