// The two kernels of a permutation: a stable counting sort of slots by expert over contiguous ranges of slots. The first, where there is more than one
// range, counts each range's slots per expert; the second adds up the ranges before its own, which is exact, and ranks its slots by matching ids among
// the lanes of a tile. No order depends on what an atomic addition returns.
#pragma once

#include <moe_balance/dispatch/permutation_problem.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// First launch: one row of the histogram per block.
struct CountSlots {
  static constexpr bool uses_shared = true;
  static constexpr bool lets_next_kernel_start = true;
  [[nodiscard]] static constexpr std::size_t shared_bytes(int experts) {
    return static_cast<std::size_t>(experts) * sizeof(std::int32_t);
  }

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const PermutationProblem& problem) const {
    auto* counts = reinterpret_cast<std::int32_t*>(block.shared());
    for (int e = block.thread(); e < problem.expert_count; e += block.threads()) counts[e] = 0;
    block.barrier();
    std::int64_t invalid = 0;
    const ItemRange range = slots_of_rows(problem, block.index(), block.index() + 1);
    for (std::int64_t slot = range.first + block.thread(); slot < range.last; slot += block.threads()) {
      const std::int32_t expert = expert_of(problem, slot);
      if (expert >= 0)
        block.add_shared(counts + expert, 1);
      else if (problem.experts[slot] != -1)
        ++invalid;
    }
    if (invalid != 0 && problem.invalid != nullptr) block.add_global(problem.invalid, invalid);
    block.barrier();
    for (int e = block.thread(); e < problem.expert_count; e += block.threads()) {
      problem.histogram.set(block.index(), problem.expert_count, e, counts[e]);
    }
  }
};

/// Second launch: offsets, padding marks, and a row for each slot. Each block takes the same number of rows of the histogram.
struct PlaceSlots {
  static constexpr bool uses_shared = true;
  static constexpr bool waits_by_itself = true;  ///< for the kernel before it, which is the first launch where there are two

  /// Per expert: all slots, slots of earlier blocks, first row; then for each tile its slots so far. And a word per tile to add threads up.
  struct Shared {
    std::int64_t* total;
    std::int64_t* earlier;
    std::int64_t* offset;
    std::int64_t* sums;
    std::int32_t* tile_counts;

