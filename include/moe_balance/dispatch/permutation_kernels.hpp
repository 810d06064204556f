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
    std::int32_t* row = problem.histogram + block.index() * problem.expert_count;
    for (int e = block.thread(); e < problem.expert_count; e += block.threads()) row[e] = counts[e];
  }
};

/// Second launch: offsets, padding marks, and a row for each slot. Each block takes the same number of rows of the histogram.
struct PlaceSlots {
  static constexpr bool uses_shared = true;
  /// Whether it may start while the kernel before it runs: that is the first launch. A caller's kernel may itself have been allowed to end early.
  [[nodiscard]] static bool runs_beside_kernel_before(const PermutationProblem& problem) {
    return problem.histogram != nullptr;
  }

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
  /// Tiles of a GPU's block that has so many bytes of shared memory: as many as tuning.hpp says, or a half, a quarter, an eighth; 0 where one is too
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
    for (int i = block.thread(); i < tiles * problem.expert_count; i += block.threads()) shared.tile_counts[i] = 0;
    if constexpr (BesideBlock<BlockT>) block.await_kernel_before();
    const bool counts_all = problem.histogram == nullptr;
    if (!counts_all) add_up_blocks(block, tile, problem, shared);
    block.barrier();
    const bool ranks = block.index() < problem.ranking_blocks;
    ItemRange own{0, 0};
    if (counts_all || ranks) {
      const std::int64_t first_row = first_row_of(block, problem);
      own = slots_of_rows(problem, first_row, first_row + rows_per_block(problem));
    }
    const ItemRange range = range_of_tile(block, tile, own);
    count_of_tile(block, tile, problem, range, shared);
    if (counts_all) {
      block.barrier();
      add_up_tiles(block, problem, tiles, shared);
      block.barrier();
    }
    find_offsets(block, tile, problem, shared);
    block.barrier();
    start_tiles(block, problem, tiles, shared);
    mark_padding(block, tile, problem, shared.offset, [&](std::int64_t e) MOEB_LAMBDA { return shared.total[e]; });
    block.barrier();
    if (ranks) rank(block, tile, problem, range, shared);
  }

 private:
  [[nodiscard]] MOEB_INLINE static std::int64_t rows_per_block(const PermutationProblem& problem) {
    return problem.histogram_rows / problem.ranking_blocks;
  }
  template <class BlockT>
  [[nodiscard]] MOEB_INLINE static std::int64_t first_row_of(const BlockT& block, const PermutationProblem& problem) {
    return problem.histogram == nullptr ? 0 : block.index() * rows_per_block(problem);
  }

  /// Neighbouring counts of a row of the histogram, loaded together.
  template <int Count>
  struct alignas(Count * sizeof(std::int32_t)) Counts {
    std::int32_t value[Count];
  };

  template <class BlockT, class TileT>
  MOEB_INLINE static void add_up_blocks(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                                        const Shared& shared) {
    const bool has_quads =
        problem.expert_count % 4 == 0 && reinterpret_cast<std::uintptr_t>(problem.histogram) % sizeof(Counts<4>) == 0;
    if (has_quads)
      add_up_blocks_by<4>(block, tile, problem, shared);
    else
      add_up_blocks_by<1>(block, tile, problem, shared);
  }

  /// Lanes side by side share `Count` experts: each adds up the rows that are its own by turns, several loads at once, because that is what a GPU
  /// thread waits for.
  template <int Count, class BlockT, class TileT>
  MOEB_INLINE static void add_up_blocks_by(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                                           const Shared& shared) {
    constexpr int sharing =
        TileT::width < dispatch_tuning.lanes_per_expert ? TileT::width : dispatch_tuning.lanes_per_expert;
    constexpr int loads = Count == 1 ? dispatch_tuning.counts_at_once : dispatch_tuning.quads_at_once;
    const std::int64_t first_row =
        block.index() < problem.ranking_blocks ? first_row_of(block, problem) : problem.histogram_rows;
    const int own = block.thread() % sharing;
    const int groups = block.threads() / sharing;
    const int runs = problem.expert_count / Count;
    // All lanes of a tile go round as often: they meet in the sums.
    for (int start_run = 0; start_run < runs; start_run += groups) {
      const int run = start_run + block.thread() / sharing;
      const bool has_run = run < runs;
      const std::int32_t* const column = problem.histogram + (has_run ? run : 0) * Count;
      // The rows before this block's first, then the others: one after the other, so that only one of the sums is in registers.
      std::int64_t sum[Count] = {};
      const auto add_up = [&](std::int64_t first, std::int64_t last) MOEB_LAMBDA {
        MOEB_NO_UNROLL
        for (std::int64_t start = first + own; start < last; start += sharing * loads) {
          Counts<Count> counts[loads];
          MOEB_UNROLL
          for (int i = 0; i < loads; ++i) {
            const std::int64_t row = start + sharing * i;
            const bool exists = has_run && row < last;
            counts[i] =
                exists ? *reinterpret_cast<const Counts<Count>*>(column + row * problem.expert_count) : Counts<Count>{};
          }
          MOEB_UNROLL
          for (int i = 0; i < loads; ++i) {
            MOEB_UNROLL
            for (int e = 0; e < Count; ++e) sum[e] += counts[i].value[e];
          }
        }
      };
      const auto store = [&](std::int64_t* to) MOEB_LAMBDA {
        MOEB_UNROLL
        for (int e = 0; e < Count; ++e) {
          std::int64_t all = sum[e];
          MOEB_UNROLL
          for (int distance = 1; distance < sharing; distance *= 2) all += tile.shuffle_xor(all, distance);
          if (has_run && own == 0) to[run * Count + e] = all;
        }
      };
      add_up(0, first_row);
      store(shared.earlier);
      add_up(first_row, problem.histogram_rows);
      store(shared.total);
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
                                        const ItemRange& range, const Shared& shared) {
    const int own = block.thread() / TileT::width;
    const bool counts_all = problem.histogram == nullptr;
    if (!counts_all && own + 1 == block.threads() / TileT::width) return;
    std::int32_t* counts = shared.tile_counts + own * problem.expert_count;
    std::int64_t invalid = 0;
    for (std::int64_t first = range.first; first < range.last; first += TileT::width * at_once) {
      std::int32_t expert[at_once];
      load_ids(tile, problem, first, range.last, expert);
      MOEB_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const bool is_expert = expert[i] >= 0 && expert[i] < problem.expert_count;
        if (is_expert) block.add_shared(counts + expert[i], 1);
        invalid += !is_expert && expert[i] != -1 ? 1 : 0;
      }
    }
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

  /// Slots of each lane whose ids a tile waits for together.
  static constexpr int at_once = dispatch_tuning.ids_at_once;

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

  /// The tile walks its range in order, one slot per lane at a time.
  template <class BlockT, class TileT>
  MOEB_INLINE static void rank(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                               const ItemRange& range, const Shared& shared) {
    std::int32_t* counts = shared.tile_counts + block.thread() / TileT::width * problem.expert_count;
    for (std::int64_t start = range.first; start < range.last; start += TileT::width * at_once) {
      std::int32_t ids[at_once];
      load_ids(tile, problem, start, range.last, ids);
      MOEB_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const std::int64_t slot = start + TileT::width * i + tile.lane();
        const std::int32_t expert = ids[i] >= 0 && ids[i] < problem.expert_count ? ids[i] : -1;
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
      }
    }
  }
};

MOEB_NAMESPACE_END
