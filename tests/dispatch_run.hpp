// One dispatch problem and everything the library makes of it, on any engine: permutation, permute, combine and their backward passes.
#pragma once

#include "elements.hpp"
#include "random.hpp"

#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace testing {

/// Rows of guard bytes around what calls write would cost every array its alignment, so outputs are instead longer than asked for.
struct DispatchProblem {
  std::int64_t tokens = 0;
  std::int64_t k = 1;
  std::int64_t experts = 1;
  std::int64_t hidden = 1;
  std::int64_t align = 1;
  std::int64_t rows_per_expert = 0;
  mb::ExpertRange zero_experts{};  ///< they get no rows
  mb::ExpertRange identity{};      ///< they return what they are given, where they have no row
  std::int64_t block_size = 1;
  std::int64_t spare_rows = 0;     ///< rows beyond permutation_rows
  std::int64_t stride_excess = 0;  ///< of the [T, K] matrices and of hidden states
  mb::DataType type = mb::DataType::float32;
  mb::DataType factor_type = mb::DataType::float32;
  mb::Padding padding = mb::Padding::zero;
  bool sorts = false;             ///< by sorting, whatever the number of experts
  std::vector<std::int32_t> ids;  ///< [T, K] without excess
  std::vector<double> hidden_states;
  std::vector<double> weights;
  std::vector<double> expert_outputs;  ///< [R, H]
  std::vector<double> grad_combined;

  [[nodiscard]] std::int64_t slots() const { return tokens * k; }
  [[nodiscard]] std::int64_t rows() const {
    const std::int64_t needed =
        rows_per_expert > 0 ? rows_per_expert * with_rows() : mb::permutation_rows(tokens, k, with_rows(), align);
    return needed + spare_rows;
  }
  [[nodiscard]] std::int64_t with_rows() const { return experts - zero_experts.count; }
  [[nodiscard]] bool has_rows(std::int64_t e) const {
    return e < zero_experts.first || e >= zero_experts.first + zero_experts.count;
  }
};

struct DispatchResults {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> row_of_slot;  ///< without excess
  std::vector<std::int64_t> slot_of_row;
  std::vector<std::int32_t> expert_of_block;
  Bytes permuted;
  Bytes scaled;
  Bytes permuted_by_slots;  ///< with row_of_slot
  Bytes scaled_by_slots;
  Bytes combined;
  Bytes summed;
  Bytes grad_outputs;
  Bytes grad_summed;
  Bytes grad_weights;
  Bytes grad_hidden;
  Bytes grad_scale;
  std::vector<std::int64_t> excess;  ///< what lies between the rows of row_of_slot: must be untouched

  bool operator==(const DispatchResults&) const = default;
};

/// Rows of `columns` values with `excess` more behind each.
template <class T>
std::vector<T> with_excess(const std::vector<T>& values, std::int64_t columns, std::int64_t excess, T filler) {
  std::vector<T> result;
  for (std::size_t i = 0; i < values.size(); ++i) {
    result.push_back(values[i]);
    if ((static_cast<std::int64_t>(i) + 1) % columns == 0)
      result.insert(result.end(), static_cast<std::size_t>(excess), filler);
  }
  return result;
}
template <class T>
std::vector<T> without_excess(const std::vector<T>& values, std::int64_t columns, std::int64_t excess) {
  std::vector<T> result;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (static_cast<std::int64_t>(i) % (columns + excess) < columns) result.push_back(values[i]);
  }
  return result;
}

inline constexpr double untouched_value = 3.25;  // exact in every type

/// A matrix of one of the library's element types, where an engine's calls run.
template <class Engine>
class TypedMatrix {
 public:
  TypedMatrix(const Engine& engine, mb::DataType type, std::int64_t rows, std::int64_t columns, std::int64_t excess,
              const std::vector<double>& values)
      : type_(type),
        rows_(rows),
        columns_(columns),
        excess_(excess),
        memory_(engine, encoded(type, with_excess(values, columns, excess, untouched_value))) {}
  /// Filled with untouched_value.
  TypedMatrix(const Engine& engine, mb::DataType type, std::int64_t rows, std::int64_t columns, std::int64_t excess)
      : TypedMatrix(engine, type, rows, columns, excess,
                    std::vector<double>(static_cast<std::size_t>(rows * columns), untouched_value)) {}

  [[nodiscard]] mb::AnyMatrix view() { return {memory_.data(), type_, rows_, columns_, columns_ + excess_}; }
  [[nodiscard]] Bytes bytes() const { return memory_.values(); }

