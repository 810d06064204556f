// The K largest keys of a row that one CPU thread has in memory: larger key first, equal keys by smaller slot.
// The maxima of some columns give a threshold that at least K keys reach, and few more; the keys that reach it are then ranked by counting.
// Loops over keys vectorise, and hardly a branch depends on the data.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/tile/layout.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// rank[i] = how many of the values are larger than value[i].
template <class T, int N>
MOEB_EARLY_INLINE void count_larger(const T (&value)[N], T (&rank)[N]) {
  for (int i = 0; i < N; ++i) rank[i] = 0;
  for (int j = 0; j < N; ++j) {
    for (int i = 0; i < N; ++i) rank[i] += value[j] > value[i] ? 1 : 0;
  }
}

/// One row's selection, in two steps that other work may come between: `begin`, then `finish` with the same keys, of which at least Count are
/// not excluded. `slot` has the result.
template <class LayoutT, class K, int Count>
class MemorySelection {
 public:
  using Keys = Slots<K, LayoutT>;

  /// Slots past the last block may be written.
  MOEB_EARLY_INLINE void begin(const LayoutT& layout, Keys& keys) {
    slots_ = layout.blocks() * LayoutT::block_size;
    if constexpr (step > LayoutT::block_size) {
      for (; slots_ % step != 0; ++slots_) keys[slots_] = excluded_key<K>;
    }
    if constexpr (ranks) {
      find_threshold(keys);
      mark(keys, 0);
    }
  }

  MOEB_NO_EXECUTION_CHECK
  MOEB_EARLY_INLINE void finish(const Keys& keys) {
    for (std::int32_t& each : slot_) each = 0;  // should fewer than Count be left to choose from
    if constexpr (ranks) {
      if (gather_all(keys)) return rank_candidates();
    }
    insert_all(keys);
  }

  /// The slot of rank k < Count.
  [[nodiscard]] MOEB_EARLY_INLINE std::int32_t slot(int k) const { return slot_[k]; }

 private:
  /// Column c has slots c, c + columns, c + 2 columns, ... There are about twice as many as are chosen: of equally likely experts then
  /// 1.3 Count keys reach the threshold.
  static constexpr int columns = Count <= 4 ? 8 : Count <= 8 ? 16 : Count <= 16 ? 32 : 64;
  static constexpr K column_bits = columns - 1;
  static constexpr int slots_marked = 32 * columns;
  /// Four rows at a time: one at a time would wait for the one before, whose result is in memory.
  static constexpr int step = 4 * columns;
  static_assert(LayoutT::capacity % step == 0);
  /// float64, which is for checks, only ever inserts: less to compile.
  static constexpr bool ranks = sizeof(K) == 4;

  int slots_;
  K threshold_ = nan_key<K>;
  K leader_[columns];            ///< the columns' maxima in descending order, the last bits of each replaced by its column
  std::uint32_t mark_[columns];  ///< a bit for each of a column's 32 keys that reaches the threshold
  int candidates_;
  alignas(64) std::int64_t candidate_[columns + (columns > 32 ? columns : 32)];  ///< ranked, if there are at most `columns`
  std::int32_t slot_[columns];

  /// A key and its slot as one integer: the larger one ranks first, so that equal keys go to the smaller slot.
  [[nodiscard]] MOEB_EARLY_INLINE static constexpr std::int64_t candidate(K key, std::int32_t slot) {
    return (static_cast<std::int64_t>(key) << 32) | static_cast<std::int64_t>(static_cast<std::uint32_t>(~slot));
  }

  [[nodiscard]] MOEB_EARLY_INLINE static constexpr K larger(K a, K b) { return a > b ? a : b; }

  MOEB_EARLY_INLINE void find_threshold(const Keys& keys) {
    alignas(64) K maximum[columns];
    for (int c = 0; c < columns; ++c) maximum[c] = excluded_key<K>;
    for (int first = 0; first < slots_; first += step) {
      for (int c = 0; c < columns; ++c) {
        const int slot = first + c;
        const K upper = larger(keys[slot], keys[slot + columns]);
        const K lower = larger(keys[slot + 2 * columns], keys[slot + 3 * columns]);
        maximum[c] = larger(maximum[c], larger(upper, lower));
      }
    }
    for (int c = 0; c < columns; ++c) maximum[c] = (maximum[c] & ~column_bits) | (column_bits - c);
    K rank[columns];
    count_larger(maximum, rank);
    for (int c = 0; c < columns; ++c) leader_[rank[c]] = maximum[c];
    const K least = leader_[Count - 1] & ~column_bits;
    threshold_ = least > nan_key<K> ? least : nan_key<K>;
  }

