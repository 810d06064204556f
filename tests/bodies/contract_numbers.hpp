// CONTRACT.md, "Numbers": lines 7, 8, 9, 10 and 16 ("Gradients", line 11, is gradient.hpp).
#pragma once

#include "everything.hpp"

#include "../engine_host.hpp"

#include <numeric>

namespace testing {

/// Calls f(scoring, top_k) for a few routers that between them walk every path.
template <class Function>
void for_some_routers(Function&& f) {
  f(mb::Sigmoid{}, mb::TopK<4>{.scaling_factor = 2.5f});
  f(mb::Softmax{}, mb::GroupLimitedTopK<6>{.groups = 8, .groups_kept = 3, .renormalise = false});
}

/// As many tokens as the engine can take in reasonable time.
template <class Engine>
constexpr std::int64_t many(std::int64_t tokens) {
  if constexpr (requires { Engine::share_of_tokens; })
    return tokens / Engine::share_of_tokens;
  else
    return tokens;
}

TEST_CASE_TEMPLATE_DEFINE("contract 7: bfloat16 and float16 logits give the bits that the same values in float32 give",
                          Engine, contract_7) {
  const Engine engine;
  for (const mb::DataType type : {mb::DataType::bfloat16, mb::DataType::float16}) {
    CAPTURE(static_cast<int>(type));
    for_some_routers([&](const auto& scoring, const auto& top_k) {
      const mb::Router router{scoring, top_k, everything()};
      for (const int experts : {64, 256, 1016}) {
        Inputs inputs = full_inputs(21, 24, experts, decltype(router)::k);
        inputs.logits = rounded_to(type, inputs.logits);
        inputs.grad_weights = rounded_to(type, inputs.grad_weights);
        const Outcome in_float32 = train(engine, router, inputs);
        const Outcome outcome =
            train(engine, router, with_types(inputs, type, mb::DataType::float32, mb::DataType::float32));
        CHECK(same_bits(in_float32, outcome));

        // Weights and gradients in the logits' type are the float32 ones rounded once.
        const Outcome narrow = train(engine, router, with_types(inputs, type, type, type));
        CHECK(narrow.experts == in_float32.experts);
        CHECK(narrow.weights_bytes == encoded(type, in_float32.weights));
        CHECK(narrow.grad_bytes == encoded(type, in_float32.grad_logits));
        CHECK(narrow.loss == in_float32.loss);
      }
    });
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 7: 16-bit logits of any bits keep ids distinct and in range", Engine, contract_7_bits) {
  Random random(22);
  for (const mb::DataType type : {mb::DataType::bfloat16, mb::DataType::float16}) {
    Inputs inputs = full_inputs(23, 40, 60, 4);
    Bytes bytes;
    for (std::size_t i = 0; i < inputs.logits.size(); ++i) append(bytes, static_cast<std::uint16_t>(random.bits()));
    inputs.logits = decoded(type, bytes);
    inputs.logits_type = type;
    const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{.scaling_factor = 2.5f}, everything()};
    const Outcome narrow = train(Engine(), router, inputs);
    inputs.logits_type = mb::DataType::float32;
    CHECK(same_bits(narrow, train(Engine(), router, inputs)));
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 8: the same inputs give the same bits, run to run", Engine, contract_8) {
  for_some_routers([&](const auto& scoring, const auto& top_k) {
    const mb::Router router{scoring, top_k, everything()};
    const Inputs inputs = full_inputs(24, 100, 256, decltype(router)::k);
    const Outcome first = train(Engine(), router, inputs);
    for (int repeat = 0; repeat < 3; ++repeat) CHECK(same_bits(first, train(Engine(), router, inputs)));
  });
}

TEST_CASE_TEMPLATE_DEFINE("contract 8: the order of tokens does not change counts, losses or load", Engine,
                          contract_8_order) {
  for_some_routers([&](const auto& scoring, const auto& top_k) {
    const mb::Router router{scoring, top_k, everything()};
    constexpr int k = decltype(router)::k;
    Inputs inputs = full_inputs(25, 300, 64, k);
    const Outcome forwards = train(Engine(), router, inputs);
    Inputs reversed = inputs;
    for (std::size_t t = 0; t < 300; ++t) {
      reversed.active[t] = inputs.active[299 - t];
      for (std::size_t e = 0; e < 64; ++e) reversed.logits[t * 64 + e] = inputs.logits[(299 - t) * 64 + e];
      for (std::size_t i = 0; i < k; ++i) reversed.grad_weights[t * k + i] = inputs.grad_weights[(299 - t) * k + i];
    }
    const Outcome backwards = train(Engine(), router, reversed);
    CHECK(forwards.counts == backwards.counts);
    CHECK(forwards.load == backwards.load);
    CHECK(forwards.loss == backwards.loss);
    CHECK(forwards.parts == backwards.parts);
    bool same_gradients = true;
    for (std::size_t t = 0; t < 300; ++t) {
      for (std::size_t e = 0; e < 64; ++e) {
        same_gradients = same_gradients && forwards.grad_logits[t * 64 + e] == backwards.grad_logits[(299 - t) * 64 + e];
      }
    }
    CHECK(same_gradients);
  });
}

/// Not for the CPU against itself: instantiated for the other engines.
template <class Engine, class Router>
void check_same_as_cpu(const Engine& engine, const Router& router) {
  for (const int experts : {16, 64, 72, 128, 160, 256, 384, 512, 896, 1024, 2048}) {
    CAPTURE(experts);
    for (const double spread : {1.0, 30.0}) {
      Inputs inputs = full_inputs(26, many<Engine>(200), experts, Router::k);
      for (double& logit : inputs.logits) logit = static_cast<float>(logit * spread);
      CHECK(same_bits(train(engine, router, inputs), train(HostEngine{}, router, inputs)));
    }
  }
  Random random(27);
  Inputs inputs = full_inputs(28, many<Engine>(500), 64, Router::k);
  const std::vector<float> bits = random.any_floats(inputs.logits.size());
  inputs.logits.assign(bits.begin(), bits.end());
  CHECK(same_bits(train(engine, router, inputs), train(HostEngine{}, router, inputs)));
}

TEST_CASE_TEMPLATE_DEFINE("contract 9: the CPU gives the same bits", Engine, contract_9) {
  for_some_routers([&](const auto& scoring, const auto& top_k) {
    check_same_as_cpu(Engine(), mb::Router{scoring, top_k, everything()});
  });
}

TEST_CASE_TEMPLATE_DEFINE("contract 9: the CPU gives the same bits with every other scoring", Engine, contract_9_scorings) {
  check_same_as_cpu(Engine(), mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<8>{}, everything()});
  check_same_as_cpu(Engine(), mb::Router{mb::SqrtSoftplus{}, mb::TopK<6>{}, everything()});
  check_same_as_cpu(Engine(), mb::Router{mb::Identity{}, mb::TopK<2>{}, everything()});
}

TEST_CASE_TEMPLATE_DEFINE("contract 10: counts add up in int64 and do not wrap", Engine, contract_10) {
  constexpr std::int64_t tokens = many<Engine>(70000);
  Inputs inputs = full_inputs(29, tokens, 4, 4);
  inputs.load = {std::int64_t{1} << 31, (std::int64_t{1} << 32) - 1, std::int64_t{1} << 40, 0};
  const std::vector<std::int64_t> before = inputs.load;
  inputs.active.clear();
  const Outcome outcome =
      train(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{.scaling_factor = 2.5f}, everything()}, inputs);
  for (std::size_t e = 0; e < 4; ++e) {
    CHECK(outcome.counts[e] == tokens);
    CHECK(outcome.load[e] == before[e] + tokens);
  }
}

TEST_CASE_TEMPLATE_DEFINE("contract 16: bias is float32 whatever the logits' type", Engine, contract_16) {
  // Equal logits: only the bias decides, by steps that 16-bit types could not hold beside 7.
  Inputs inputs = full_inputs(30, 6, 64, 4);
  inputs.active.clear();
  inputs.logits.assign(inputs.logits.size(), 0.5);
  for (std::size_t e = 0; e < 64; ++e) inputs.bias[e] = 7.0f + 1e-6f * static_cast<float>((e * 37) % 64);
  for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16}) {
    inputs.logits_type = type;
    const Outcome outcome =
        train(Engine(), mb::Router{mb::Sigmoid{}, mb::TopK<4>{.scaling_factor = 2.5f}, everything()}, inputs);
    std::vector<int> order(64);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return inputs.bias[static_cast<std::size_t>(a)] + 0.62245935f > inputs.bias[static_cast<std::size_t>(b)] + 0.62245935f;
    });
    CHECK(std::equal(order.begin(), order.begin() + 4, outcome.experts.begin()));
    CHECK(outcome.bias == inputs.bias);
  }
}

}  // namespace testing
