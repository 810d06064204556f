// compare_library.hpp in CUDA: calls are enqueued on the stream in Call::place. Softmax serves decode and many experts, too.
#include "compare_library.hpp"

#include <moe_balance/moe_balance.cuh>

namespace {

cudaStream_t place_of(const compare::Call& call) {
  return reinterpret_cast<cudaStream_t>(call.place);
}

const compare::mb::Router softmax_top16{compare::mb::Softmax{}, compare::mb::TopK<16>{},
                                        compare::mb::AuxLoss{.coefficient = 1e-2f}};

}  // namespace

extern "C" {
int softmax_route(const compare::Call* call) {
  return compare::route(compare::softmax, *call, place_of(*call));
}
int softmax_forward(const compare::Call* call) {
  return compare::forward(compare::softmax, *call, place_of(*call));
}
int softmax_backward(const compare::Call* call) {
  return compare::backward(compare::softmax, *call, place_of(*call));
}
int softmax_top16_forward(const compare::Call* call) {
  return compare::forward(softmax_top16, *call, place_of(*call));
}
int sigmoid_groups_forward(const compare::Call* call) {
  return compare::forward(compare::sigmoid_groups, *call, place_of(*call));
}
int sigmoid_groups_backward(const compare::Call* call) {
  return compare::backward(compare::sigmoid_groups, *call, place_of(*call));
}
std::int64_t saved_bytes(std::int64_t experts) {
  return static_cast<std::int64_t>(compare::softmax.saved_bytes({0, static_cast<int>(experts), 1}));
}
}
