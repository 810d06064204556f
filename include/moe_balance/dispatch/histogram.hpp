// Slots per expert of ranges of tokens, which a permutation's first launch leaves to its second, and how a block of that adds them up.
#pragma once

#include <moe_balance/dispatch/engine.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// [rows, columns]: slots per expert of each range of tokens. Every block of the second launch reads all of it, so that counts have 16 bits where eight
/// ranges have no more slots than these hold. Columns are experts, and zeros up to the next eight, which are read together.
struct Histogram {
  static constexpr int columns_at_once = 8;

  void* counts = nullptr;
  std::int64_t rows = 0;
  int columns = 0;
  bool narrow = false;
  std::int64_t tokens_per_row = 0;  ///< of the shorter ranges
  std::int64_t longer_rows = 0;     ///< that have one token more: the first ones

  [[nodiscard]] static constexpr int columns_for(int experts) {
    return (experts + columns_at_once - 1) / columns_at_once * columns_at_once;
  }
  [[nodiscard]] static constexpr std::size_t bytes(std::int64_t rows, std::int64_t experts) {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns_for(static_cast<int>(experts))) *
           sizeof(std::int32_t);
  }

  /// Of ranges of `tokens` tokens with k slots each.
  [[nodiscard]] static Histogram of(void* memory, std::int64_t rows, std::int64_t tokens, std::int64_t k, int experts) {
    const std::int64_t most_slots = (tokens + rows - 1) / rows * k;
    return {memory,        rows,         columns_for(experts), most_slots * dispatch_tuning.rows_at_once <= 0xffff,
            tokens / rows, tokens % rows};
  }

  /// The first token of a row's range; of row `rows`, the end of all.
  [[nodiscard]] MOEB_INLINE std::int64_t first_token(std::int64_t row) const {
    return start_of_part(tokens_per_row, longer_rows, row);
  }
  MOEB_INLINE void set(std::int64_t row, int column, std::int32_t count) const {
    const std::int64_t at = row * columns + column;
    if (narrow)
      static_cast<std::uint16_t*>(counts)[at] = static_cast<std::uint16_t>(count);
    else
      static_cast<std::int32_t*>(counts)[at] = count;
  }
  /// Only by the thread that has set it.
  MOEB_INLINE void add(std::int64_t row, int column, std::int32_t count) const {
    const std::int64_t at = row * columns + column;
    set(row, column,
        count + (narrow ? std::int32_t{static_cast<std::uint16_t*>(counts)[at]} : static_cast<std::int32_t*>(counts)[at]));
  }
};

/// What a block makes of a histogram: all slots of each expert, and those of the rows before the block's own. In shared memory.
struct HistogramSums {
  std::int64_t* total;    ///< [experts]
  std::int64_t* earlier;  ///< [experts]
  std::int32_t* parts;    ///< of bytes_of_parts

  /// Groups of so many threads that share the rows; one needs no parts.
  [[nodiscard]] MOEB_INLINE static constexpr int groups(int columns, int threads) {
    const int all = threads * Histogram::columns_at_once / columns;
    return all < 2 ? 1 : all < dispatch_tuning.most_groups ? all : dispatch_tuning.most_groups;
  }
  /// What each group adds up of both.
  [[nodiscard]] static constexpr std::size_t bytes_of_parts(int experts, int threads) {
    const int columns = Histogram::columns_for(experts);
    const int count = groups(columns, threads);
    return count == 1 ? 0 : 2 * static_cast<std::size_t>(count * columns) * sizeof(std::int32_t);
  }

  /// Each thread leaves some experts' sums, which the others may read behind the next barrier.
  template <class BlockT>
  MOEB_INLINE void add_up(const BlockT& block, const Histogram& histogram, int experts, int first_row) const {
    if (histogram.narrow)
      add_up_runs(block, histogram, experts, first_row);
    else
      add_up_columns(block, histogram, experts, first_row);
  }

 private:
  /// Neighbouring counts of a row of the histogram, two in a word, loaded together from where they were stored one by one.
  struct alignas(16) Run {
    static constexpr int words = Histogram::columns_at_once / 2;
    static constexpr int lower = std::endian::native == std::endian::little ? 0 : 1;  ///< of a word's counts
    std::uint32_t pair[words];
  } __attribute__((__may_alias__));

  /// What a thread adds up of its run, all rows and those before this block's own.
  struct SumsOfRun {
    std::int32_t all[Histogram::columns_at_once];
    std::int32_t earlier[Histogram::columns_at_once];
  };

