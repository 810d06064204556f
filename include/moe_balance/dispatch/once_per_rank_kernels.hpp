// The kernels of once_per_rank.hpp: a thread has a slot, or an element of a row.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

struct OncePerRankProblem {
  MatrixView<const std::int32_t> experts;
  MatrixView<std::int32_t> ranks;
  std::int32_t experts_per_rank;
  std::int32_t rank_count;
  std::int64_t* invalid;

  /// -1 where an id has none.
  [[nodiscard]] MOEB_INLINE std::int32_t rank_of(std::int32_t id) const {
    return id >= 0 && id / experts_per_rank < rank_count ? id / experts_per_rank : -1;
  }
};

struct FindRanks {
  static constexpr bool uses_shared = false;
  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const OncePerRankProblem& problem) const {
    const std::int64_t k_count = problem.experts.columns;
    for_each_item_of_thread(block, problem.experts.rows * k_count, [&](std::int64_t slot) MOEB_LAMBDA {
      const std::int64_t token = slot / k_count;
      const std::int64_t k = slot % k_count;
      const std::int32_t* const ids = problem.experts.data + token * problem.experts.stride;
      std::int32_t rank = problem.rank_of(ids[k]);
      if (rank < 0 && ids[k] != -1 && problem.invalid != nullptr) block.add_global(problem.invalid, 1);
      for (std::int64_t earlier = 0; rank >= 0 && earlier < k; ++earlier) {
        if (problem.rank_of(ids[earlier]) == rank) rank = -1;
      }
      problem.ranks.data[token * problem.ranks.stride + k] = rank;
    });
  }
};

struct RoutingOfRowsProblem {
  MatrixView<const std::int32_t> experts;
  ConstAnyMatrix weights;
  VectorView<const std::int64_t> slot_of_row;
  MatrixView<std::int32_t> row_experts;
  AnyMatrix row_weights;
  std::int32_t experts_per_rank;
  std::int64_t* invalid;
};

template <class Real>
struct CopyRouting {
  static constexpr bool uses_shared = false;
  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/, const RoutingOfRowsProblem& problem) const {
    const std::int64_t k_count = problem.experts.columns;
    for_each_item_of_thread(block, problem.row_experts.rows * k_count, [&](std::int64_t item) MOEB_LAMBDA {
      const std::int64_t row = item / k_count;
      const std::int64_t k = item % k_count;
      const std::int64_t slot = problem.slot_of_row.data[row];
      std::int32_t local = -1;
      Real weight = 0;
      if (slot >= 0 && slot < problem.experts.rows * k_count) {
        const std::int32_t* const ids = problem.experts.data + slot / k_count * problem.experts.stride;
        const std::int32_t of_row = ids[slot % k_count];
        const std::int32_t rank = of_row < 0 ? -1 : of_row / problem.experts_per_rank;
        if (rank >= 0 && ids[k] >= 0 && ids[k] / problem.experts_per_rank == rank) {
          local = ids[k] - rank * problem.experts_per_rank;
          weight = load_element<Real>(problem.weights, slot / k_count, k);
        }
      } else if (slot != -1 && k == 0 && problem.invalid != nullptr) {
        block.add_global(problem.invalid, 1);
      }
      problem.row_experts.data[row * problem.row_experts.stride + k] = local;
      store_element(problem.row_weights, row, k, weight);
    });
  }
};

struct RoutingOfRowsBackwardProblem {
  MatrixView<const std::int32_t> experts;
  MatrixView<const std::int64_t> row_of_slot;
  ConstAnyMatrix grad_row_weights;
  AnyMatrix grad_weights;
  std::int32_t experts_per_rank;
  std::int64_t* invalid;
};

template <class Real>
struct CollectFromRows {
  static constexpr bool uses_shared = false;
  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& /*tile*/,
                              const RoutingOfRowsBackwardProblem& problem) const {
    const std::int64_t k_count = problem.experts.columns;
    for_each_item_of_thread(block, problem.experts.rows * k_count, [&](std::int64_t slot) MOEB_LAMBDA {
      const std::int64_t token = slot / k_count;
      const std::int64_t k = slot % k_count;
      const std::int32_t* const ids = problem.experts.data + token * problem.experts.stride;
      const std::int64_t* const rows = problem.row_of_slot.data + token * problem.row_of_slot.stride;
      if (!is_row(problem, rows[k]) && rows[k] != -1 && problem.invalid != nullptr) block.add_global(problem.invalid, 1);
      // Of the slots on this one's rank the first has the row.
      Real gradient = 0;
      bool found = ids[k] < 0;
      for (std::int64_t other = 0; !found && other <= k; ++other) {
        if (ids[other] < 0 || ids[other] / problem.experts_per_rank != ids[k] / problem.experts_per_rank) continue;
        found = true;
        if (is_row(problem, rows[other])) gradient = load_element<Real>(problem.grad_row_weights, rows[other], k);
      }
      store_element(problem.grad_weights, token, k, gradient);
    });
  }

 private:
  [[nodiscard]] MOEB_INLINE static bool is_row(const RoutingOfRowsBackwardProblem& problem, std::int64_t row) {
    return row >= 0 && row < problem.grad_row_weights.rows;
  }
};

MOEB_NAMESPACE_END
