// What a permutation reads and writes, and what its launches share, whether they count slots or sort them: the offsets of experts and the marks of
// padding.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/histogram.hpp>

#include <bit>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// A [T, K] matrix by slot; division only where rows lie apart.
template <class T>
struct SlotView {
  T* data = nullptr;
  std::int64_t k = 1;
  std::int64_t stride = 1;

  constexpr SlotView() = default;
  MOEB_HOST_DEVICE constexpr SlotView(const MatrixView<T>& view) : data(view.data), k(view.columns), stride(view.stride) {}
  [[nodiscard]] MOEB_INLINE T& operator[](std::int64_t slot) const MOEB_LAMBDA {
    return data[stride == k ? slot : slot / k * stride + slot % k];
  }
};

/// Division of what 31 bits hold by a multiplication.
struct Divisor {
  std::uint32_t value = 1;
  std::uint32_t multiplier = 0;
  int shift = 0;

  Divisor() = default;
  /// With l the bits of d - 1, 2^(31 + l) / d, rounded up to the next integer, times n < 2^31 is below (n + 1) * 2^(31 + l) / d.
  explicit Divisor(std::int64_t d)
      : value(static_cast<std::uint32_t>(d)),
        shift(31 + static_cast<int>(std::bit_width(static_cast<std::uint32_t>(d) - 1))) {
    multiplier = static_cast<std::uint32_t>((std::uint64_t{1} << shift) / value + 1);
  }
  [[nodiscard]] MOEB_INLINE std::uint32_t quotient(std::uint32_t n) const {
    return static_cast<std::uint32_t>((std::uint64_t{n} * multiplier) >> shift);
  }
};

/// Sums that the blocks of a routing kernel left apart: sums[w] becomes the sum of rows[r][w].
struct RowsOfSums {
  std::int64_t* rows = nullptr;  ///< [row_count, words]
  std::int64_t row_count = 0;
  std::int64_t* sums = nullptr;  ///< [words]
  std::int64_t words = 0;        ///< 0 where there is nothing to add up

  /// Tiles of all blocks take turns, those of each block last; half of a tile's lanes have one of two neighbouring words.
  template <class BlockT, class TileT>
  MOEB_INLINE void add_up(const BlockT& block, const TileT& tile) const {
    constexpr int words_at_once = TileT::width == 1 ? 1 : 2;
    constexpr int rows_at_once = TileT::width / words_at_once;
    const int tiles = block.threads() / TileT::width;
    const std::int64_t own = block.index() + block.blocks() * (block.thread() / TileT::width);
    MOEB_NO_UNROLL
    for (std::int64_t first = own * words_at_once; first < words; first += block.blocks() * tiles * words_at_once) {
      const std::int64_t word = first + tile.lane() % words_at_once;
      std::int64_t sum = 0;
      if (word < words) {
        MOEB_UNROLL_BY_8
        for (std::int64_t row = tile.lane() / words_at_once; row < row_count; row += rows_at_once)
          sum += rows[row * words + word];
      }
      MOEB_UNROLL
      for (int distance = words_at_once; distance < TileT::width; distance *= 2) sum += tile.shuffle_xor(sum, distance);
      if (tile.lane() < words_at_once && word < words) sums[word] = sum;
    }
  }
};

struct PermutationProblem {
  SlotView<const std::int32_t> experts;
  SlotView<std::int64_t> row_of_slot;
  std::int64_t tokens;
  std::int64_t k;
  Divisor by_k;
  int expert_count;
  ExpertRange zero_experts;  ///< they have no rows
  std::int64_t* offsets;
  std::int64_t* slot_of_row;
  std::int64_t rows;
  std::int64_t align;
  std::int64_t rows_per_expert;
  std::int64_t* counts;
  std::int32_t* expert_of_block;
  std::int64_t row_blocks;
  std::int64_t block_size;
  Histogram histogram;  ///< without counts where slots are few: each block counts all, the first gives them rows, and all
                        ///< share the marking of padding
  std::int64_t
      ranking_blocks;  ///< of the second launch: they share the rows of the histogram; further ones only mark padding
  std::int64_t rows_of_block;  ///< of the histogram, which each of those ranks
  std::int64_t* invalid;       ///< counts ids that are no expert's; may be null
  RowsOfSums sums;             ///< of what routed, which the second launch adds up beside
};

/// The expert of a slot; -1 for empty and invalid ones.
[[nodiscard]] MOEB_INLINE std::int32_t expert_of(const PermutationProblem& problem, std::int64_t slot) {
  const std::int32_t expert = problem.experts[slot];
  return expert >= 0 && expert < problem.expert_count ? expert : -1;
}