    MOEB_INLINE Shared(std::byte* memory, int experts, int tiles)
        : total(reinterpret_cast<std::int64_t*>(memory)),
          earlier(total + experts),
          offset(earlier + experts),
          sums(offset + experts + 1),
          tile_counts(reinterpret_cast<std::int32_t*>(sums + tiles)) {}
  };
  [[nodiscard]] static constexpr std::size_t shared_bytes(int experts, int tiles) {
    const auto e = static_cast<std::size_t>(experts);
    const auto t = static_cast<std::size_t>(tiles);
    return (3 * e + 1 + t) * sizeof(std::int64_t) + t * e * sizeof(std::int32_t);
  }
  /// Tiles of a GPU's block that has so many bytes of shared memory: as many as tuning.hpp says, or a half, a quarter, and so on; 0 where one is too
  /// many. The result does not depend on it.
  [[nodiscard]] static constexpr int tiles_that_fit(int experts, std::size_t available) {
    int tiles = experts <= dispatch_tuning.many_experts ? dispatch_tuning.tiles : dispatch_tuning.tiles_for_many_experts;
    while (tiles > 0 && shared_bytes(experts, tiles) > available) tiles /= 2;
    return tiles;
  }
  /// The most experts that a tile serves.
  [[nodiscard]] static constexpr std::int64_t most_experts(std::size_t available) {
    return static_cast<std::int64_t>((available - shared_bytes(0, 1)) / (shared_bytes(1, 1) - shared_bytes(0, 1)));
  }

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const PermutationProblem& problem) const {
    const int tiles = block.threads() / TileT::width;
    const Shared shared(block.shared(), problem.expert_count, tiles);
    std::int32_t* const counts = shared.tile_counts + block.thread() / TileT::width * problem.expert_count;
    for (int e = tile.lane(); e < problem.expert_count; e += TileT::width) counts[e] = 0;
    tile.barrier();
    const bool counts_all = problem.histogram.counts == nullptr;
    const bool ranks = block.index() < problem.ranking_blocks;
    ItemRange own{0, 0};
    if (counts_all || ranks) {
      const std::int64_t first_row = first_row_of(block, problem);
      own = slots_of_rows(problem, first_row, first_row + rows_per_block(problem));
    }
    const ItemRange range = range_of_tile(block, tile, own);
    if constexpr (BesideBlock<BlockT>) block.await_kernel_before();
    // The first ids are on their way while the other blocks' counts are added up.
    std::int32_t ids[at_once];
    load_ids(tile, problem, range.first, range.last, ids);
    if (!counts_all) add_up_blocks(block, tile, problem, shared);
    count_of_tile(block, tile, problem, range, ids, counts);
    block.barrier();
    if (counts_all) {
      add_up_tiles(block, problem, tiles, shared);
      block.barrier();
    }
    start_tiles(block, problem, tiles, shared);
    find_offsets(block, tile, problem, shared);
    block.barrier();
    if (ranks) rank(tile, problem, range, ids, counts, shared);
    mark_padding(block, tile, problem, shared.offset, [&](std::int64_t e) MOEB_LAMBDA { return shared.total[e]; });
  }

 private:
  /// Slots of each lane whose ids a tile waits for together.
  static constexpr int at_once = dispatch_tuning.ids_at_once;

  [[nodiscard]] MOEB_INLINE static std::int64_t rows_per_block(const PermutationProblem& problem) {
    return problem.histogram.rows / problem.ranking_blocks;
  }
  template <class BlockT>
  [[nodiscard]] MOEB_INLINE static std::int64_t first_row_of(const BlockT& block, const PermutationProblem& problem) {
    return problem.histogram.counts == nullptr ? 0 : block.index() * rows_per_block(problem);
  }

  /// Neighbouring counts of a row of the histogram, loaded together.
  template <class Word, int Count>
  struct alignas(Count * sizeof(Word)) Counts {
    Word value[Count];
  };

  template <class BlockT, class TileT>
  MOEB_INLINE static void add_up_blocks(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                                        const Shared& shared) {
    constexpr int run = 4;
    using Run = Counts<std::uint16_t, run>;
    const bool has_runs =
        problem.expert_count % run == 0 && reinterpret_cast<std::uintptr_t>(problem.histogram.counts) % alignof(Run) == 0;
    if (!problem.histogram.narrow)
      add_up_blocks_by<std::int32_t, 1, std::int64_t>(block, tile, problem, shared);
    else if (has_runs)
      add_up_blocks_by<std::uint16_t, run, std::int32_t>(block, tile, problem, shared);
    else
      add_up_blocks_by<std::uint16_t, 1, std::int32_t>(block, tile, problem, shared);
  }

  /// Lanes side by side share `Count` experts: each adds up the rows that are its own by turns, several loads at once, because that is what a GPU
  /// thread waits for. As many lanes share as there are threads for. A Sum holds all slots: 32768 ranges that 16 bits count do
  /// not reach 2^31.
  template <class Word, int Count, class Sum, class BlockT, class TileT>
  MOEB_INLINE static void add_up_blocks_by(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                                           const Shared& shared) {
    constexpr int most_sharing =
        TileT::width < dispatch_tuning.lanes_per_expert ? TileT::width : dispatch_tuning.lanes_per_expert;
    constexpr int loads = Count == 1 ? dispatch_tuning.counts_at_once : dispatch_tuning.runs_at_once;
    const int runs = problem.expert_count / Count;
    int sharing = 1;
    while (sharing < most_sharing && 2 * sharing * runs <= block.threads()) sharing *= 2;
    const int rows = static_cast<int>(problem.histogram.rows);
    const int first_row = block.index() < problem.ranking_blocks ? static_cast<int>(first_row_of(block, problem)) : rows;
    const int own = block.thread() & (sharing - 1);
    const int groups = block.threads() / sharing;
    // All lanes of a tile go round as often: they meet in the sums.
    for (int start_run = 0; start_run < runs; start_run += groups) {
      const int run = start_run + block.thread() / sharing;
      const bool has_run = run < runs;
      const Word* const column = static_cast<const Word*>(problem.histogram.counts) + (has_run ? run : 0) * Count;
      const int step = sharing * problem.expert_count;
      Sum sum[Count] = {};
      // The rows before this block's first, then the others: one after the other, so that only one of the sums is in registers.
      MOEB_NO_UNROLL
      for (int part = 0; part < 2; ++part) {
        const int last = part == 0 ? first_row : rows;
        MOEB_NO_UNROLL
        for (int start = (part == 0 ? 0 : first_row) + own; start < last; start += sharing * loads) {
          Counts<Word, Count> counts[loads];
          const Word* from = column + static_cast<std::int64_t>(start) * problem.expert_count;
          MOEB_UNROLL
          for (int i = 0; i < loads; ++i) {
            const bool exists = has_run && start + sharing * i < last;
            counts[i] = exists ? *reinterpret_cast<const Counts<Word, Count>*>(from) : Counts<Word, Count>{};
            from += step;
          }
          MOEB_UNROLL
          for (int i = 0; i < loads; ++i) {
            MOEB_UNROLL
            for (int e = 0; e < Count; ++e) sum[e] += counts[i].value[e];
          }
        }
        std::int64_t* const to = part == 0 ? shared.earlier : shared.total;
        MOEB_UNROLL
        for (int e = 0; e < Count; ++e) {
          Sum all = sum[e];
          for (int distance = 1; distance < sharing; distance *= 2) all += tile.shuffle_xor(all, distance);
          if (has_run && own == 0) to[run * Count + e] = all;
        }
      }
    }
  }

  /// What a block that has counted all slots knows by itself.
  template <class BlockT>
  MOEB_INLINE static void add_up_tiles(const BlockT& block, const PermutationProblem& problem, int tiles,
                                       const Shared& shared) {
    for (int e = block.thread(); e < problem.expert_count; e += block.threads()) {
      std::int64_t all = 0;
      for (int i = 0; i < tiles; ++i) all += shared.tile_counts[i * problem.expert_count + e];
      shared.earlier[e] = 0;
      shared.total[e] = all;
    }
  }

  template <class BlockT, class TileT>
  [[nodiscard]] MOEB_INLINE static ItemRange range_of_tile(const BlockT& block, const TileT& /*tile*/,
                                                           const ItemRange& own) {
    const ItemRange range =
        range_of_part(own.last - own.first, block.thread() / TileT::width, block.threads() / TileT::width);
    return {own.first + range.first, own.first + range.last};
  }

  /// Slots per expert of this tile's range; the last tile's are needed only where nobody has counted before, and then invalid ids are, too.
  template <class BlockT, class TileT>
  MOEB_INLINE static void count_of_tile(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                                        const ItemRange& range, const std::int32_t (&first_ids)[at_once],
                                        std::int32_t* counts) {
    const bool counts_all = problem.histogram.counts == nullptr;
    if (!counts_all && block.thread() / TileT::width + 1 == block.threads() / TileT::width) return;
    std::int64_t invalid = 0;
    for_each_id(tile, problem, range, first_ids, [&](std::int64_t /*slot*/, std::int32_t id) MOEB_LAMBDA {
      const bool is_expert = id >= 0 && id < problem.expert_count;
      if (is_expert) block.add_shared(counts + id, 1);
      invalid += !is_expert && id != -1 ? 1 : 0;
    });
    if (counts_all && block.index() == 0 && invalid != 0 && problem.invalid != nullptr) {
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
  MOEB_INLINE static void load_ids(const TileT& tile, const PermutationProblem& problem, std::int64_t first,
                                   std::int64_t last, std::int32_t (&ids)[at_once]) {
    MOEB_UNROLL
    for (int i = 0; i < at_once; ++i) {
      const std::int64_t slot = first + TileT::width * i + tile.lane();
      ids[i] = slot < last ? problem.experts[slot] : -1;
    }
  }

  /// Calls f(slot, id) for a tile's slots in order, one slot per lane at a time; id is -1 from the range's end on. The first ids are there already.
  /// A GPU's loop stays rolled: most blocks go through it once, and fetching more code takes longer than running it.
  template <class TileT, class Function>
  MOEB_INLINE static void for_each_id(const TileT& tile, const PermutationProblem& problem, const ItemRange& range,
                                      const std::int32_t (&first_ids)[at_once], const Function& f) {
    if constexpr (!TileT::slots_in_registers) {
      for (std::int64_t slot = range.first; slot < range.last; ++slot) f(slot, problem.experts[slot]);
    } else {
      std::int32_t ids[at_once];
      MOEB_UNROLL
      for (int i = 0; i < at_once; ++i) ids[i] = first_ids[i];
      int left = at_once;
      MOEB_NO_UNROLL
      for (std::int64_t start = range.first; start < range.last; start += TileT::width) {
        if (left == 0) {
          load_ids(tile, problem, start, range.last, ids);
          left = at_once;
        }
        f(start + tile.lane(), ids[0]);
        MOEB_UNROLL
        for (int i = 1; i < at_once; ++i) ids[i - 1] = ids[i];
        --left;
      }
    }
  }

  /// Gives each of a tile's slots its row.
  template <class TileT>
  MOEB_INLINE static void rank(const TileT& tile, const PermutationProblem& problem, const ItemRange& range,
                               const std::int32_t (&first_ids)[at_once], std::int32_t* counts, const Shared& shared) {
    for_each_id(tile, problem, range, first_ids, [&](std::int64_t slot, std::int32_t id) MOEB_LAMBDA {
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
      if (slot < range.last) problem.row_of_slot[slot] = row;
      if (row >= 0) problem.slot_of_row[row] = slot;
    });
  }
};

MOEB_NAMESPACE_END
