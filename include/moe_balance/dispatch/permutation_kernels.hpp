// The two kernels of a permutation: a stable counting sort of slots by expert over contiguous ranges of slots. The first, where there is more than one
// range, counts each range's slots per expert; the second adds up the ranges before its own, which is exact, and ranks its slots by matching ids among
// the lanes of a tile. No order depends on what an atomic addition returns.
#pragma once

#include <moe_balance/dispatch/permutation_problem.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The slots of the ranges of tokens that some rows of the histogram count, by their place among them, which 31 bits hold.
struct SlotsOfRows {
  const std::int32_t* ids;
  std::int64_t* rows;
  std::int64_t first;  ///< of all slots
  std::uint32_t count;
  Divisor by_k;
  std::int64_t stride_of_ids;
  std::int64_t stride_of_rows;
  bool lie_apart;

  /// Rows first_row to last_row - 1.
  MOEB_INLINE SlotsOfRows(const PermutationProblem& problem, std::int64_t first_row, std::int64_t last_row)
      : by_k(problem.by_k),
        stride_of_ids(problem.experts.stride),
        stride_of_rows(problem.row_of_slot.stride),
        lie_apart(stride_of_ids != problem.k || stride_of_rows != problem.k) {
    const std::int64_t token = problem.histogram.first_token(first_row);
    ids = problem.experts.data + token * stride_of_ids;
    rows = problem.row_of_slot.data + token * stride_of_rows;
    first = token * problem.k;
    count = static_cast<std::uint32_t>((problem.histogram.first_token(last_row) - token) * problem.k);
  }

  [[nodiscard]] MOEB_INLINE std::int32_t id(std::uint32_t at) const { return ids[place(at, stride_of_ids)]; }
  MOEB_INLINE void set_row(std::uint32_t at, std::int64_t row) const { rows[place(at, stride_of_rows)] = row; }

 private:
  [[nodiscard]] MOEB_INLINE std::int64_t place(std::uint32_t at, std::int64_t stride) const {
    if (!lie_apart) return at;
    const std::uint32_t token = by_k.quotient(at);
    return token * stride + (at - token * by_k.value);
  }
};

/// First launch: one row of the histogram per block.
struct CountSlots {
  static constexpr bool uses_shared = true;
  static constexpr int most_tiles = dispatch_tuning.tiles_that_rank;
  static constexpr bool lets_next_kernel_start = true;
  [[nodiscard]] static constexpr std::size_t shared_bytes(int experts) {
    return static_cast<std::size_t>(Histogram::columns_for(experts)) * sizeof(std::int32_t);
  }

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const PermutationProblem& problem) const {
    auto* counts = reinterpret_cast<std::int32_t*>(block.shared());
    const Histogram& histogram = problem.histogram;
    for (int e = block.thread(); e < histogram.columns; e += block.threads()) counts[e] = 0;
    block.barrier();
    std::int64_t invalid = 0;
    const SlotsOfRows slots(problem, block.index(), block.index() + 1);
    const auto threads = static_cast<std::uint32_t>(block.threads());
    for (auto at = static_cast<std::uint32_t>(block.thread()); at < slots.count; at += threads) {
      const std::int32_t expert = slots.id(at);
      const bool is_expert = expert >= 0 && expert < problem.expert_count;
      if (is_expert) block.add_shared(counts + expert, 1);
      invalid += !is_expert && expert != -1 ? 1 : 0;
    }
    if (invalid != 0 && problem.invalid != nullptr) block.add_global(problem.invalid, invalid);
    block.barrier();
    for (int e = block.thread(); e < histogram.columns; e += block.threads()) histogram.set(block.index(), e, counts[e]);
  }
};

/// Second launch: offsets, padding marks, and a row for each slot. Each block takes the same number of rows of the histogram.
struct PlaceSlots {
  static constexpr bool uses_shared = true;
  static constexpr int most_tiles = dispatch_tuning.tiles_that_rank;
  static constexpr bool waits_by_itself = true;  ///< for the kernel before it, which is the first launch where there are two

