// One training step through the CPU engine and through the CUDA kernels' bodies on fibers, compared bit for bit.
#pragma once

#include "../elements.hpp"
#include "fiber_engine.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

namespace testing {

namespace mb = moe_balance;

/// Inputs of one step; `awkward` mixes in arbitrary bit patterns, infinities, NaN, ties, zeros, and, in every other token, values whose softmax is 0.
struct StepInputs {
  std::int64_t tokens;
  int experts;
  int top_k;
  std::vector<float> logits;
  std::vector<float> grad_weights;
  std::vector<float> bias;
  std::vector<std::uint8_t> active;
  std::vector<std::int32_t> replay;
  std::vector<std::uint8_t> replayed;
  std::int64_t sequences = 1;
  bool usual = false;   ///< rows one behind the other, sequences, too, a bias only where the balancer has one
  bool masked = false;  ///< a usual step has its mask, too; others always have
  mb::DataType type = mb::DataType::float32;  ///< of logits and their gradients

  StepInputs(std::uint64_t seed, std::int64_t token_count, int expert_count, int k, bool awkward)
      : tokens(token_count), experts(expert_count), top_k(k) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    logits.resize(static_cast<std::size_t>(tokens * experts));
    for (float& logit : logits) {
      logit = normal(random);
      if (!awkward) continue;
      const auto kind = random() % 8;
      if (kind == 0) {
        const auto bits = static_cast<std::uint32_t>(random()) | (random() % 3 == 0 ? 0x7f800000u : 0u);
        std::memcpy(&logit, &bits, sizeof bits);
      } else if (kind < 3) {
        logit = 0.5f;
      } else if (kind == 3) {
        const float odd[] = {std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity(),
                             -200.0f,
                             -300.0f,
                             std::nanf(""),
                             -0.0f,
                             0.0f};
        logit = odd[random() % std::size(odd)];
      }
    }
    for (std::int64_t t = 0; awkward && t < tokens;
         t += 2) {  // no bits that are any, which are infinite or NaN in most rows of many experts
      for (int e = 0; e < experts; ++e) {
        float& logit = logits[static_cast<std::size_t>(t * experts + e)];
        if (!(std::fabs(logit) < 1e3f) && t % 4 == 0) logit = random() % 4 == 0 ? 0.25f : -250.0f;
      }
    }
    for (std::int64_t i = 0; i < tokens * k; ++i) {
      grad_weights.push_back(normal(random));
      const auto id = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(experts + 3)) - 2;
      replay.push_back(i / k % 3 == 2 ? -1 : id);  // every third token, if replayed, has no expert
    }
    for (int e = 0; e < experts; ++e) bias.push_back(0.1f * normal(random));
    for (std::int64_t t = 0; t < tokens; ++t) {
      active.push_back(random() % 5 != 0);
      replayed.push_back(random() % 2 == 0);
    }
    if (tokens % 4 == 0 && tokens > 0) sequences = 4;
  }
};

struct StepOutputs {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> load;
  std::vector<std::byte> saved;
  Bytes grad_logits;
  std::vector<float> bias;
  std::vector<float> losses;
  mb::Status status;
};

/// Keys without a bias are scores, which kernels make use of.
template <class Router>
bool has_bias(const StepInputs& in) {
  return mb::BalancerTraits<decltype(Router::balancer)>::biases > 0 || (!in.usual && in.tokens % 2 == 1);
}

/// Values as memory has them, with the bits of those that need no rounding.
inline Bytes stored(mb::DataType type, const std::vector<float>& values) {
  Bytes bytes;
  bytes.reserve(values.size() * mb::size_of(type));
  for (const float value : values) {
    if (type == mb::DataType::float32)
      append(bytes, value);
    else
      append(bytes, type == mb::DataType::bfloat16 ? bfloat16_bits(value) : float16_bits(value));
  }
  return bytes;
}