 private:
  mb::DataType type_;
  std::int64_t rows_;
  std::int64_t columns_;
  std::int64_t excess_;
  typename Engine::template Array<std::uint8_t> memory_;
};

template <class Engine>
DispatchResults run_dispatch(const Engine& engine, const DispatchProblem& p, mb::Status* status = nullptr) {
  using Longs = typename Engine::template Array<std::int64_t>;
  using Ints = typename Engine::template Array<std::int32_t>;
  const std::int64_t rows = p.rows();
  const std::int64_t row_blocks = rows / p.block_size;
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  Ints ids(engine, with_excess(p.ids, p.k, p.stride_excess, -7));
  Longs offsets(engine, std::vector<std::int64_t>(size(p.experts + 1), 99));
  Longs counts(engine, std::vector<std::int64_t>(size(p.experts), 99));
  Longs row_of_slot(engine, std::vector<std::int64_t>(size(p.tokens * (p.k + p.stride_excess)), 99));
  Longs slot_of_row(engine, std::vector<std::int64_t>(size(rows), 99));
  Ints expert_of_block(engine, std::vector<std::int32_t>(size(row_blocks), 99));
  const std::size_t bytes = p.sorts ? mb::detail::SortScratch::bytes(p.slots(), p.experts)
                                    : mb::permutation_workspace_bytes(p.tokens, p.k, p.experts);
  typename Engine::template Array<std::max_align_t> scratch(engine, std::vector<std::max_align_t>(bytes / 16 + 1));
  const mb::Workspace workspace{scratch.data(), bytes};
  const mb::MatrixView<std::int64_t> row_view(row_of_slot.data(), p.tokens, p.k, p.k + p.stride_excess);
  const mb::VectorView<std::int64_t> slot_view(slot_of_row.data(), rows);
  const mb::PermutationArgs order{.experts = {ids.data(), p.tokens, p.k, p.k + p.stride_excess},
                                  .offsets = {offsets.data(), p.experts + 1},
                                  .row_of_slot = row_view,
                                  .slot_of_row = slot_view,
                                  .align = p.align,
                                  .rows_per_expert = p.rows_per_expert,
                                  .zero_experts = p.zero_experts,
                                  .counts = counts.data(),
                                  .block_size = p.block_size,
                                  .expert_of_block = {expert_of_block.data(), row_blocks},
                                  .status = status};
  if (p.sorts)
    mb::detail::permutation_by_sorting(order, workspace, engine.place());
  else
    mb::permutation(order, workspace, engine.place());

  using Typed = TypedMatrix<Engine>;
  const std::int64_t x = p.stride_excess;
  Typed hidden(engine, p.type, p.tokens, p.hidden, x, p.hidden_states);
  Typed weights(engine, p.factor_type, p.tokens, p.k, x, p.weights);
  Typed outputs(engine, p.type, rows, p.hidden, x, p.expert_outputs);
  Typed grad_combined(engine, p.type, p.tokens, p.hidden, x, p.grad_combined);
  Typed permuted(engine, p.type, rows, p.hidden, x);
  Typed scaled(engine, p.type, rows, p.hidden, x);
  Typed permuted_by_slots(engine, p.type, rows, p.hidden, x);
  Typed scaled_by_slots(engine, p.type, rows, p.hidden, x);
  Typed combined(engine, p.type, p.tokens, p.hidden, x);
  Typed summed(engine, p.type, p.tokens, p.hidden, x);
  Typed grad_outputs(engine, p.type, rows, p.hidden, x);
  Typed grad_summed(engine, p.type, rows, p.hidden, x);
  Typed grad_weights(engine, p.factor_type, p.tokens, p.k, x);
  Typed grad_hidden(engine, p.type, p.tokens, p.hidden, x);
  Typed grad_scale(engine, p.factor_type, p.tokens, p.k, x);
  const int k = static_cast<int>(p.k);
  const auto place = engine.place();
  const auto identity = [&](const mb::ConstAnyMatrix& states, const mb::ConstAnyMatrix& factors) -> mb::IdentityExperts {
    if (p.identity.count == 0) return {};
    return {.experts = order.experts, .range = p.identity, .tokens = states, .weights = factors};
  };
  const auto permute = [&](Typed& to, const mb::ConstAnyMatrix& scale, const mb::MatrixView<const std::int64_t>& rows_of) {
    mb::permute({.hidden = hidden.view(),
                 .slot_of_row = slot_view,
                 .permuted = to.view(),
                 .top_k = k,
                 .scale = scale,
                 .padding = p.padding,
                 .status = status,
                 .row_of_slot = rows_of},
                {}, place);
  };
  permute(permuted, {}, {});
  permute(scaled, weights.view(), {});
  permute(permuted_by_slots, {}, row_view);
  permute(scaled_by_slots, weights.view(), row_view);
  mb::combine({.permuted = outputs.view(),
               .row_of_slot = row_view,
               .combined = combined.view(),
               .weights = weights.view(),
               .status = status,
               .identity = identity(hidden.view(), weights.view())},
              {}, place);
  mb::combine({.permuted = outputs.view(),
               .row_of_slot = row_view,
               .combined = summed.view(),
               .status = status,
               .identity = identity(hidden.view(), {})},
              {}, place);
  mb::combine_backward({.grad_combined = grad_combined.view(),
                        .row_of_slot = row_view,
                        .slot_of_row = slot_view,
                        .grad_permuted = grad_outputs.view(),
                        .weights = weights.view(),
                        .permuted = outputs.view(),
                        .grad_weights = grad_weights.view(),
                        .padding = p.padding,
                        .status = status,
                        .identity = identity(hidden.view(), {})},
                       {}, place);
  mb::combine_backward({.grad_combined = grad_combined.view(),
                        .row_of_slot = row_view,
                        .slot_of_row = slot_view,
                        .grad_permuted = grad_summed.view(),
                        .padding = p.padding,
                        .status = status},
                       {}, place);
  mb::permute_backward({.grad_permuted = outputs.view(),
                        .row_of_slot = row_view,
                        .grad_hidden = grad_hidden.view(),
                        .scale = weights.view(),
                        .hidden = hidden.view(),
                        .grad_scale = grad_scale.view(),
                        .status = status,
                        .identity = identity(grad_combined.view(), weights.view())},
                       {}, place);
  engine.wait();
  DispatchResults results{.offsets = offsets.values(),
                          .counts = counts.values(),
                          .row_of_slot = without_excess(row_of_slot.values(), p.k, x),
                          .slot_of_row = slot_of_row.values(),
                          .expert_of_block = expert_of_block.values(),
                          .permuted = permuted.bytes(),
                          .scaled = scaled.bytes(),
                          .permuted_by_slots = permuted_by_slots.bytes(),
                          .scaled_by_slots = scaled_by_slots.bytes(),
                          .combined = combined.bytes(),
                          .summed = summed.bytes(),
                          .grad_outputs = grad_outputs.bytes(),
                          .grad_summed = grad_summed.bytes(),
                          .grad_weights = grad_weights.bytes(),
                          .grad_hidden = grad_hidden.bytes(),
                          .grad_scale = grad_scale.bytes(),
                          .excess = {}};
  const std::vector<std::int64_t> all_rows = row_of_slot.values();
  for (std::size_t i = 0; i < all_rows.size(); ++i) {
    if (static_cast<std::int64_t>(i) % (p.k + x) >= p.k) results.excess.push_back(all_rows[i]);
  }
  return results;
}

