// The routers that bench/compare_torch.py times beside PyTorch, as C functions on plain pointers. Built with plain -O2, as users would.
#include <moe_balance/moe_balance.hpp>

#include <cstdint>

namespace mb = moe_balance;

namespace {

/// Pointers and sizes of one call; the Python side has the same fields in the same order.
struct Call {
  std::int64_t tokens;
  std::int64_t experts;
  const float* logits;
  std::int32_t* ids;
  float* weights;
  std::int64_t* counts;
  float* bias;
  std::int64_t* load;
  void* saved;
  std::int64_t saved_bytes;
  const float* grad_weights;
  float* grad_logits;
  std::int64_t threads;
};

template <class Router>
void forward(const Router& router, const Call& call) {
  const int experts = static_cast<int>(call.experts);
  router.forward({.logits = mb::MatrixView(call.logits, call.tokens, call.experts),
                  .experts = {call.ids, call.tokens, Router::k},
                  .weights = mb::MatrixView(call.weights, call.tokens, Router::k),
                  .counts = call.counts,
                  .bias = {call.bias, experts},
                  .load = {call.load, experts},
                  .saved = {call.saved, static_cast<std::size_t>(call.saved_bytes)}},
                 {}, mb::Host{.threads = static_cast<int>(call.threads)});
}

template <class Router>
void backward(const Router& router, const Call& call) {
  router.backward({.logits = mb::MatrixView(call.logits, call.tokens, call.experts),
                   .experts = mb::MatrixView(call.ids, call.tokens, Router::k),
                   .grad_weights = mb::MatrixView(call.grad_weights, call.tokens, Router::k),
                   .grad_logits = mb::MatrixView(call.grad_logits, call.tokens, call.experts),
                   .saved = {call.saved, static_cast<std::size_t>(call.saved_bytes)}},
                  {}, mb::Host{.threads = static_cast<int>(call.threads)});
}

const mb::Router softmax{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{.coefficient = 1e-2f}};
const mb::Router sigmoid_groups{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f},
                                mb::LossFreeBias{}};

}  // namespace

extern "C" {
void softmax_forward(const Call* call) { forward(softmax, *call); }
void softmax_backward(const Call* call) { backward(softmax, *call); }
void sigmoid_groups_forward(const Call* call) { forward(sigmoid_groups, *call); }
void sigmoid_groups_backward(const Call* call) { backward(sigmoid_groups, *call); }
std::int64_t saved_bytes(std::int64_t experts) {
  return static_cast<std::int64_t>(softmax.saved_bytes({0, static_cast<int>(experts), 1}));
}
}
