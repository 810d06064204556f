// The K largest keys of each of some rows that one CPU thread has in memory: larger key first, equal keys by smaller slot.
// The maxima of some columns give a threshold that at least K keys of a row reach, and few more; those are sorted. Steps go over all rows before the next
// one begins: a row's steps depend on each other, another row's do not.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/sorting_network.hpp>
#include <moe_balance/tile/layout.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The selection of up to `Rows` rows, in steps: `look` at each, `find_thresholds`, `collect` of each, `rank`, `finish` each, all with the same keys, of
/// which at least Count in a row should not be excluded. `slot` has the result. Rows may be left out.
template <class LayoutT, class K, int Count, int Rows>
class MemorySelection {
 public:
  using Keys = Slots<K, LayoutT>;

  MOEB_EARLY_INLINE MemorySelection() {
    for (int c = 0; c < columns; ++c) {
      for (int r = 0; r < Rows; ++r) maximum_[c][r] = excluded_key<K>;
    }
  }

  /// Slots past the last block, and the first spare one, may be written.
  MOEB_EARLY_INLINE void look(const LayoutT& layout, int row, Keys& keys) {
    slots_ = layout.blocks() * LayoutT::block_size;
    if constexpr (step > LayoutT::block_size) {
      for (; slots_ % step != 0; ++slots_) keys[slots_] = excluded_key<K>;
    }
    if constexpr (ranks) {
      keys[no_slot] = excluded_key<K>;
      K maximum[columns];
      for (int c = 0; c < columns; ++c) maximum[c] = excluded_key<K>;
      for (int first = 0; first < slots_; first += step) {
        for (int c = 0; c < columns; ++c) {
          const int slot = first + c;
          const K upper = larger(keys[slot], keys[slot + columns]);
          const K lower = larger(keys[slot + 2 * columns], keys[slot + 3 * columns]);
          maximum[c] = larger(maximum[c], larger(upper, lower));
        }
      }
      for (int c = 0; c < columns; ++c) maximum_[c][row] = maximum[c];
    }
  }

  MOEB_EARLY_INLINE void find_thresholds() {
    if constexpr (ranks) {
      sort_rows<Count - 1, Count - 1>(maximum_);
      for (int r = 0; r < Rows; ++r) threshold_[r] = larger(maximum_[Count - 1][r], nan_key<K>);
      for (int i = 0; i < columns; ++i) {
        for (int r = 0; r < Rows; ++r) candidate_[i][r] = candidate(excluded_key<K>, no_slot);
      }
    }
  }

  MOEB_EARLY_INLINE void collect(int row, const Keys& keys) {
    if constexpr (ranks) {
      Marked queue[most_queued];
      for (int i = 0; i < sure; ++i) queue[i] = marked(1, no_slot);
      int end = queue_columns(keys, threshold_[row], queue);
      // Each of the queue has a candidate; if its column has more, it queues again. The first ones are taken without asking whether there are so many: a
      // branch on that would be foreseen wrongly.
      const auto take = [&](int i) MOEB_EARLY_LAMBDA {
        const Marked next = queue[i];
        const std::int32_t slot =
            static_cast<std::int32_t>(next >> 32) + lowest_bit(static_cast<std::uint32_t>(next)) * columns;
        candidate_[i][row] = candidate(keys[slot], slot);
        const Marked others = next & (next - 1);
        const bool has_others = static_cast<std::uint32_t>(others) != 0;
        queue[end] = has_others ? others : marked(1, no_slot);
        end += has_others ? 1 : 0;
      };
      if (end <= columns) {
        for (int i = 0; i < sure; ++i) take(i);
        for (int i = sure; i < end && i < columns; ++i) take(i);
      }
      candidates_[row] = end;
    }
  }

  MOEB_EARLY_INLINE void rank() {
    if constexpr (ranks) sort_rows<0, Count - 1>(candidate_);
  }

  MOEB_NO_EXECUTION_CHECK
  MOEB_EARLY_INLINE void finish(int row, const Keys& keys) {
    if constexpr (ranks) {
      if (candidates_[row] <= columns) return;
    }
    insert_all(row, keys);
  }

  /// The slot of a row's rank k < Count; 0 where no key was left for it (no_slot, less the bit above all slots).
  [[nodiscard]] MOEB_EARLY_INLINE std::int32_t slot(int row, int k) const {
    return static_cast<std::int32_t>(-static_cast<std::int64_t>(candidate_[k][row]) & (LayoutT::capacity - 1));
  }

