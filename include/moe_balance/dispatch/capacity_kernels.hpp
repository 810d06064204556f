// The kernels that drop slots beyond an expert's capacity, a block per expert over the rows of a permutation: what is dropped depends on weights, or numbers
// drawn for the slots, and token order alone.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/permutation_problem.hpp>
#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/random_numbers.hpp>
#include <moe_balance/token/elements.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

struct CapacityProblem {
  MatrixView<const std::int32_t> chosen;
  MatrixView<std::int32_t> experts;
  AnyMatrix weights;
  int expert_count;
  std::int64_t capacity;
  bool by_rank;                     ///< not by position
  const std::uint32_t* priorities;  ///< [T * K]: ranks of slots; null: their weights are
  const std::int64_t* offsets;      ///< [E + 1] of the permutation of `chosen`, not aligned
  const std::int64_t* slot_of_row;  ///< [T * K]
  std::int64_t* kept_counts;        ///< may be null
  std::int64_t* dropped_slots;      ///< may be null
};

/// priorities[t * K + k]: 32 random bits.
struct PriorityProblem {
  RandomPriority priority;
  std::int64_t tokens;
  std::int64_t k;
  std::uint32_t* priorities;
};

/// A thread has four neighbouring slots of a token, the words of one counter.
struct DrawPriorities {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const PriorityProblem& problem) const {
    const RandomPriority& priority = problem.priority;
    const std::uint64_t offset = priority.offset + (priority.offset_on_device == nullptr ? 0 : *priority.offset_on_device);
    const std::int64_t counters_of_token = (problem.k + 3) / 4;
    for_each_item_of_thread(block, problem.tokens * counters_of_token, [&](std::int64_t item) MOEB_LAMBDA {
      const std::int64_t row = item / counters_of_token;
      const std::int64_t counter = item % counters_of_token;
      const auto token = static_cast<std::uint64_t>(priority.first_token + row);
      std::uint32_t words[4][1] = {
          {static_cast<std::uint32_t>(token)},
          {static_cast<std::uint32_t>(token >> 32 << 16) | not_of_noise | static_cast<std::uint32_t>(counter)},
          {static_cast<std::uint32_t>(offset)},
          {static_cast<std::uint32_t>(offset >> 32)}};
      philox(words, priority.seed);
      MOEB_UNROLL
      for (int w = 0; w < 4; ++w) {
        const std::int64_t k = 4 * counter + w;
        if (k < problem.k) problem.priorities[row * problem.k + k] = words[w][0];
      }
    });
  }

 private:
  static constexpr std::uint32_t not_of_noise = 0x8000;  ///< where add_noise counts experts, which are fewer
};

template <class Real>
struct DropSlots {
  static constexpr bool uses_shared = true;
  using K = Key<Real>;
  using Unsigned = std::make_unsigned_t<K>;
  static constexpr int digit_bits = 8;
  static constexpr int digits = 1 << digit_bits;
  static constexpr int key_bits = 8 * static_cast<int>(sizeof(K));

