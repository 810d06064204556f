// compare_dispatch.hpp in CUDA: calls are enqueued on the stream in Call::place. All cases have 256 experts, and kernels are compiled for no others.
#define MOE_BALANCE_CUDA_MIN_EXPERTS 256
#define MOE_BALANCE_CUDA_MAX_EXPERTS 256
#include "compare_dispatch.hpp"

#include <moe_balance/moe_balance.cuh>

namespace {

cudaStream_t place_of(const compare::DispatchCall& call) {
  return reinterpret_cast<cudaStream_t>(call.routing.place);
}

}  // namespace

extern "C" {
std::int64_t workspace_needed(std::int64_t tokens, std::int64_t k, std::int64_t experts) {
  return compare::dispatch_workspace_bytes(tokens, k, experts);
}
int softmax_and_permutation(const compare::DispatchCall* call) {
  return compare::forward_and_permute(compare::softmax, *call, place_of(*call));
}
int sigmoid_groups_and_permutation(const compare::DispatchCall* call) {
  return compare::forward_and_permute(compare::sigmoid_groups, *call, place_of(*call));
}
int permutation(const compare::DispatchCall* call) {
  return compare::permutation(*call, place_of(*call));
}
int permute(const compare::DispatchCall* call) {
  return compare::permute(*call, call->row_of_slot_view(), place_of(*call));
}
int permute_by_rows(const compare::DispatchCall* call) {
  return compare::permute(*call, {}, place_of(*call));
}
int combine(const compare::DispatchCall* call) {
  return compare::combine(*call, place_of(*call));
}
int combine_backward(const compare::DispatchCall* call) {
  return compare::combine_backward(*call, place_of(*call));
}
}