/// Fills in what run_dispatch needs beside ids; values are exact in the problem's types.
inline void fill_values(DispatchProblem& p, Random& random) {
  const auto normals = [&](std::int64_t count, mb::DataType type) {
    return rounded_to(type, random.normals<double>(static_cast<std::size_t>(count)));
  };
  p.hidden_states = normals(p.tokens * p.hidden, p.type);
  p.weights = normals(p.slots(), p.factor_type);
  p.expert_outputs = normals(p.rows() * p.hidden, p.type);
  p.grad_combined = normals(p.tokens * p.hidden, p.type);
}

/// `kind` 0: random ids, some empty; 1: one expert takes all; 2: distinct ids per token; 3: every slot empty.
inline DispatchProblem dispatch_problem(std::uint64_t seed, std::int64_t tokens, std::int64_t k, std::int64_t experts,
                                        std::int64_t hidden, std::int64_t align, int kind = 0) {
  Random random(seed);
  DispatchProblem p;
  p.tokens = tokens;
  p.k = k;
  p.experts = experts;
  p.hidden = hidden;
  p.align = align;
  p.block_size = align;
  const auto last = static_cast<int>(experts) - 1;
  const int favourite = random.integer(0, last);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::vector<int> distinct = kind == 2 ? random.distinct_ids(static_cast<int>(k), last + 1) : std::vector<int>{};
    for (std::int64_t i = 0; i < k; ++i) {
      const int id = kind == 3            ? -1
                     : kind == 2          ? distinct[static_cast<std::size_t>(i)]
                     : kind == 1          ? favourite
                     : random.chance(0.2) ? -1
                                          : random.integer(0, last);
      p.ids.push_back(id);
    }
  }
  fill_values(p, random);
  return p;
}

}  // namespace testing
