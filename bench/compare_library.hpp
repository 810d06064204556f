// The routers that bench/compare_torch.py times beside PyTorch, as C functions on plain pointers: on the CPU (compare_library.cpp) and in CUDA
// (compare_library.cu), which say what PlaceOfCall is.
#pragma once

#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <cstdio>
#include <exception>

namespace compare {

namespace mb = moe_balance;

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
  std::int64_t place;  ///< on the CPU the number of threads, in CUDA the stream
};

/// Runs `body`; 1 and a message on stderr when it throws, else 0.
template <class Body>
int guarded(const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

template <class Router, class Place>
int route(const Router& router, const Call& call, const Place& place) {
  return guarded([&] {
    router.route({.logits = mb::MatrixView(call.logits, call.tokens, call.experts),
                  .experts = {call.ids, call.tokens, Router::k},
                  .weights = mb::MatrixView(call.weights, call.tokens, Router::k)},
                 {}, place);
  });
}

/// What forward and forward_and_permute share: all but where counts go.
template <class Router>
mb::ForwardArgs forward_args(const Router& /*router*/, const Call& call) {
  const int experts = static_cast<int>(call.experts);
  return {.logits = mb::MatrixView(call.logits, call.tokens, call.experts),
          .experts = {call.ids, call.tokens, Router::k},
          .weights = mb::MatrixView(call.weights, call.tokens, Router::k),
          .bias = {call.bias, experts},
          .load = {call.load, experts},
          .saved = {call.saved, static_cast<std::size_t>(call.saved_bytes)}};
}

template <class Router, class Place>
int forward(const Router& router, const Call& call, const Place& place) {
  return guarded([&] {
    mb::ForwardArgs args = forward_args(router, call);
    args.counts = call.counts;
    router.forward(args, {}, place);
  });
}

template <class Router, class Place>
int backward(const Router& router, const Call& call, const Place& place) {
  return guarded([&] {
    router.backward({.logits = mb::MatrixView(call.logits, call.tokens, call.experts),
                     .experts = mb::MatrixView(call.ids, call.tokens, Router::k),
                     .grad_weights = mb::MatrixView(call.grad_weights, call.tokens, Router::k),
                     .grad_logits = mb::MatrixView(call.grad_logits, call.tokens, call.experts),
                     .saved = {call.saved, static_cast<std::size_t>(call.saved_bytes)}},
                    {}, place);
  });
}

inline const mb::Router softmax{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{.coefficient = 1e-2f}};
inline const mb::Router softmax_top2{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{.coefficient = 1e-2f}};
inline const mb::Router sigmoid_groups{
    mb::Sigmoid{}, mb::GroupLimitedTopK<8>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f}, mb::LossFreeBias{}};

}  // namespace compare
