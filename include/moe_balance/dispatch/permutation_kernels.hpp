// The two kernels of a permutation: a stable counting sort of slots by expert over contiguous ranges of slots. The first, where there is more than one
// range, counts each range's slots per expert; the second adds up the ranges before its own, which is exact, and ranks its slots by matching ids among
// the lanes of a tile. No order depends on what an atomic addition returns.
#pragma once

#include <moe_balance/dispatch/permutation_problem.hpp>

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
  };
  [[nodiscard]] static constexpr std::size_t shared_bytes(int experts, int tiles) {
    return bytes_without_parts(experts, tiles) + HistogramSums::bytes_of_parts(experts, 32 * tiles);
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
    const std::size_t of_none = bytes_without_parts(0, 1);
    return static_cast<std::int64_t>((available - of_none) / (bytes_without_parts(1, 1) - of_none));
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
    const std::int64_t first_row = counts_all ? 0 : ranks ? block.index() * problem.rows_of_block : rows;
    const SlotsOfRows slots(problem, first_row, counts_all || ranks ? first_row + problem.rows_of_block : rows);
    const auto range =
        range_of_part<std::uint32_t>(slots.count, static_cast<std::uint32_t>(own_tile), static_cast<std::uint32_t>(tiles));
    if constexpr (BesideBlock<BlockT>) block.await_kernel_before();
    // The first ids are on their way while what the other blocks have left is added up.
    std::int32_t ids[at_once];
    load_ids(tile, slots, range.first, range.last, ids);
    problem.sums.add_up(block, tile);
    if (!counts_all) {
      const HistogramSums sums{shared.total, shared.earlier, shared.parts};
      sums.add_up(block, problem.histogram, problem.expert_count, static_cast<int>(first_row));
    }
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
  [[nodiscard]] static constexpr std::size_t bytes_without_parts(int experts, int tiles) {
    const auto e = static_cast<std::size_t>(experts);
    const auto t = static_cast<std::size_t>(tiles);
    return (3 * e + 1 + t) * sizeof(std::int64_t) + t * e * sizeof(std::int32_t);
  }

  /// Slots of each lane whose ids a tile waits for together, and tiles whose counts a thread reads together.
  static constexpr int at_once = dispatch_tuning.ids_at_once;
  static constexpr int tiles_at_once = dispatch_tuning.tile_counts_at_once;

  using SlotRange = RangeOf<std::uint32_t>;

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
    const auto rows_of = [&](std::int64_t e) MOEB_LAMBDA { return rows_of_expert(problem, e, shared.total[e]); };
    for_each_offset(block, tile, problem.expert_count, shared.sums, rows_of,
                    [&](std::int64_t e, std::int64_t row) MOEB_LAMBDA {
                      shared.offset[e] = row;
                      if (block.index() != 0) return;
                      problem.offsets[e] = row;
                      if (e < problem.expert_count && problem.counts != nullptr) problem.counts[e] = shared.total[e];
                    });
  }

  /// Turns the tiles' counts into the slots of earlier tiles. By the last threads, because the first find offsets.
  template <class BlockT>
  MOEB_INLINE static void start_tiles(const BlockT& block, const PermutationProblem& problem, int tiles,
                                      const Shared& shared) {
    for (int e = block.threads() - 1 - block.thread(); e < problem.expert_count; e += block.threads()) {
      std::int32_t* const counts = shared.tile_counts + e;
      std::int32_t before = 0;
      MOEB_NO_UNROLL
      for (int first = 0; first < tiles; first += tiles_at_once) {
        std::int32_t own[tiles_at_once];
        MOEB_UNROLL
        for (int i = 0; i < tiles_at_once; ++i) own[i] = first + i < tiles ? counts[(first + i) * problem.expert_count] : 0;
        MOEB_UNROLL
        for (int i = 0; i < tiles_at_once; ++i) {
          if (first + i < tiles) counts[(first + i) * problem.expert_count] = before;
          before += own[i];
        }
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
        row = row_of_place(problem, expert, shared.offset[expert], shared.earlier[expert] + counts[expert] + before);
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
