// The K largest keys of each of some rows that one CPU thread has in memory: larger key first, equal keys by smaller slot.
// The maxima of some columns give a threshold that at least K keys of a row reach, and few more; those are sorted. Steps go over all rows before the next
// one begins: a row's steps depend on each other, another row's do not.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/mark_keys.hpp>
#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/sorting_network.hpp>
#include <moe_balance/tile/layout.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The selection of up to `Rows` rows, in steps: `look` at each, `find_thresholds`, `collect` of each, `rank`, `finish` each, all with the same keys, of
/// which at least Count in a row should not be excluded. `slot` has the result. Rows may be left out. Without `Ranks` it only inserts: slower, and less to compile.
template <class LayoutT, class K, int Count, int Rows, bool Ranks = true>
class MemorySelection {
 public:
  using Keys = Slots<K, LayoutT>;

  /// `instructions`: which to use, of those that the machine has; never `automatic`.
  MOEB_EARLY_INLINE explicit MemorySelection(InstructionSet instructions) : instructions_(instructions) {
    for (int c = 0; c < columns; ++c) {
      for (int r = 0; r < Rows; ++r) maximum_[c][r] = excluded_key<K>;
    }
  }

  /// Slots past the last block may be written.
  MOEB_EARLY_INLINE void look(const LayoutT& layout, int row, Keys& keys) {
    slots_ = layout.blocks() * LayoutT::block_size;
    for (; slots_ % step != 0; slots_ += LayoutT::block_size) {
      for (int i = 0; i < LayoutT::block_size; ++i) keys[slots_ + i] = excluded_key<K>;
    }
    if constexpr (ranks) {
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
      sort_rows<Count - 1, Count - 1>(instructions_, maximum_);
      for (int r = 0; r < Rows; ++r) threshold_[r] = larger(maximum_[Count - 1][r], nan_key<K>);
      for (int r = 0; r < Rows; ++r) {
        for (int i = 0; i < columns; ++i) found_key_[r][i] = excluded_key<K>;
        for (int i = 0; i < columns; ++i) found_slot_[r][i] = no_slot;
      }
    }
  }

  MOEB_EARLY_INLINE void collect(int row, const Keys& keys) {
    if constexpr (ranks) {
      std::uint64_t marks[most_words];
      const int words = (slots_ + keys_per_word - 1) / keys_per_word;
      mark_keys(instructions_, &keys[0], words, threshold_[row], marks);
      if (slots_ % keys_per_word != 0) marks[words - 1] &= (std::uint64_t{1} << slots_ % keys_per_word) - 1;
      std::int32_t* const key = found_key_[row];
      std::int32_t* const found = found_slot_[row];
      int end = 0;
      // Four of a word are taken without asking whether there are so many: a branch on that would be foreseen wrongly. What is taken of no mark is
      // overwritten.
      for (int w = 0; w < words && end <= columns; ++w) {
        std::uint64_t left = marks[w];
        do {
          for (int i = 0; i < 4; ++i) {
            const int slot = keys_per_word * w + lowest_bit(left);
            key[end] = keys[slot];
            found[end] = slot;
            end += left != 0 ? 1 : 0;
            left &= left - 1;
          }
        } while (left != 0);
      }
      key[end] = excluded_key<K>;
      found[end] = no_slot;
      candidates_[row] = end;
    }
  }

  MOEB_EARLY_INLINE void rank() {
    if constexpr (ranks) {
      for (int r = 0; r < Rows; ++r) {
        for (int i = 0; i < columns; ++i) candidate_[i][r] = candidate(found_key_[r][i], found_slot_[r][i]);
      }
      sort_rows<0, Count - 1>(instructions_, candidate_);
    }
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
  /// Four of a column's slots at a time: one at a time would wait for the one before, whose result is in memory.
  static constexpr int step = 4 * columns;
  static constexpr std::int32_t no_slot = LayoutT::capacity;
  static_assert(LayoutT::capacity % step == 0 && step % LayoutT::block_size == 0 && LayoutT::capacity % keys_per_word == 0);
  static constexpr int most_words = LayoutT::capacity / keys_per_word;
  /// The last word that is looked at may add all of its keys, and one more is written.
  static constexpr int most_found = columns + keys_per_word + 1;
  static constexpr std::int64_t slots_of_key = 2 * LayoutT::capacity;
  static_assert((LayoutT::capacity & (LayoutT::capacity - 1)) == 0 && LayoutT::capacity <= 1 << 19);
  /// float64, which is for checks, only ever inserts.
  static constexpr bool ranks = Ranks && sizeof(K) == 4;

  /// 63 of none.
  MOEB_NO_EXECUTION_CHECK
  [[nodiscard]] MOEB_EARLY_INLINE static int lowest_bit(std::uint64_t bits) {
    return __builtin_ctzll(bits | std::uint64_t{1} << (keys_per_word - 1));
  }

  InstructionSet instructions_;
  int slots_ = 0;
  alignas(64) K maximum_[columns][Rows];  ///< of each column
  K threshold_[Rows];
  int candidates_[Rows];
  alignas(64) std::int32_t found_key_[Rows][most_found];  ///< what reaches the threshold, in order of slots
  alignas(64) std::int32_t found_slot_[Rows][most_found];
  alignas(64) double candidate_[columns][Rows];  ///< ranked, if there are at most `columns`

  /// A key of 32 bits and its slot as one number, exactly: the larger one ranks first, so that equal keys go to the smaller slot. Not an integer, because
  /// processors without AVX-512 compare integers of 64 bits in more steps, or not at all.
  [[nodiscard]] MOEB_EARLY_INLINE static constexpr double candidate(K key, std::int32_t slot) {
    return static_cast<double>(static_cast<std::int64_t>(key) * slots_of_key - slot);
  }

  [[nodiscard]] MOEB_EARLY_INLINE static constexpr K larger(K a, K b) { return a > b ? a : b; }

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