  /// Groups of as many threads as there are runs take the rows by turns, so that neighbours read neighbours; then their sums are added up.
  template <class BlockT>
  MOEB_INLINE void add_up_runs(const BlockT& block, const Histogram& histogram, int experts, int first_row) const {
    constexpr int size = Histogram::columns_at_once;
    const int columns = histogram.columns;
    const int runs = columns / size;
    const int count = groups(columns, block.threads());
    const auto threads_before = static_cast<unsigned>(block.thread());
    const int group = count == 1 ? 0 : static_cast<int>(threads_before / static_cast<unsigned>(runs));
    std::int32_t* const parts_of_earlier = parts + count * columns;
    // There may be more runs than threads, for one group.
    MOEB_NO_UNROLL
    for (int run = block.thread() - group * runs; run < runs && group < count; run += block.threads()) {
      const SumsOfRun sums = sums_of_run(block, histogram, run, group, count, first_row);
      MOEB_UNROLL
      for (int i = 0; i < size; ++i) {
        const int e = run * size + i;
        if (count > 1) {
          parts[group * columns + e] = sums.all[i];
          parts_of_earlier[group * columns + e] = sums.earlier[i];
        } else if (e < experts) {
          total[e] = sums.all[i];
          earlier[e] = sums.earlier[i];
        }
      }
    }
    if (count == 1) return;
    block.barrier();
    for (int e = block.thread(); e < experts; e += block.threads()) {
      std::int32_t all = 0;
      std::int32_t before = 0;
      MOEB_UNROLL_BY_4
      for (int i = 0; i < count; ++i) {
        all += parts[i * columns + e];
        before += parts_of_earlier[i * columns + e];
      }
      total[e] = all;
      earlier[e] = before;
    }
  }

  /// Several loads at once, because those are what a GPU thread waits for. Blocks begin with different rows, because each reads them all.
  template <class BlockT>
  [[nodiscard]] MOEB_INLINE static SumsOfRun sums_of_run(const BlockT& block, const Histogram& histogram, int run, int group,
                                                         int group_count, int first_row) {
    constexpr int loads = dispatch_tuning.rows_at_once;
    const int runs = histogram.columns / Histogram::columns_at_once;
    const auto rows = static_cast<int>(histogram.rows);
    const int step = group_count * loads;
    const int rounds = (rows + step - 1) / step;
    const Run* const column = static_cast<const Run*>(histogram.counts) + run;
    int start = static_cast<int>(static_cast<unsigned>(block.index()) % static_cast<unsigned>(rounds)) * step;
    SumsOfRun sums{};
    MOEB_NO_UNROLL
    for (int round = 0; round < rounds; ++round) {
      Run counts[loads];
      MOEB_UNROLL
      for (int i = 0; i < loads; ++i) {
        const int row = start + group + group_count * i;
        counts[i] = row < rows ? column[static_cast<std::int64_t>(row) * runs] : Run{};
      }
      // Halves of a word hold the sums of so many rows (Histogram::narrow).
      Run sum{};
      Run sum_of_earlier{};
      MOEB_UNROLL
      for (int i = 0; i < loads; ++i) {
        const bool is_earlier = start + group + group_count * i < first_row;
        MOEB_UNROLL
        for (int w = 0; w < Run::words; ++w) {
          sum.pair[w] += counts[i].pair[w];
          sum_of_earlier.pair[w] += is_earlier ? counts[i].pair[w] : 0;
        }
      }
      add_halves(sum, sums.all);
      add_halves(sum_of_earlier, sums.earlier);
      start = start + step < rows ? start + step : 0;
    }
    return sums;
  }

  MOEB_INLINE static void add_halves(const Run& run, std::int32_t (&sums)[Histogram::columns_at_once]) {
    MOEB_UNROLL
    for (int w = 0; w < Run::words; ++w) {
      sums[2 * w + Run::lower] += static_cast<std::int32_t>(run.pair[w] & 0xffffu);
      sums[2 * w + 1 - Run::lower] += static_cast<std::int32_t>(run.pair[w] >> 16);
    }
  }

  /// The same of counts of 32 bits, which permutations of very many slots have.
  template <class BlockT>
  MOEB_INLINE void add_up_columns(const BlockT& block, const Histogram& histogram, int experts, int first_row) const {
    for (int e = block.thread(); e < experts; e += block.threads()) {
      const std::int32_t* from = static_cast<const std::int32_t*>(histogram.counts) + e;
      std::int64_t all = 0;
      std::int64_t before = 0;
      MOEB_UNROLL_BY_4
      for (int row = 0; row < histogram.rows; ++row) {
        const std::int32_t count = *from;
        all += count;
        before += row < first_row ? count : 0;
        from += histogram.columns;
      }
      total[e] = all;
      earlier[e] = before;
    }
  }
};

MOEB_NAMESPACE_END