  /// Per expert: all slots, slots of earlier blocks, first row; a word per tile to add threads up; for each tile its slots per expert so far; and for
  /// each group of threads that adds up rows of the histogram two rows of sums.
  struct Shared {
    std::int64_t* total;
    std::int64_t* earlier;
    std::int64_t* offset;
    std::int64_t* sums;
    std::int32_t* tile_counts;
    std::int32_t* parts;

    MOEB_INLINE Shared(std::byte* memory, int experts, int tiles)
        : total(reinterpret_cast<std::int64_t*>(memory)),
          earlier(total + experts),
          offset(earlier + experts),
          sums(offset + experts + 1),
          tile_counts(reinterpret_cast<std::int32_t*>(sums + tiles)),
          parts(tile_counts + tiles * experts) {}

    /// How many there are of so many threads; one needs no rows of its own.
    [[nodiscard]] MOEB_INLINE static constexpr int groups(int columns, int threads) {
      const int all = threads * Histogram::columns_at_once / columns;
      return all < 2 ? 1 : all < dispatch_tuning.most_groups ? all : dispatch_tuning.most_groups;
    }
  };
  [[nodiscard]] static constexpr std::size_t shared_bytes(int experts, int tiles) {
    const int columns = Histogram::columns_for(experts);
    const int groups = columns == 0 ? 1 : Shared::groups(columns, 32 * tiles);
    return bytes_without_groups(experts, tiles) +
           (groups == 1 ? 0 : 2 * static_cast<std::size_t>(groups * columns) * sizeof(std::int32_t));
  }
  /// Tiles of a GPU's block that has so many bytes of shared memory: as many as tuning.hpp says, or a half, a quarter, and so on; 0 where one is too
  /// many. The result does not depend on it.
  [[nodiscard]] static constexpr int tiles_that_fit(int experts, std::size_t available) {
    int tiles = experts <= dispatch_tuning.many_experts ? most_tiles : dispatch_tuning.tiles_for_many_experts;
    while (tiles > 0 && shared_bytes(experts, tiles) > available) tiles /= 2;
    return tiles;
  }
  /// The most experts that a tile serves.
  [[nodiscard]] static constexpr std::int64_t most_experts(std::size_t available) {
    const std::size_t of_none = bytes_without_groups(0, 1);
    return static_cast<std::int64_t>((available - of_none) / (bytes_without_groups(1, 1) - of_none));
  }

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const PermutationProblem& problem) const {
    const int tiles = block.threads() / TileT::width;
    const int own_tile = block.thread() / TileT::width;
    const Shared shared(block.shared(), problem.expert_count, tiles);
    std::int32_t* const counts = shared.tile_counts + own_tile * problem.expert_count;
    MOEB_NO_UNROLL
    for (int e = tile.lane(); e < problem.expert_count; e += TileT::width) counts[e] = 0;
    tile.barrier();
    const bool counts_all = problem.histogram.counts == nullptr;
    const bool ranks = block.index() < problem.ranking_blocks;
    const std::int64_t rows = problem.histogram.rows;
    const std::int64_t rows_of_block = rows / problem.ranking_blocks;
    const std::int64_t first_row = counts_all ? 0 : ranks ? block.index() * rows_of_block : rows;
    const SlotsOfRows slots(problem, first_row, counts_all || ranks ? first_row + rows_of_block : rows);
    const SlotRange range =
        range_of_tile(slots.count, static_cast<std::uint32_t>(own_tile), static_cast<std::uint32_t>(tiles));
    if constexpr (BesideBlock<BlockT>) block.await_kernel_before();
    // The first ids are on their way while the other blocks' counts are added up.
    std::int32_t ids[at_once];
    load_ids(tile, slots, range.first, range.last, ids);
    if (!counts_all) add_up_rows(block, problem, static_cast<int>(first_row), shared);
    // Slots per expert of this tile's range; the last tile's are needed only where nobody has counted before, and then invalid ids are, too.
    if (counts_all || own_tile + 1 < tiles) count_of_tile(block, tile, problem, slots, range, ids, counts);
    block.barrier();
    if (counts_all) {
      add_up_tiles(block, problem, tiles, shared);
      block.barrier();
    }
    start_tiles(block, problem, tiles, shared);
    find_offsets(block, tile, problem, shared);
    block.barrier();
    if (ranks) rank(tile, problem, slots, range, ids, counts, shared);
    mark_padding(block, tile, problem, shared.offset, [&](std::int64_t e) MOEB_LAMBDA { return shared.total[e]; });
  }

 private:
  [[nodiscard]] static constexpr std::size_t bytes_without_groups(int experts, int tiles) {
    const auto e = static_cast<std::size_t>(experts);
    const auto t = static_cast<std::size_t>(tiles);
    return (3 * e + 1 + t) * sizeof(std::int64_t) + t * e * sizeof(std::int32_t);
  }

  /// Slots of each lane whose ids a tile waits for together.
  static constexpr int at_once = dispatch_tuning.ids_at_once;

  struct SlotRange {
    std::uint32_t first;
    std::uint32_t last;
  };
  /// range_of_part.
  [[nodiscard]] MOEB_INLINE static SlotRange range_of_tile(std::uint32_t count, std::uint32_t own, std::uint32_t tiles) {
    const std::uint32_t quotient = count / tiles;
    const std::uint32_t remainder = count - quotient * tiles;
    const std::uint32_t first = quotient * own + (own < remainder ? own : remainder);
    return {first, first + quotient + (own < remainder ? 1 : 0)};
  }

  /// Neighbouring counts of a row of the histogram, two in a word, loaded together from where they were stored one by one.
  struct alignas(16) Run {
    static constexpr int words = Histogram::columns_at_once / 2;
    static constexpr int lower = std::endian::native == std::endian::little ? 0 : 1;  ///< of a word's counts
    std::uint32_t pair[words];
  } __attribute__((__may_alias__));

  template <class BlockT>
  MOEB_INLINE static void add_up_rows(const BlockT& block, const PermutationProblem& problem, int first_row,
                                      const Shared& shared) {
    if (problem.histogram.narrow)
      add_up_runs(block, problem, first_row, shared);
    else
      add_up_columns(block, problem, first_row, shared);
  }

  /// What a thread adds up of its run, all rows and those before this block's own.
  struct SumsOfRun {
    std::int32_t all[Histogram::columns_at_once];
    std::int32_t earlier[Histogram::columns_at_once];
  };

  /// Groups of as many threads as there are runs take the rows by turns, so that neighbours read neighbours; then their sums are added up.
  template <class BlockT>
  MOEB_INLINE static void add_up_runs(const BlockT& block, const PermutationProblem& problem, int first_row,
                                      const Shared& shared) {
    constexpr int size = Histogram::columns_at_once;
    const int columns = problem.histogram.columns;
    const int runs = columns / size;
    const int groups = Shared::groups(columns, block.threads());
    const auto threads_before = static_cast<unsigned>(block.thread());
    const int group = groups == 1 ? 0 : static_cast<int>(threads_before / static_cast<unsigned>(runs));
    std::int32_t* const earlier = shared.parts + groups * columns;
    // There may be more runs than threads, for one group.
    MOEB_NO_UNROLL
    for (int run = block.thread() - group * runs; run < runs && group < groups; run += block.threads()) {
      const SumsOfRun sums = sums_of_run(block, problem, run, group, groups, first_row);
      MOEB_UNROLL
      for (int i = 0; i < size; ++i) {
        const int e = run * size + i;
        if (groups > 1) {
          shared.parts[group * columns + e] = sums.all[i];
          earlier[group * columns + e] = sums.earlier[i];
        } else if (e < problem.expert_count) {
          shared.total[e] = sums.all[i];
          shared.earlier[e] = sums.earlier[i];
        }
      }
    }
    if (groups == 1) return;
    block.barrier();
    for (int e = block.thread(); e < problem.expert_count; e += block.threads()) {
      std::int32_t all = 0;
      std::int32_t before = 0;
      MOEB_UNROLL_BY_4
      for (int i = 0; i < groups; ++i) {
        all += shared.parts[i * columns + e];
        before += earlier[i * columns + e];
      }
      shared.total[e] = all;
      shared.earlier[e] = before;
    }
  }

  /// Several loads at once, because those are what a GPU thread waits for. Blocks begin with different rows, because each reads them all.
  template <class BlockT>
  [[nodiscard]] MOEB_INLINE static SumsOfRun sums_of_run(const BlockT& block, const PermutationProblem& problem, int run,
                                                         int group, int groups, int first_row) {
    constexpr int loads = dispatch_tuning.rows_at_once;
    const Histogram& histogram = problem.histogram;
    const int runs = histogram.columns / Histogram::columns_at_once;
    const auto rows = static_cast<int>(histogram.rows);
    const int step = groups * loads;
    const int rounds = (rows + step - 1) / step;
    const Run* const column = static_cast<const Run*>(histogram.counts) + run;
    int start = static_cast<int>(static_cast<unsigned>(block.index()) % static_cast<unsigned>(rounds)) * step;
    SumsOfRun sums{};
    MOEB_NO_UNROLL
    for (int round = 0; round < rounds; ++round) {
      Run counts[loads];
      MOEB_UNROLL
      for (int i = 0; i < loads; ++i) {
        const int row = start + group + groups * i;
        counts[i] = row < rows ? column[static_cast<std::int64_t>(row) * runs] : Run{};
      }
      // Halves of a word hold the sums of so many rows (Histogram::narrow).
      Run sum{};
      Run sum_of_earlier{};
      MOEB_UNROLL
      for (int i = 0; i < loads; ++i) {
        const bool is_earlier = start + group + groups * i < first_row;
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
  MOEB_INLINE static void add_up_columns(const BlockT& block, const PermutationProblem& problem, int first_row,
                                         const Shared& shared) {
    const Histogram& histogram = problem.histogram;
    for (int e = block.thread(); e < problem.expert_count; e += block.threads()) {
      const std::int32_t* from = static_cast<const std::int32_t*>(histogram.counts) + e;
      std::int64_t all = 0;
      std::int64_t earlier = 0;
      MOEB_UNROLL_BY_4
      for (int row = 0; row < histogram.rows; ++row) {
        const std::int32_t count = *from;
        all += count;
        earlier += row < first_row ? count : 0;
        from += histogram.columns;
      }
      shared.total[e] = all;
      shared.earlier[e] = earlier;
    }
  }

  /// What a block that has counted all slots knows by itself.
  template <class BlockT>
  MOEB_INLINE static void add_up_tiles(const BlockT& block, const PermutationProblem& problem, int tiles,
                                       const Shared& shared) {
    for (int e = block.thread(); e < problem.expert_count; e += block.threads()) {
      std::int64_t all = 0;
      MOEB_NO_UNROLL
      for (int i = 0; i < tiles; ++i) all += shared.tile_counts[i * problem.expert_count + e];
      shared.earlier[e] = 0;
      shared.total[e] = all;
    }
  }

  template <class BlockT, class TileT>
  MOEB_INLINE static void count_of_tile(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                                        const SlotsOfRows& slots, const SlotRange& range,
                                        const std::int32_t (&first_ids)[at_once], std::int32_t* counts) {
    std::int64_t invalid = 0;
    for_each_id(tile, slots, range, first_ids, [&](std::uint32_t /*slot*/, std::int32_t id) MOEB_LAMBDA {
      const bool is_expert = id >= 0 && id < problem.expert_count;
      if (is_expert) block.add_shared(counts + id, 1);
      invalid += !is_expert && id != -1 ? 1 : 0;
    });
    if (problem.histogram.counts == nullptr && block.index() == 0 && invalid != 0 && problem.invalid != nullptr) {
      block.add_global(problem.invalid, invalid);
    }
  }

  template <class BlockT, class TileT>
  MOEB_INLINE static void find_offsets(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                                       const Shared& shared) {
    const auto rows_of = [&](std::int64_t e)
                             MOEB_LAMBDA { return rows_of_expert(shared.total[e], problem.align, problem.rows_per_expert); };
    for_each_offset(block, tile, problem.expert_count, shared.sums, rows_of,
                    [&](std::int64_t e, std::int64_t row) MOEB_LAMBDA {
                      shared.offset[e] = row;
                      if (block.index() != 0) return;
                      problem.offsets[e] = row;
                      if (e < problem.expert_count && problem.counts != nullptr) problem.counts[e] = shared.total[e];
                    });
  }

  /// Turns the tiles' counts into the slots of earlier tiles.
  template <class BlockT>
  MOEB_INLINE static void start_tiles(const BlockT& block, const PermutationProblem& problem, int tiles,
                                      const Shared& shared) {
    for (int e = block.thread(); e < problem.expert_count; e += block.threads()) {
      std::int32_t before = 0;
      MOEB_UNROLL_BY_4
      for (int i = 0; i < tiles; ++i) {
        std::int32_t& count = shared.tile_counts[i * problem.expert_count + e];
        const std::int32_t own = count;
        count = before;
        before += own;
      }
    }
  }

  /// A lane's ids of the slots first + lane, first + width + lane, ...; -1 from `last` on.
  template <class TileT>
  MOEB_INLINE static void load_ids(const TileT& tile, const SlotsOfRows& slots, std::uint32_t first, std::uint32_t last,
                                   std::int32_t (&ids)[at_once]) {
    MOEB_UNROLL
    for (int i = 0; i < at_once; ++i) {
      const std::uint32_t slot = first + static_cast<std::uint32_t>(TileT::width * i + tile.lane());
      ids[i] = slot < last ? slots.id(slot) : -1;
    }
  }

  /// Calls f(slot, id) for a tile's slots in order, one slot per lane at a time; id is -1 from the range's end on. The first ids are there already.
  /// A GPU's loop stays rolled: most blocks go through it once, and fetching more code takes longer than running it.
  template <class TileT, class Function>
  MOEB_INLINE static void for_each_id(const TileT& tile, const SlotsOfRows& slots, const SlotRange& range,
                                      const std::int32_t (&first_ids)[at_once], const Function& f) {
    if constexpr (!TileT::slots_in_registers) {
      for (std::uint32_t slot = range.first; slot < range.last; ++slot) f(slot, slots.id(slot));
    } else {
      std::int32_t ids[at_once];
      MOEB_UNROLL
      for (int i = 0; i < at_once; ++i) ids[i] = first_ids[i];
      int left = at_once;
      MOEB_NO_UNROLL
      for (std::uint32_t start = range.first; start < range.last; start += static_cast<std::uint32_t>(TileT::width)) {
        if (left == 0) {
          load_ids(tile, slots, start, range.last, ids);
          left = at_once;
        }
        f(start + static_cast<std::uint32_t>(tile.lane()), ids[0]);
        MOEB_UNROLL
        for (int i = 1; i < at_once; ++i) ids[i - 1] = ids[i];
        --left;
      }
    }
  }

  /// Gives each of a tile's slots its row.
  template <class TileT>
  MOEB_INLINE static void rank(const TileT& tile, const PermutationProblem& problem, const SlotsOfRows& slots,
                               const SlotRange& range, const std::int32_t (&first_ids)[at_once], std::int32_t* counts,
                               const Shared& shared) {
    for_each_id(tile, slots, range, first_ids, [&](std::uint32_t slot, std::int32_t id) MOEB_LAMBDA {
      const std::int32_t expert = id >= 0 && id < problem.expert_count ? id : -1;
      const std::uint32_t peers = tile.match(expert);
      const int before = count_bits(peers & lanes_below(tile.lane()));
      std::int64_t row = -1;
      if (expert >= 0) {
        row = row_of_place(problem, shared.offset[expert], shared.earlier[expert] + counts[expert] + before);
      }
      tile.barrier();
      if (expert >= 0 && before == 0) counts[expert] += count_bits(peers);
      tile.barrier();
      if (slot < range.last) slots.set_row(slot, row);
      if (row >= 0) problem.slot_of_row[row] = slots.first + slot;
    });
  }
};

MOEB_NAMESPACE_END