  /// Marks the keys of 32 rows.
  MOEB_EARLY_INLINE void mark(const Keys& keys, int first) {
    const K least = threshold_;
    K bits[columns];  // of its own, so that compilers know that keys lie elsewhere
    for (int c = 0; c < columns; ++c) bits[c] = 0;
    const int last = slots_ - first < slots_marked ? slots_ : first + slots_marked;
    for (int row = first; row < last; row += step) {
      const int shift = (row - first) / columns;
      for (int c = 0; c < columns; ++c) {
        const int slot = row + c;
        const K upper = (keys[slot] >= least ? 1 : 0) | (keys[slot + columns] >= least ? 2 : 0);
        const K lower = (keys[slot + 2 * columns] >= least ? 4 : 0) | (keys[slot + 3 * columns] >= least ? 8 : 0);
        bits[c] |= (upper | lower) << shift;
      }
    }
    for (int c = 0; c < columns; ++c) mark_[c] = static_cast<std::uint32_t>(bits[c]);
  }

  /// Whether there are few enough candidates.
  MOEB_EARLY_INLINE bool gather_all(const Keys& keys) {
    candidates_ = 0;
    for (std::int64_t& each : candidate_) each = candidate(excluded_key<K>, 0);
    gather(keys, 0);
    for (int first = slots_marked; first < LayoutT::capacity && first < slots_ && candidates_ <= columns;
         first += slots_marked) {
      mark(keys, first);
      gather(keys, first);
    }
    return candidates_ <= columns;
  }

  /// 0 or 1, without a comparison of which compilers would make a branch.
  [[nodiscard]] MOEB_EARLY_INLINE static int is_not_zero(std::uint32_t bits) {
    return static_cast<int>((bits | (0u - bits)) >> 31);
  }

  /// Collects the marked keys, up to some more than `columns`. Most columns that have one have only one.
  MOEB_EARLY_INLINE void gather(const Keys& keys, int first) {
    std::uint32_t others[columns];
    int column_of_others[columns];
    int columns_with_others = 0;
    int count = candidates_;
    const auto take = [&](std::uint32_t marks, int column, int valid) MOEB_EARLY_LAMBDA {
      const std::int32_t slot = first + lowest_bit(marks) * columns + column;
      candidate_[count] = candidate(keys[slot], slot);
      count += valid;
    };
    const auto take_first = [&](int i) MOEB_EARLY_LAMBDA {
      const int column = static_cast<int>(column_bits - (leader_[i] & column_bits));
      const std::uint32_t marks = mark_[column];
      const int any = is_not_zero(marks);
      take(marks + 1 - static_cast<std::uint32_t>(any), column, any);
      others[columns_with_others] = marks & (marks - 1);
      column_of_others[columns_with_others] = column;
      columns_with_others += is_not_zero(marks & (marks - 1));
    };
    for (int i = 0; i < Count; ++i)
      take_first(i);  // apart from the rest: as one loop, the forward pass takes a third longer
    for (int i = Count; i < columns && (leader_[i] | column_bits) >= threshold_; ++i) take_first(i);
    for (int i = 0; i < columns_with_others && count <= columns; ++i) {
      for (std::uint32_t left = others[i]; left != 0; left &= left - 1) take(left, column_of_others[i], 1);
    }
    candidates_ = count;
  }

  MOEB_EARLY_INLINE void rank_candidates() {
    std::int64_t value[columns];
    for (int i = 0; i < columns; ++i) value[i] = candidate_[i];
    std::int64_t rank[columns];
    count_larger(value, rank);
    for (int i = 0; i < columns; ++i) slot_[rank[i]] = ~static_cast<std::int32_t>(value[i]);
  }

  /// Many keys are equal, or lie in few columns: one after the other is inserted.
  __attribute__((noinline, cold)) void insert_all(const Keys& keys) {
    K best[Count];
    for (int k = 0; k < Count; ++k) best[k] = threshold_ - 1;
    for (std::int32_t i = 0; i < slots_; ++i) {
      if (keys[i] <= best[Count - 1]) continue;
      int k = Count - 1;
      for (; k > 0 && best[k - 1] < keys[i]; --k) {
        best[k] = best[k - 1];
        slot_[k] = slot_[k - 1];
      }
      best[k] = keys[i];
      slot_[k] = i;
    }
  }
};

MOEB_NAMESPACE_END
