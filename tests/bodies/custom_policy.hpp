// A user's own policies, outside the library's namespace, in place of the library's.
#pragma once

#include "everything.hpp"

#include "../users_policies.hpp"

namespace testing {

TEST_CASE_TEMPLATE_DEFINE("a user's own scoring routes and has its gradient", Engine, custom_scoring) {
  agrees(Engine(), users::Bell{}, mb::TopK<4>{}, normal_inputs(101, 40, 60, 4));
  Inputs inputs = full_inputs(102, 40, 60, 4);
  agrees(Engine(), users::Bell{}, mb::TopK<4>{.renormalise = false, .scaling_factor = 0.5f}, inputs, everything());
  agrees(Engine(), users::Bell{}, mb::GroupLimitedTopK<4>{.groups = 6, .groups_kept = 2}, inputs, everything());
}

TEST_CASE_TEMPLATE_DEFINE("a user's own scoring that gives NaN ranks there last and never yields a weight", Engine,
                          custom_nan) {
  Inputs inputs;
  inputs.tokens = 2;
  inputs.experts = 6;
  inputs.logits = {-1, 2, -3, 1, 4, 3, -1, 2, -3, -1, 4, 3};
  inputs.backward = false;
  const Outcome outcome = train(Engine(), mb::Router{users::NanBelowZero{}, mb::TopK<4>{}}, inputs);
  CHECK(outcome.experts == std::vector<std::int32_t>{4, 5, 1, 3, 4, 5, 1, 0});
  CHECK(outcome.weights[0] == doctest::Approx(0.4).epsilon(1e-6));
  for (std::size_t k = 4; k < 8; ++k) CHECK(outcome.weights[k] == 0);
  CHECK(outcome.status.non_finite_tokens == 1);
}

TEST_CASE_TEMPLATE_DEFINE("a user's own loss: micro-batch, sequence and global-batch scope", Engine, custom_losses) {
  Inputs inputs = full_inputs(103, 40, 24, 4);
  inputs.sequences = 4;
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, users::SquaredShare{.coefficient = 0.5f});
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, users::SquaredShareOfSequence{});
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, users::SquaredShareOfGlobalBatch{.coefficient = 0.5f});
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, users::LinearZLoss{});
}

TEST_CASE_TEMPLATE_DEFINE("contract 8: mean probabilities are summed in units of 2^-32", Engine, custom_resolution) {
  for (int expert = 0; expert < 4; ++expert) {
    CAPTURE(expert);
    Inputs inputs;
    inputs.tokens = 1;
    inputs.experts = 4;
    inputs.logits = {0, -12, -16, -19};
    inputs.backward = false;
    const Outcome outcome =
        train(Engine(), mb::Router{mb::Softmax{}, mb::TopK<4>{}, users::MeanProbability{.expert = expert}}, inputs);
    const double want =
        std::exp(inputs.logits[static_cast<std::size_t>(expert)]) / (1 + std::exp(-12) + std::exp(-16) + std::exp(-19));
    CHECK(std::abs(static_cast<double>(outcome.loss) - want) <= 0x1p-33 + 1e-6 * want);
  }
}

TEST_CASE_TEMPLATE_DEFINE("a user's own balancers combine with the library's", Engine, custom_combination) {
  Inputs inputs = full_inputs(104, 40, 24, 4);
  inputs.sequences = 4;
  agrees(Engine(), users::Bell{}, mb::TopK<4>{}, inputs,
         mb::Combine{users::SquaredShareOfSequence{}, mb::GlobalBatchLoss{.coefficient = 0.3f}, users::LinearZLoss{},
                     users::ProportionalBias{}, users::SquaredShare{}});
}

TEST_CASE_TEMPLATE_DEFINE("a user's own bias rule moves the bias", Engine, custom_bias) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, users::ProportionalBias{.update_rate = 0.5f}};
  typename Engine::template Array<float> bias(engine, {0.0f, 1.0f, 2.0f, 3.0f, 0.0f, 0.0f, 0.0f, 0.0f});
  typename Engine::template Array<std::int64_t> load(engine, {4, 2, 1, 1, 8, 0, 0, 0});
  router.update(mb::BiasRef{bias.data(), 4, 2}, mb::LoadRef{load.data(), 4, 2}, {}, engine.place());
  engine.wait();
  CHECK(bias.values() == std::vector<float>{-0.5f, 1.0f, 2.25f, 3.25f, -1.5f, 0.5f, 0.5f, 0.5f});
  CHECK(load.values() == std::vector<std::int64_t>(8, 0));
}

TEST_CASE_TEMPLATE_DEFINE("a user's own bias rule keeps what it likes from step to step", Engine, custom_bias_memory) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::Combine{mb::AuxLoss{}, users::TwoStepBias{.update_rate = 0.5f}}};
  typename Engine::template Array<float> bias(engine, std::vector<float>(12));
  const mb::BiasRef bias_ref = mb::BiasRef(bias.data(), 4).with_memory(router.bias_memory);
  const auto step = [&](const std::vector<std::int64_t>& counts) {
    typename Engine::template Array<std::int64_t> load(engine, counts);
    router.update(bias_ref, mb::LoadRef{load.data(), 4}, {}, engine.place());
    engine.wait();
  };
  step({4, 2, 1, 1});
  CHECK(bias.values() == std::vector<float>{-0.5f, 0, 0.25f, 0.25f, 2, 1, 0.5f, 0.5f, 1, 1, 1, 1});
  step({8, 0, 0, 0});
  CHECK(bias.values() == std::vector<float>{-1.5f, 0.25f, 0.625f, 0.625f, 4, 0, 0, 0, 2, 2, 2, 2});
}

}  // namespace testing