  /// Slots by digit, a word per tile (sums of threads, then ties), and the digit that was found with what is left to take from it.
  struct Shared {
    std::int64_t* bins;
    std::int64_t* sums;
    std::int64_t* found;
    MOEB_INLINE Shared(std::byte* memory, int tiles)
        : bins(reinterpret_cast<std::int64_t*>(memory)), sums(bins + digits), found(sums + tiles) {}
  };
  [[nodiscard]] static constexpr std::size_t shared_bytes(int tiles) {
    return static_cast<std::size_t>(digits + tiles + 2) * sizeof(std::int64_t);
  }

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const CapacityProblem& problem) const {
    const Shared shared(block.shared(), block.threads() / TileT::width);
    const std::int64_t k = problem.chosen.columns;
    for_each_item_of_thread(block, problem.chosen.rows * k, [&](std::int64_t slot) MOEB_LAMBDA {
      const std::int64_t token = slot / k;
      const std::int32_t id = problem.chosen.data[token * problem.chosen.stride + slot % k];
      if (id >= 0 && id < problem.expert_count) return;
      problem.experts.data[token * problem.experts.stride + slot % k] = -1;
      store_element(problem.weights, token, slot % k, Real(0));
    });
    for (std::int64_t e = block.index(); e < problem.expert_count; e += block.blocks()) {
      const std::int64_t first = problem.offsets[e];
      const ItemRange rows{first, problem.offsets[e + 1]};
      const std::int64_t count = rows.last - rows.first;
      const std::int64_t kept = count < problem.capacity ? count : problem.capacity;
      if (block.thread() == 0) {
        if (problem.kept_counts != nullptr) problem.kept_counts[e] = kept;
        if (problem.dropped_slots != nullptr && count > kept) block.add_global(problem.dropped_slots, count - kept);
      }
      if (count == kept || !problem.by_rank) {
        keep_first(block, problem, static_cast<std::int32_t>(e), rows, kept);
      } else {
        keep_best(block, tile, problem, static_cast<std::int32_t>(e), rows, kept, shared);
      }
    }
  }

 private:
  /// A larger number for a slot that ranks higher.
  [[nodiscard]] MOEB_INLINE static Unsigned rank_of(const CapacityProblem& problem, std::int64_t row) {
    const std::int64_t slot = problem.slot_of_row[row];
    if (problem.priorities != nullptr) return Unsigned{problem.priorities[slot]};
    const std::int64_t k = problem.chosen.columns;
    const Real weight = load_element<Real>(problem.weights, slot / k, slot % k);
    return static_cast<Unsigned>(ordered_key(weight)) ^ (Unsigned{1} << (key_bits - 1));
  }

  MOEB_INLINE static void settle(const CapacityProblem& problem, std::int64_t row, std::int32_t expert, bool keeps) {
    const std::int64_t slot = problem.slot_of_row[row];
    const std::int64_t token = slot / problem.chosen.columns;
    const std::int64_t k = slot % problem.chosen.columns;
    problem.experts.data[token * problem.experts.stride + k] = keeps ? expert : -1;
    if (!keeps) store_element(problem.weights, token, k, Real(0));
  }

  template <class BlockT>
  MOEB_INLINE static void keep_first(const BlockT& block, const CapacityProblem& problem, std::int32_t expert,
                                     const ItemRange& rows, std::int64_t kept) {
    for (std::int64_t row = rows.first + block.thread(); row < rows.last; row += block.threads()) {
      settle(problem, row, expert, row - rows.first < kept);
    }
  }

  /// Everything above the kept-th largest rank, and as many of its equals, earlier rows first, as there is room for.
  template <class BlockT, class TileT>
  MOEB_INLINE static void keep_best(const BlockT& block, const TileT& tile, const CapacityProblem& problem,
                                    std::int32_t expert, const ItemRange& rows, std::int64_t kept, const Shared& shared) {
    Unsigned limit = 0;
    std::int64_t wanted = kept;
    MOEB_NO_UNROLL
    for (int shift = key_bits - digit_bits; shift >= 0; shift -= digit_bits) {
      find_digit(block, tile, problem, rows, limit, shift, wanted, shared);
      limit |= static_cast<Unsigned>(shared.found[0]) << shift;
      wanted = shared.found[1];
      block.barrier();
    }
    const int tiles = block.threads() / TileT::width;
    const int own = block.thread() / TileT::width;
    const ItemRange part = range_of_part(rows.last - rows.first, own, tiles);
    const ItemRange range{rows.first + part.first, rows.first + part.last};
    std::int64_t equals = integer_sum_of_lanes(tile, range, [&](std::int64_t row) MOEB_LAMBDA {
      return static_cast<std::int64_t>(rank_of(problem, row) == limit ? 1 : 0);
    });
    if (tile.lane() == 0) shared.sums[own] = equals;
    block.barrier();
    std::int64_t before = 0;
    for (int i = 0; i < own; ++i) before += shared.sums[i];
    for (std::int64_t start = range.first; start < range.last; start += TileT::width) {
      const std::int64_t row = start + tile.lane();
      const Unsigned rank = row < range.last ? rank_of(problem, row) : Unsigned{0};
      const bool is_equal = row < range.last && rank == limit;
      const std::uint32_t peers = tile.match(is_equal ? 1 : 0);
      const std::int64_t place = before + count_bits(peers & lanes_below(tile.lane()));
      if (row < range.last) settle(problem, row, expert, is_equal ? place < wanted : rank > limit);
      before += is_equal ? count_bits(peers) : TileT::width - count_bits(peers);
    }
    block.barrier();
  }

  template <class TileT, class Function>
  [[nodiscard]] MOEB_INLINE static std::int64_t integer_sum_of_lanes(const TileT& tile, const ItemRange& range,
                                                                     Function&& term) {
    std::int64_t sum = 0;
    for (std::int64_t i = range.first + tile.lane(); i < range.last; i += TileT::width) sum += term(i);
    MOEB_UNROLL
    for (int distance = TileT::width / 2; distance >= 1; distance /= 2) sum += tile.shuffle_xor(sum, distance);
    return sum;
  }

  /// Among the rows whose rank has `limit`'s digits above `shift`: the digit that holds the wanted-th largest, and how many of that digit
  /// are wanted.
  template <class BlockT, class TileT>
  MOEB_INLINE static void find_digit(const BlockT& block, const TileT& tile, const CapacityProblem& problem,
                                     const ItemRange& rows, Unsigned limit, int shift, std::int64_t wanted,
                                     const Shared& shared) {
    for (int i = block.thread(); i < digits; i += block.threads()) shared.bins[i] = 0;
    block.barrier();
    const Unsigned above =
        shift + digit_bits == key_bits ? Unsigned{0} : static_cast<Unsigned>(~Unsigned{0}) << (shift + digit_bits);
    for (std::int64_t row = rows.first + block.thread(); row < rows.last; row += block.threads()) {
      const Unsigned rank = rank_of(problem, row);
      if (((rank ^ limit) & above) == 0) block.add_shared(shared.bins + ((rank >> shift) & (digits - 1)), std::int64_t{1});
    }
    block.barrier();
    const ItemRange run = range_of_part(digits, block.thread(), block.threads());  // counted from the largest digit down
    std::int64_t own = 0;
    for (std::int64_t i = run.first; i < run.last; ++i) own += shared.bins[digits - 1 - i];
    std::int64_t before = sum_of_earlier_threads(block, tile, block.threads(), own, shared.sums);
    block.barrier();
    for (std::int64_t i = run.first; i < run.last; ++i) {
      const std::int64_t count = shared.bins[digits - 1 - i];
      if (before < wanted && wanted <= before + count) {
        shared.found[0] = digits - 1 - i;
        shared.found[1] = wanted - before;
      }
      before += count;
    }
    block.barrier();
  }
};

