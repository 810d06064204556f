// The kernels of a permutation for more experts than a block's shared memory can count: slots become pairs of expert and slot, the engine sorts
// them stably by expert, a binary search finds where each expert's begin, the engine adds up their rows, and each pair says its row. The
// result is that of the counting kernels, bit for bit.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/permutation_problem.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Pairs of a key and a slot, twice, so that a sort can go back and forth; the pairs are in number `current`.
struct SlotPairs {
  std::uint32_t* keys[2];
  std::int64_t* slots[2];
  int current = 0;
};

struct SortProblem {
  PermutationProblem permutation;
  std::uint32_t* keys;         ///< [T * K]: the expert, E for empty and invalid slots
  std::int64_t* slots;         ///< [T * K]
  std::int64_t* first_sorted;  ///< [E + 1]: where an expert's pairs begin; the last: where those of no expert do
  std::int64_t slot_count;     ///< T * K
};

/// Before the sort.
struct MakePairs {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const SortProblem& problem) const {
    const PermutationProblem& order = problem.permutation;
    std::int64_t invalid = 0;
    for_each_item_of_thread(block, problem.slot_count, [&](std::int64_t slot) MOEB_LAMBDA {
      const std::int32_t expert = expert_of(order, slot);
      if (expert < 0 && order.experts[slot] != -1) ++invalid;
      problem.keys[slot] = static_cast<std::uint32_t>(expert < 0 ? order.expert_count : expert);
      problem.slots[slot] = slot;
    });
    if (invalid != 0 && order.invalid != nullptr) block.add_global(order.invalid, invalid);
  }
};

/// After the sort: where each expert's pairs begin, its count, and in `offsets` its rows, which a scan turns into first rows.
struct FindRows {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const SortProblem& problem) const {
    const PermutationProblem& order = problem.permutation;
    for_each_item_of_thread(block, std::int64_t{order.expert_count} + 1, [&](std::int64_t expert) MOEB_LAMBDA {
      const std::int64_t first = first_not_below(problem, expert, 0);
      problem.first_sorted[expert] = first;
      const bool is_expert = expert < order.expert_count;
      const std::int64_t count = is_expert ? first_not_below(problem, expert + 1, first) - first : 0;
      order.offsets[expert] = is_expert ? rows_of_expert(order, expert, count) : 0;
      if (is_expert && order.counts != nullptr) order.counts[expert] = count;
    });
  }

 private:
  /// The first pair from `from` on whose key is at least `key`.
  [[nodiscard]] MOEB_INLINE static std::int64_t first_not_below(const SortProblem& problem, std::int64_t key,
                                                                std::int64_t from) {
    std::int64_t last = problem.slot_count;
    while (from < last) {
      const std::int64_t middle = from + (last - from) / 2;
      if (problem.keys[middle] < key)
        from = middle + 1;
      else
        last = middle;
    }
    return from;
  }
};

/// After the scan: a row for each slot, and the padding marks.
struct PlacePairs {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const SortProblem& problem) const {
    const PermutationProblem& order = problem.permutation;
    for_each_item_of_thread(block, problem.slot_count, [&](std::int64_t i) MOEB_LAMBDA {
      const auto expert = static_cast<std::int64_t>(problem.keys[i]);
      std::int64_t row = -1;
      if (expert < order.expert_count) {
        row = row_of_place(order, expert, order.offsets[expert], i - problem.first_sorted[expert]);
      }
      order.row_of_slot[problem.slots[i]] = row;
      if (row >= 0) order.slot_of_row[row] = problem.slots[i];
    });
    mark_padding(block, tile, order, order.offsets,
                 [&](std::int64_t e) MOEB_LAMBDA { return problem.first_sorted[e + 1] - problem.first_sorted[e]; });
  }
};

MOEB_NAMESPACE_END