 private:
  /// Column c has slots c, c + columns, c + 2 columns, ... There are about twice as many as are chosen: of equally likely experts then
  /// 1.3 Count keys reach the threshold.
  static constexpr int columns = Count <= 4 ? 8 : Count <= 8 ? 16 : Count <= 16 ? 32 : 64;
  /// Candidates that are taken at once: few rows have more.
  static constexpr int sure = Count + Count / 2 < columns ? Count + Count / 2 : columns;
  static constexpr int slots_marked = 32 * columns;
  /// Four of a column's slots at a time: one at a time would wait for the one before, whose result is in memory.
  static constexpr int step = 4 * columns;
  static_assert(LayoutT::capacity % step == 0);
  static constexpr std::int32_t no_slot = LayoutT::capacity;
  static_assert(Keys::spare > 0);
  /// At first a column for each 32 keys, or one for fewer; those that are not too many then queue again, once for each.
  static constexpr int most_queued = (LayoutT::capacity / 32 > 2 * columns ? LayoutT::capacity / 32 : 2 * columns) + 1;
  static constexpr std::int64_t slots_of_key = 2 * LayoutT::capacity;
  static_assert((LayoutT::capacity & (LayoutT::capacity - 1)) == 0 && LayoutT::capacity <= 1 << 19);
  /// float64, which is for checks, only ever inserts: less to compile.
  static constexpr bool ranks = sizeof(K) == 4;

  /// A column's marks, a bit for each of 32 keys, below their first slot.
  using Marked = std::uint64_t;
  [[nodiscard]] MOEB_EARLY_INLINE static constexpr Marked marked(std::uint32_t marks, std::int32_t first_slot) {
    return marks | static_cast<std::uint64_t>(first_slot) << 32;
  }

  int slots_ = 0;
  alignas(64) K maximum_[columns][Rows];  ///< of each column
  K threshold_[Rows];
  int candidates_[Rows];
  alignas(64) double candidate_[columns][Rows];  ///< ranked, if there are at most `columns`

  /// A key of 32 bits and its slot as one number, exactly: the larger one ranks first, so that equal keys go to the smaller slot. Not an integer, because
  /// processors without AVX-512 compare integers of 64 bits in more steps, or not at all.
  [[nodiscard]] MOEB_EARLY_INLINE static constexpr double candidate(K key, std::int32_t slot) {
    return static_cast<double>(static_cast<std::int64_t>(key) * slots_of_key - slot);
  }

  [[nodiscard]] MOEB_EARLY_INLINE static constexpr K larger(K a, K b) { return a > b ? a : b; }

  /// Queues the columns that have keys of at least `least`, 32 keys of each at a time; returns how many.
  MOEB_EARLY_INLINE int queue_columns(const Keys& keys, K least, Marked (&queue)[most_queued]) const {
    int end = 0;
    for (int first = 0; first < LayoutT::capacity && first < slots_; first += slots_marked) {
      std::uint32_t marks[columns];
      mark(keys, first, least, marks);
      for (int column = 0; column < columns; column += 32) {
        std::uint32_t any = 0;
        for (int c = 0; c < 32 && column + c < columns; ++c) any |= marks[column + c] != 0 ? 1u << c : 0u;
        for (; any != 0; any &= any - 1) {
          const int c = column + lowest_bit(any);
          queue[end++] = marked(marks[c], first + c);
        }
      }
    }
    return end;
  }

  /// Marks the keys of 32 rows of columns.
  MOEB_EARLY_INLINE void mark(const Keys& keys, int first, K least, std::uint32_t (&marks)[columns]) const {
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
    for (int c = 0; c < columns; ++c) marks[c] = static_cast<std::uint32_t>(bits[c]);
  }

  /// Many keys are equal, or lie in few columns: one after the other is inserted.
  __attribute__((noinline, cold)) void insert_all(int row, const Keys& keys) {
    K best[Count];
    std::int32_t best_slot[Count];
    for (int k = 0; k < Count; ++k) {
      best[k] = excluded_key<K>;
      best_slot[k] = 0;  // should fewer than Count be left to choose from
    }
    for (std::int32_t i = 0; i < slots_; ++i) {
      if (keys[i] <= best[Count - 1]) continue;
      int k = Count - 1;
      for (; k > 0 && best[k - 1] < keys[i]; --k) {
        best[k] = best[k - 1];
        best_slot[k] = best_slot[k - 1];
      }
      best[k] = keys[i];
      best_slot[k] = i;
    }
    for (int k = 0; k < Count; ++k) candidate_[k][row] = candidate(0, best_slot[k]);
  }
};

MOEB_NAMESPACE_END
