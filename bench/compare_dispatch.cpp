// The dispatch calls that bench/compare_torch_dispatch.py times beside PyTorch, as C functions on plain pointers. Built with plain -O2, as users would.
#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace mb = moe_balance;

/// Pointers and sizes of one call; the Python side has the same fields in the same order.
struct DispatchCall {
  std::int64_t tokens;
  std::int64_t k;
  std::int64_t experts;
  std::int64_t hidden;
  std::int64_t rows;
  const std::int32_t* ids;
  const float* weights;
  const float* states;
  std::int64_t* offsets;
  std::int64_t* row_of_slot;
  std::int64_t* slot_of_row;
  float* permuted;
  float* combined;
  float* grad_permuted;
  float* grad_weights;
  void* workspace;
  std::int64_t workspace_bytes;
  std::int64_t threads;
  const float* logits;
  float* bias;
  std::int64_t* counts;
  std::int64_t* load;
  void* saved;
  std::int64_t saved_bytes;
  std::int32_t* routed_ids;
  float* routed_weights;
};

namespace {

mb::Host place(const DispatchCall& call) {
  return {.threads = static_cast<int>(call.threads)};
}
mb::MatrixView<std::int64_t> row_of_slot(const DispatchCall& call) {
  return {call.row_of_slot, call.tokens, call.k};
}
mb::VectorView<std::int64_t> slot_of_row(const DispatchCall& call) {
  return {call.slot_of_row, call.rows};
}
mb::MatrixView<const float> weights(const DispatchCall& call) {
  return {call.weights, call.tokens, call.k};
}
mb::MatrixView<const float> states(const DispatchCall& call) {
  return {call.states, call.tokens, call.hidden};
}
mb::MatrixView<float> permuted(const DispatchCall& call) {
  return {call.permuted, call.rows, call.hidden};
}
mb::Workspace workspace(const DispatchCall& call) {
  return {call.workspace, static_cast<std::size_t>(call.workspace_bytes)};
}

template <class Router>
void route_and_order(const Router& router, const DispatchCall& call) {
  const int experts = static_cast<int>(call.experts);
  mb::forward_and_permute(router,
                          {.logits = mb::MatrixView(call.logits, call.tokens, call.experts),
                           .experts = {call.routed_ids, call.tokens, Router::k},
                           .weights = mb::MatrixView(call.routed_weights, call.tokens, Router::k),
                           .bias = {call.bias, experts},
                           .load = {call.load, experts},
                           .saved = {call.saved, static_cast<std::size_t>(call.saved_bytes)}},
                          {.experts = {},
                           .offsets = {call.offsets, call.experts + 1},
                           .row_of_slot = row_of_slot(call),
                           .slot_of_row = slot_of_row(call),
                           .counts = call.counts},
                          workspace(call), place(call));
}

}  // namespace

extern "C" {
std::int64_t rows_needed(std::int64_t tokens, std::int64_t k, std::int64_t experts, std::int64_t align) {
  return mb::permutation_rows(tokens, k, experts, align);
}
std::int64_t workspace_needed(std::int64_t tokens, std::int64_t k, std::int64_t experts) {
  const mb::Router router{mb::Softmax{}, mb::TopK<8>{}};
  const std::size_t routing = mb::route_and_permute_workspace_bytes(router, {tokens, static_cast<int>(experts)});
  return static_cast<std::int64_t>(std::max(routing, mb::permutation_workspace_bytes(tokens, k, experts)));
}
void permutation(const DispatchCall* call) {
  mb::permutation({.experts = {call->ids, call->tokens, call->k},
                   .offsets = {call->offsets, call->experts + 1},
                   .row_of_slot = row_of_slot(*call),
                   .slot_of_row = slot_of_row(*call)},
                  workspace(*call), place(*call));
}
void permute(const DispatchCall* call) {
  mb::permute({.hidden = states(*call),
               .slot_of_row = slot_of_row(*call),
               .permuted = permuted(*call),
               .top_k = static_cast<int>(call->k)},
              {}, place(*call));
}
void combine(const DispatchCall* call) {
  mb::combine({.permuted = permuted(*call),
               .row_of_slot = row_of_slot(*call),
               .combined = mb::MatrixView<float>(call->combined, call->tokens, call->hidden),
               .weights = weights(*call)},
              {}, place(*call));
}
void combine_backward(const DispatchCall* call) {
  mb::combine_backward({.grad_combined = states(*call),
                        .row_of_slot = row_of_slot(*call),
                        .slot_of_row = slot_of_row(*call),
                        .grad_permuted = mb::MatrixView<float>(call->grad_permuted, call->rows, call->hidden),
                        .weights = weights(*call),
                        .permuted = permuted(*call),
                        .grad_weights = mb::MatrixView<float>(call->grad_weights, call->tokens, call->k)},
                       {}, place(*call));
}
std::int64_t saved_needed(std::int64_t experts) {
  return static_cast<std::int64_t>(
      mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}}.saved_bytes({0, static_cast<int>(experts)}));
}
/// Routing as compare_torch.py's two cases, and the permutation.
void softmax_and_permutation(const DispatchCall* call) {
  route_and_order(mb::Router{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}}, *call);
}
void sigmoid_groups_and_permutation(const DispatchCall* call) {
  route_and_order(mb::Router{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f},
                             mb::LossFreeBias{}},
                  *call);
}
}
