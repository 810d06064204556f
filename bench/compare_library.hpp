// The routers that bench/compare_torch.py times beside PyTorch, as C functions on plain pointers: on the CPU (compare_library.cpp) and in CUDA
// (compare_library.cu), which say where calls run. Compiled for COMPARE_TOP_K experts a token.
#pragma once

#include <moe_balance/moe_balance.hpp>

#include <cstdint>
#include <cstdio>
#include <exception>

#ifndef COMPARE_TOP_K
#define COMPARE_TOP_K 8
#endif

namespace compare {

namespace mb = moe_balance;

/// Pointers and sizes of one call; the Python side has the same fields in the same order.
struct Call {
  std::int64_t tokens;
  std::int64_t experts;
  const void* logits;
  std::int32_t* ids;
  float* weights;
  std::int64_t* counts;
  float* bias;
  std::int64_t* load;
  void* saved;
  std::int64_t saved_bytes;
  const float* grad_weights;
  void* grad_logits;
  std::int64_t place;  ///< on the CPU the number of threads, in CUDA the stream
  std::int64_t type;   ///< of logits and their gradients: a DataType

  [[nodiscard]] mb::ConstAnyMatrix logits_view() const {
    return {logits, static_cast<mb::DataType>(type), tokens, experts, experts};
  }
  [[nodiscard]] mb::AnyMatrix grad_logits_view() const {
    return {grad_logits, static_cast<mb::DataType>(type), tokens, experts, experts};
  }
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
    router.route({.logits = call.logits_view(),
                  .experts = {call.ids, call.tokens, Router::k},
                  .weights = mb::MatrixView(call.weights, call.tokens, Router::k)},
                 {}, place);
  });
}

/// What forward and forward_and_permute share: all but where counts go.
template <class Router>
mb::ForwardArgs forward_args(const Router& /*router*/, const Call& call) {
  const int experts = static_cast<int>(call.experts);
  return {.logits = call.logits_view(),
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
    router.backward({.logits = call.logits_view(),
                     .experts = mb::MatrixView(call.ids, call.tokens, Router::k),
                     .grad_weights = mb::MatrixView(call.grad_weights, call.tokens, Router::k),
                     .grad_logits = call.grad_logits_view(),
                     .saved = {call.saved, static_cast<std::size_t>(call.saved_bytes)}},
                    {}, place);
  });
}

inline constexpr int chosen_experts = COMPARE_TOP_K;
inline const mb::Router softmax{mb::Softmax{}, mb::TopK<chosen_experts>{}, mb::AuxLoss{.coefficient = 1e-2f}};
inline const mb::Router softmax_over_selected{mb::SoftmaxOverSelected{}, mb::TopK<chosen_experts>{}};
inline const mb::Router sigmoid_bias{mb::Sigmoid{}, mb::TopK<chosen_experts>{.scaling_factor = 2.5f}, mb::LossFreeBias{}};
inline const mb::Router sigmoid_groups{
    mb::Sigmoid{}, mb::GroupLimitedTopK<chosen_experts>{.groups = 8, .groups_kept = 4, .scaling_factor = 2.5f},
    mb::LossFreeBias{}};

}  // namespace compare
