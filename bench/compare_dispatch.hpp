// The dispatch calls that bench/compare_torch_dispatch.py (CPU) and bench/compare_torch.py --device cuda time beside PyTorch, as C functions on plain
// pointers, which have the includer's place: before it includes this it says what place_of(const compare::Call&) is (compare_dispatch.cpp, and
// compare_dispatch.cu). Each is part of one library with the compare_library of its kind.
#pragma once

#include "compare_library.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace compare {

/// Pointers and sizes of one call; the Python side has the same fields in the same order. Rows are not padded, so there are tokens * k.
struct DispatchCall {
  Call routing;  ///< tokens, experts, the place, and what is routed by those calls that route
  std::int64_t k;
  std::int64_t hidden;
  std::int64_t type;  ///< of hidden states: a DataType
  const std::int32_t* ids;
  const float* weights;
  const void* states;
  std::int64_t* offsets;
  std::int64_t* row_of_slot;
  std::int64_t* slot_of_row;
  void* permuted;
  void* combined;
  void* grad_permuted;
  float* grad_weights;
  void* workspace;
  std::int64_t workspace_bytes;

  [[nodiscard]] std::int64_t tokens() const { return routing.tokens; }
  [[nodiscard]] std::int64_t rows() const { return tokens() * k; }
  [[nodiscard]] mb::MatrixView<std::int64_t> row_of_slot_view() const { return {row_of_slot, tokens(), k}; }
  [[nodiscard]] mb::VectorView<std::int64_t> slot_of_row_view() const { return {slot_of_row, rows()}; }
  [[nodiscard]] mb::MatrixView<const float> weights_view() const { return {weights, tokens(), k}; }
  [[nodiscard]] mb::ConstAnyMatrix states_view() const {
    return {states, static_cast<mb::DataType>(type), tokens(), hidden, hidden};
  }
  [[nodiscard]] mb::AnyMatrix states_view(void* data, std::int64_t row_count) const {
    return {data, static_cast<mb::DataType>(type), row_count, hidden, hidden};
  }
  [[nodiscard]] mb::Workspace workspace_view() const { return {workspace, static_cast<std::size_t>(workspace_bytes)}; }
  /// Of the given ids.
  [[nodiscard]] mb::PermutationArgs order() const {
    return {.experts = {ids, tokens(), k},
            .offsets = {offsets, routing.experts + 1},
            .row_of_slot = row_of_slot_view(),
            .slot_of_row = slot_of_row_view()};
  }
};

inline std::int64_t dispatch_workspace_bytes(std::int64_t tokens, std::int64_t k, std::int64_t experts) {
  const std::size_t routing = mb::route_and_permute_workspace_bytes(softmax, {tokens, static_cast<int>(experts)});
  return static_cast<std::int64_t>(std::max(routing, mb::permutation_workspace_bytes(tokens, k, experts)));
}

/// The router's forward and the permutation of the ids that it chooses.
template <class Router, class Place>
int forward_and_permute(const Router& router, const DispatchCall& call, const Place& place) {
  return guarded([&] {
    mb::PermutationArgs order = call.order();
    order.counts = call.routing.counts;
    mb::forward_and_permute(router, forward_args(router, call.routing), order, call.workspace_view(), place);
  });
}

template <class Place>
int permutation(const DispatchCall& call, const Place& place) {
  return guarded([&] { mb::permutation(call.order(), call.workspace_view(), place); });
}

/// By the rows of slots, where `row_of_slot` is, else by the slots of rows alone.
template <class Place>
int permute(const DispatchCall& call, const mb::MatrixView<const std::int64_t>& row_of_slot, const Place& place) {
  return guarded([&] {
    mb::permute({.hidden = call.states_view(),
                 .slot_of_row = call.slot_of_row_view(),
                 .permuted = call.states_view(call.permuted, call.rows()),
                 .top_k = static_cast<int>(call.k),
                 .row_of_slot = row_of_slot},
                {}, place);
  });
}

template <class Place>
int combine(const DispatchCall& call, const Place& place) {
  return guarded([&] {
    mb::combine({.permuted = call.states_view(call.permuted, call.rows()),
                 .row_of_slot = call.row_of_slot_view(),
                 .combined = call.states_view(call.combined, call.tokens()),
                 .weights = call.weights_view()},
                {}, place);
  });
}

/// With the gradient of the weights; `states` are the gradients of what was combined.
template <class Place>
int combine_backward(const DispatchCall& call, const Place& place) {
  return guarded([&] {
    mb::combine_backward({.grad_combined = call.states_view(),
                          .row_of_slot = call.row_of_slot_view(),
                          .slot_of_row = call.slot_of_row_view(),
                          .grad_permuted = call.states_view(call.grad_permuted, call.rows()),
                          .weights = call.weights_view(),
                          .permuted = call.states_view(call.permuted, call.rows()),
                          .grad_weights = mb::MatrixView<float>(call.grad_weights, call.tokens(), call.k)},
                         {}, place);
  });
}

}  // namespace compare

extern "C" {
std::int64_t workspace_needed(std::int64_t tokens, std::int64_t k, std::int64_t experts) {
  return compare::dispatch_workspace_bytes(tokens, k, experts);
}
int softmax_and_permutation(const compare::DispatchCall* call) {
  return compare::forward_and_permute(compare::softmax, *call, place_of(call->routing));
}
int sigmoid_groups_and_permutation(const compare::DispatchCall* call) {
  return compare::forward_and_permute(compare::sigmoid_groups, *call, place_of(call->routing));
}
int permutation(const compare::DispatchCall* call) {
  return compare::permutation(*call, place_of(call->routing));
}
int permute(const compare::DispatchCall* call) {
  return compare::permute(*call, call->row_of_slot_view(), place_of(call->routing));
}
int permute_by_rows(const compare::DispatchCall* call) {
  return compare::permute(*call, {}, place_of(call->routing));
}
int combine(const compare::DispatchCall* call) {
  return compare::combine(*call, place_of(call->routing));
}
int combine_backward(const compare::DispatchCall* call) {
  return compare::combine_backward(*call, place_of(call->routing));
}
}
