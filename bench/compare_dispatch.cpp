// compare_dispatch.hpp on the CPU. Built with plain -O2, as users would.
#include "compare_dispatch.hpp"

namespace {

moe_balance::Host place_of(const compare::DispatchCall& call) {
  return {.threads = static_cast<int>(call.routing.place)};
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
