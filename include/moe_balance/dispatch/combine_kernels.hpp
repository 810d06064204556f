// The kernel that moves hidden states from rows to tokens, one tile per token: a sum over k in fixed order.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/row_kernels.hpp>
#include <moe_balance/dispatch/rows.hpp>
#include <moe_balance/token/elements.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// tokens[t] = sum over k of (weights[t, k] *) rows[row_of_slot[t, k]], in float32, one fused multiply-add per term from 0 on; and one more where
/// experts return what they are given.
struct CombineProblem {
  ConstAnyMatrix rows;
  AnyMatrix tokens;
  MatrixView<const std::int64_t> row_of_slot;
  ConstAnyMatrix weights;
  IdentityExperts identity;
  bool packs;
  std::int64_t* invalid;
};

template <class Real>
struct CombineRows {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const CombineProblem& problem) const {
    with_element_type<Real>(problem.tokens.type, [&](auto* type) MOEB_LAMBDA {
      using T = std::remove_pointer_t<decltype(type)>;
      for_each_item_of_tile(block, tile, problem.tokens.rows, [&](std::int64_t token) MOEB_LAMBDA {
        if (problem.invalid != nullptr) report_invalid(block, tile, problem, token);
        T* to = row_pointer<T>(problem.tokens, token);
        const Own own = own_share(block, tile, problem, token);
        for_each_columns<T>(tile, problem.tokens.columns, problem.packs, [&](std::int64_t c, auto n) MOEB_LAMBDA {
          Real sums[decltype(n)::value] = {};
          add_terms<T>(block, tile, problem, token, c, sums);
          if (own.any) add_row(row_pointer<T>(problem.identity.tokens, token) + c, own.weight, sums);
          store_columns(to + c, sums);
        });
      });
    });
  }

 private:
  template <class BlockT, class TileT>
  MOEB_INLINE static void report_invalid(const BlockT& block, const TileT& tile, const CombineProblem& problem,
                                         std::int64_t token) {
    for (std::int64_t k = 0; k < problem.row_of_slot.columns; ++k) {
      (void)row_of(block, tile, problem.row_of_slot, problem.rows.rows, token, k, problem.invalid);
    }
  }

  /// What a token itself counts in its sum.
  struct Own {
    Real weight;
    bool any;
  };
  template <class BlockT, class TileT>
  [[nodiscard]] MOEB_INLINE static Own own_share(const BlockT& block, const TileT& tile, const CombineProblem& problem,
                                                 std::int64_t token) {
    Own own{Real(0), false};
    if (problem.identity.range.count == 0) return own;
    const ConstAnyMatrix& weights = problem.identity.weights;
    MOEB_NO_UNROLL
    for (std::int64_t k = 0; k < problem.row_of_slot.columns; ++k) {
      if (!is_identity(problem.identity, token, k)) continue;
      if (row_of(block, tile, problem.row_of_slot, problem.rows.rows, token, k, nullptr) >= 0) continue;
      own.weight = add(own.weight, weights.data == nullptr ? Real(1) : load_element<Real>(weights, token, k));
      own.any = true;
    }
    return own;
  }

  /// sums += weight * row.
  template <class T, int N>
  MOEB_INLINE static void add_row(const T* row, Real weight, Real (&sums)[N]) {
    Real values[N];
    load_columns(row, values);
    MOEB_UNROLL
    for (int i = 0; i < N; ++i) sums[i] = fma(values[i], weight, sums[i]);
  }

  template <class T, int N, class BlockT, class TileT>
  MOEB_INLINE static void add_terms(const BlockT& block, const TileT& tile, const CombineProblem& problem,
                                    std::int64_t token, std::int64_t column, Real (&sums)[N]) {
    for (std::int64_t k = 0; k < problem.row_of_slot.columns; ++k) {
      const std::int64_t row = row_of(block, tile, problem.row_of_slot, problem.rows.rows, token, k, nullptr);
      if (row < 0) continue;
      const Real weight = problem.weights.data == nullptr ? Real(1) : load_element<Real>(problem.weights, token, k);
      add_row(row_pointer<T>(problem.rows, row) + column, weight, sums);
    }
  }
};

MOEB_NAMESPACE_END
