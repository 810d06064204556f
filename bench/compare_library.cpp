// compare_library.hpp on the CPU. Built with plain -O2, as users would; with -fopenmp parts of calls run on OpenMP's threads.
#include "compare_place.hpp"

extern "C" {
int softmax_forward(const compare::Call* call) {
  return compare::forward(compare::softmax, *call, place_of(*call));
}
int softmax_backward(const compare::Call* call) {
  return compare::backward(compare::softmax, *call, place_of(*call));
}
int softmax_over_selected_forward(const compare::Call* call) {
  return compare::forward(compare::softmax_over_selected, *call, place_of(*call));
}
int softmax_over_selected_backward(const compare::Call* call) {
  return compare::backward(compare::softmax_over_selected, *call, place_of(*call));
}
int sigmoid_bias_forward(const compare::Call* call) {
  return compare::forward(compare::sigmoid_bias, *call, place_of(*call));
}
int sigmoid_bias_backward(const compare::Call* call) {
  return compare::backward(compare::sigmoid_bias, *call, place_of(*call));
}
int sigmoid_groups_forward(const compare::Call* call) {
  return compare::forward(compare::sigmoid_groups, *call, place_of(*call));
}
int sigmoid_groups_backward(const compare::Call* call) {
  return compare::backward(compare::sigmoid_groups, *call, place_of(*call));
}
int top_k() {
  return compare::chosen_experts;
}
std::int64_t saved_bytes(std::int64_t experts) {
  return static_cast<std::int64_t>(compare::softmax.saved_bytes({0, static_cast<int>(experts), 1}));
}
}