/// Weights of tokens that lost a slot, divided by the sum of those they kept.
struct RenormaliseProblem {
  MatrixView<const std::int32_t> chosen;
  MatrixView<const std::int32_t> experts;
  AnyMatrix weights;
  int expert_count;
  float scaling_factor;
};

template <class Real>
struct RenormaliseKept {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const RenormaliseProblem& problem) const {
    const std::int64_t k_count = problem.experts.columns;
    for_each_item_of_thread(block, problem.experts.rows, [&](std::int64_t token) MOEB_LAMBDA {
      const std::int32_t* chosen = problem.chosen.data + token * problem.chosen.stride;
      const std::int32_t* experts = problem.experts.data + token * problem.experts.stride;
      Real sum = 0;
      bool lost = false;
      for (std::int64_t k = 0; k < k_count; ++k) {
        lost = lost || (chosen[k] >= 0 && chosen[k] < problem.expert_count && experts[k] < 0);
        if (experts[k] >= 0) sum = add(sum, load_element<Real>(problem.weights, token, k));
      }
      if (!lost) return;
      const Real factor = reciprocal_or_nan(add(sum, Real(1e-20)));
      for (std::int64_t k = 0; k < k_count; ++k) {
        const Real weight = mul(load_element<Real>(problem.weights, token, k), factor);
        if (experts[k] >= 0)
          store_element(problem.weights, token, k, mul(weight, static_cast<Real>(problem.scaling_factor)));
      }
    });
  }
};

/// masked[t, k] = grad_weights[t, k], 0 for slots that hold none of the experts.
struct MaskProblem {
  MatrixView<const std::int32_t> experts;
  ConstAnyMatrix grad_weights;
  AnyMatrix masked;
  std::int64_t expert_count;
};

template <class Real>
struct MaskDropped {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const MaskProblem& problem) const {
    const std::int64_t k = problem.experts.columns;
    for_each_item_of_thread(block, problem.experts.rows * k, [&](std::int64_t slot) MOEB_LAMBDA {
      const std::int64_t token = slot / k;
      const std::int32_t expert = problem.experts.data[token * problem.experts.stride + slot % k];
      const bool kept = expert >= 0 && expert < problem.expert_count;
      store_element(problem.masked, token, slot % k,
                    kept ? load_element<Real>(problem.grad_weights, token, slot % k) : Real(0));
    });
  }
};

MOEB_NAMESPACE_END