template <class Router, class Place>
StepOutputs run_step(const Router& router, const StepInputs& in, const Place& place) {
  const std::int64_t t = in.tokens;
  const int e = in.experts;
  StepOutputs out;
  const std::int64_t id_stride = in.usual ? in.top_k : in.top_k + 1;
  out.experts.assign(static_cast<std::size_t>(t * id_stride), 77);
  out.weights.assign(static_cast<std::size_t>(t * in.top_k), 7.0f);
  out.counts.assign(static_cast<std::size_t>(e), 5);
  out.load.assign(static_cast<std::size_t>(e), 3);
  out.saved.assign(router.saved_bytes({t, e, in.sequences}), std::byte{0xee});
  Bytes logit_bytes = stored(in.type, in.logits);
  out.grad_logits.assign(logit_bytes.size(), 0x70);
  out.bias = in.bias;
  out.losses.assign(Router::loss_count + 1, 0.0f);
  const mb::Sequences sequences{
      .count = in.sequences,
      .layout = in.usual ? mb::Sequences::Layout::sequence_major : mb::Sequences::Layout::token_major};
  const std::uint8_t* active = in.usual && !in.masked ? nullptr : in.active.data();
  const mb::SavedRef saved{out.saved.data(), out.saved.size()};
  const mb::ConstAnyMatrix logits(logit_bytes.data(), in.type, t, e, e);
  mb::ReplayRef replay;
  if constexpr (mb::is_replaying<decltype(router.top_k)>) replay = {{in.replay.data(), t, in.top_k}, in.replayed.data()};
  router.forward(mb::ForwardArgs{.logits = logits,
                                 .experts = {out.experts.data(), t, in.top_k, id_stride},
                                 .weights = mb::MatrixView<float>(out.weights.data(), t, in.top_k),
                                 .counts = out.counts.data(),
                                 .bias = has_bias<Router>(in) ? mb::BiasRef{out.bias.data(), e} : mb::BiasRef{},
                                 .load = {out.load.data(), e},
                                 .saved = saved,
                                 .active = active,
                                 .sequences = sequences,
                                 .replay = replay,
                                 .status = &out.status},
                 {}, place);
  router.backward(mb::BackwardArgs{.logits = logits,
                                   .experts = mb::MatrixView<std::int32_t>(out.experts.data(), t, in.top_k, id_stride),
                                   .grad_weights = mb::MatrixView<const float>(in.grad_weights.data(), t, in.top_k),
                                   .grad_logits = mb::AnyMatrix(out.grad_logits.data(), in.type, t, e, e),
                                   .saved = saved,
                                   .active = active,
                                   .sequences = sequences,
                                   .loss_scale = 0.7f},
                  {}, place);
  if constexpr (Router::loss_count > 0) {
    router.loss(mb::LossArgs{.saved = saved,
                             .experts = e,
                             .sequences = sequences,
                             .value = out.losses.data(),
                             .part_values = out.losses.data() + 1},
                {}, place);
  }
  constexpr int memory = Router::bias_memory;
  for (int n = 0; n < memory; ++n) out.bias.insert(out.bias.end(), in.bias.rbegin(), in.bias.rend());
  router.update(mb::BiasRef(out.bias.data(), e).with_memory(memory), {out.load.data(), e}, {}, place);
  return out;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline bool same_bits(const StepOutputs& a, const StepOutputs& b) {
  return same_bits(a.experts, b.experts) && same_bits(a.weights, b.weights) && same_bits(a.counts, b.counts) &&
         same_bits(a.load, b.load) && same_bits(a.saved, b.saved) && same_bits(a.grad_logits, b.grad_logits) &&
         same_bits(a.bias, b.bias) && same_bits(a.losses, b.losses) &&
         a.status.non_finite_tokens == b.status.non_finite_tokens && a.status.invalid_experts == b.status.invalid_experts;
}

inline void check_same(const StepOutputs& host, const StepOutputs& fibers) {
  CHECK(same_bits(host.experts, fibers.experts));
  CHECK(same_bits(host.weights, fibers.weights));
  CHECK(same_bits(host.counts, fibers.counts));
  CHECK(same_bits(host.load, fibers.load));
  CHECK(same_bits(host.saved, fibers.saved));
  CHECK(same_bits(host.grad_logits, fibers.grad_logits));
  CHECK(same_bits(host.bias, fibers.bias));
  CHECK(same_bits(host.losses, fibers.losses));
  CHECK(host.status.non_finite_tokens == fibers.status.non_finite_tokens);
  CHECK(host.status.invalid_experts == fibers.status.invalid_experts);
}

/// Kernels for usual calls that a step should run: forward's and backward's, where quads of experts are whole and the tier has them.
template <class Router>
int usual_kernels_of(const StepInputs& in) {
  using Forward = mb::ForwardProblem<decltype(Router::scoring), decltype(Router::top_k), decltype(Router::balancer)>;
  using Backward = mb::BackwardProblem<decltype(Router::scoring), decltype(Router::top_k), decltype(Router::balancer)>;
  int kernels = 0;
  mb::with_tier(in.experts, [&](auto tier) {
    constexpr int index = decltype(tier)::value;
    if (!in.usual || in.experts % 4 != 0) return;
    kernels += mb::has_usual_kernel<index, Forward> && (mb::usual_kernel_masks<index, Forward> || !in.masked) ? 1 : 0;
    kernels += mb::has_usual_kernel<index, Backward> ? 1 : 0;
  });
  return kernels;
}

/// Whether a step ran them. Without tokens either will do.
template <class Router>
bool has_run_usual(const StepInputs& in, int kernels) {
  return kernels == usual_kernels_of<Router>(in) || in.tokens == 0;
}

/// On fibers and on the CPU.
template <class Router>
void check_step(const Router& router, const StepInputs& inputs, int multiprocessors) {
  CAPTURE(inputs.experts);
  CAPTURE(inputs.tokens);
  CAPTURE(inputs.usual);
  CAPTURE(static_cast<int>(inputs.type));
  const StepOutputs host = run_step(router, inputs, mb::Host{.threads = 1});
  const int usual_before = usual_kernels;
  const auto seed = static_cast<std::uint64_t>(inputs.experts + inputs.tokens);
  check_same(host, run_step(router, inputs, Fibers{.seed = seed, .multiprocessors = multiprocessors}));
  CHECK(has_run_usual<Router>(inputs, usual_kernels - usual_before));
}

/// Fibers, in several orders, against the CPU engine: calls with everything that a caller may choose, and usual ones.
template <class Router>
void check_same_as_host(const Router& router, const std::vector<int>& expert_counts) {
  for (const int experts : expert_counts) {
    for (const std::int64_t tokens : {0, 1, 12, 13, 36}) {
      for (const bool awkward : {false, true}) {
        CAPTURE(awkward);
        StepInputs inputs(static_cast<std::uint64_t>(experts) * 100 + static_cast<std::uint64_t>(tokens), tokens, experts,
                          Router::k, awkward);
        // Two blocks an SM: the larger device clears in all blocks of a small grid, the smaller one more often before the launch.
        check_step(router, inputs, awkward ? 4 : 2);
        for (const mb::DataType type : {mb::DataType::bfloat16, mb::DataType::float16}) {
          inputs.type = type;
          if (tokens == 13) check_step(router, inputs, 2);
        }
        inputs.type = mb::DataType::float32;
        inputs.usual = true;
        inputs.masked = awkward;
        check_step(router, inputs, awkward ? 4 : 1);  // so few that lanes go round their loop more than once
      }
    }
  }
}

}  // namespace testing