/// Rows that an expert with `count` slots is given, if it may have any.
[[nodiscard]] MOEB_INLINE constexpr std::int64_t rows_of_expert(std::int64_t count, std::int64_t align,
                                                                std::int64_t rows_per_expert) {
  if (rows_per_expert > 0) return rows_per_expert;
  if ((align & (align - 1)) == 0) return (count + align - 1) & -align;
  return (count + align - 1) / align * align;
}

/// The same of expert e.
[[nodiscard]] MOEB_INLINE std::int64_t rows_of_expert(const PermutationProblem& problem, std::int64_t e,
                                                      std::int64_t count) {
  return problem.zero_experts.has(e) ? 0 : rows_of_expert(count, problem.align, problem.rows_per_expert);
}

/// Rows behind an expert's last slot, rows behind the last expert, and the experts of blocks of rows. `offset` has E + 1 entries, `slots_of(e)`
/// says how many slots expert e has.
template <class BlockT, class TileT, class SlotsOf>
MOEB_INLINE void mark_padding(const BlockT& block, const TileT& tile, const PermutationProblem& problem,
                              const std::int64_t* offset, const SlotsOf& slots_of) {
  for_each_item_of_tile(block, tile, problem.expert_count, [&](std::int64_t e) MOEB_LAMBDA {
    const std::int64_t end = offset[e + 1];
    MOEB_NO_UNROLL
    for (std::int64_t r = offset[e] + slots_of(e) + tile.lane(); r < end; r += TileT::width) problem.slot_of_row[r] = -1;
    if (problem.expert_of_block == nullptr) return;
    const std::int64_t last = end / problem.block_size;
    MOEB_NO_UNROLL
    for (std::int64_t i = offset[e] / problem.block_size + tile.lane(); i < last; i += TileT::width) {
      problem.expert_of_block[i] = static_cast<std::int32_t>(e);
    }
  });
  const std::int64_t used = offset[problem.expert_count];
  for_each_item_of_thread(block, problem.rows - used,
                          [&](std::int64_t i) MOEB_LAMBDA { problem.slot_of_row[used + i] = -1; });
  if (problem.expert_of_block == nullptr) return;
  const std::int64_t used_blocks = used / problem.block_size;
  for_each_item_of_thread(block, problem.row_blocks - used_blocks,
                          [&](std::int64_t i) MOEB_LAMBDA { problem.expert_of_block[used_blocks + i] = -1; });
}

/// The row of expert e's `place`-th slot, -1 where zero_experts or rows_per_expert leave it none. Never one beyond the last: ids and counts that disagree, which only
/// wrong offsets of sequences in device memory can bring about, must not lead outside.
[[nodiscard]] MOEB_INLINE std::int64_t row_of_place(const PermutationProblem& problem, std::int64_t e, std::int64_t offset,
                                                    std::int64_t place) {
  const bool has_row = !problem.zero_experts.has(e) && (problem.rows_per_expert == 0 || place < problem.rows_per_expert);
  return has_row && offset + place < problem.rows ? offset + place : -1;
}

/// Calls store(e, first row of e) for every expert, and store(E, all rows); rows_of(e) is how many e has. Each thread has an expert, or a run of
/// neighbouring ones; `sums` has a word of shared memory for each tile.
template <class BlockT, class TileT, class RowsOf, class Store>
MOEB_INLINE void for_each_offset(const BlockT& block, const TileT& tile, std::int64_t experts, std::int64_t* sums,
                                 const RowsOf& rows_of, const Store& store) {
  const auto all = static_cast<int>(experts);
  if (all <= block.threads()) {
    const int e = block.thread();
    const std::int64_t rows = e < all ? rows_of(e) : 0;
    const std::int64_t first = sum_of_earlier_threads(block, tile, all, rows, sums);
    if (e < all) store(e, first);
    if (e + 1 == all) store(experts, first + rows);
    return;
  }
  const auto run = range_of_part<int>(all, block.thread(), block.threads());
  std::int64_t rows = 0;
  MOEB_NO_UNROLL
  for (int e = run.first; e < run.last; ++e) rows += rows_of(e);
  std::int64_t next = sum_of_earlier_threads(block, tile, block.threads(), rows, sums);
  MOEB_NO_UNROLL
  for (int e = run.first; e < run.last; ++e) {
    store(e, next);
    next += rows_of(e);
  }
  if (block.thread() == block.threads() - 1) store(experts, next);
}

MOEB_NAMESPACE_END
