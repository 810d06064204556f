// Every kind of router for tokens side by side (side_by_side.hpp).
#include "side_by_side.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

using namespace side_by_side;

namespace {

/// May return what is not finite for logits that are, and -0.
struct Reciprocal {
  [[nodiscard]] MOEB_HOST_DEVICE float operator()(float logit) const { return logit > 3.0f ? -0.0f : 1.0f / (logit + 2.0f); }
  [[nodiscard]] MOEB_HOST_DEVICE float derivative(float /*logit*/, float score) const { return -score * score; }
};

/// A class that is derived from a softmax and scores otherwise.
struct HalfSoftmax : mb::Softmax {
  static constexpr bool normalised = false;
  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE mb::SoftmaxRow<Real> prepare(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                                           mb::Slots<Real, LayoutT>& scores) const {
    const mb::SoftmaxRow<Real> row = mb::Softmax::prepare(tile, layout, logits, scores);
    mb::for_each_slot(layout, [&](int slot) MOEB_LAMBDA { scores[slot] = mb::mul(scores[slot], Real(0.5)); });
    return row;
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real score(Real logit, const mb::SoftmaxRow<Real>& row) const {
    return mb::mul(row.probability(logit), Real(0.5));
  }
};

/// Row by row and elementwise: the row counts.
struct Both : mb::Softmax {
  [[nodiscard]] MOEB_HOST_DEVICE float operator()(float logit) const { return logit; }
  [[nodiscard]] MOEB_HOST_DEVICE float derivative(float /*logit*/, float /*score*/) const { return 1.0f; }
};

/// Says that it is normalised, and is not even finite.
template <bool NonNegative>
struct Careless {
  static constexpr bool normalised = true;
  static constexpr bool non_negative = NonNegative;
  [[nodiscard]] MOEB_HOST_DEVICE float operator()(float logit) const {
    constexpr float infinite = std::numeric_limits<float>::infinity();
    return logit < -1.0f ? (NonNegative ? infinite - infinite : -infinite) : 0.25f / mb::fma(logit, logit, 1.0f);
  }
  [[nodiscard]] MOEB_HOST_DEVICE float derivative(float logit, float score) const { return logit * score; }
};

/// Counts the logits that are NaN: padding, which a row has and tokens side by side do not.
struct Counting {
  std::int64_t* nan_logits;
  [[nodiscard]] MOEB_HOST_DEVICE float operator()(float logit) const {
    *nan_logits += logit != logit ? 1 : 0;
    return logit;
  }
  [[nodiscard]] MOEB_HOST_DEVICE float derivative(float /*logit*/, float /*score*/) const { return 1.0f; }
};

}  // namespace

TEST_CASE("softmax, every count of experts, every kind of logits") {
  check_all(mb::Router{mb::Softmax{}, mb::TopK<1>{}, mb::Combine{mb::AuxLoss{}, mb::ZLoss{}}});
  check_all(mb::Router{mb::Softmax{}, mb::TopK<3>{.renormalise = false, .scaling_factor = 2.5f}});
  check_all(mb::Router{mb::Softmax{}, mb::TopK<12>{}, mb::Combine{mb::LossFreeBias{}, mb::AuxLoss{}}}, true);
}

TEST_CASE("softmax over the selected") {
  check_all(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<4>{}});
  check_all(
      mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<2>{}, mb::Combine{mb::LossFreeBias{}, mb::AuxLoss{}, mb::ZLoss{}}},
      true);
}

TEST_CASE("softmax over the selected, of whom fewer than K are kept") {
  check_all(mb::Router{mb::SoftmaxOverSelected{}, mb::TopP<4>{.p = 0.6f}, mb::AuxLoss{}});
  check_all(mb::Router{mb::SoftmaxOverSelected{}, mb::TopP<3>{.p = 0.5f, .scaling_factor = 2.5f}, mb::LossFreeBias{}}, true);
  check_all(mb::Router{mb::SoftmaxOverSelected{}, mb::Threshold<5>{}, mb::LossFreeBias{}}, true);
}

TEST_CASE("elementwise scores, a user's among them") {
  check_all(mb::Router{mb::Sigmoid{}, mb::TopK<8>{}, mb::LossFreeBias{}}, true);
  check_all(mb::Router{mb::SqrtSoftplus{}, mb::TopK<6>{}, mb::Combine{mb::LossFreeBias{}, mb::AuxLoss{}}}, true);
  check_all(mb::Router{mb::Identity{}, mb::TopK<2>{}, mb::AuxLoss{}});
  check_all(mb::Router{Reciprocal{}, mb::TopK<3>{}, mb::AuxLoss{}});
  check_all(mb::Router{Careless<true>{}, mb::TopK<2>{}, mb::AuxLoss{}});
  check_all(mb::Router{Careless<false>{}, mb::TopK<2>{}, mb::AuxLoss{}});
}

TEST_CASE("a scoring that is elementwise and of rows is one of rows") {
  check(mb::Router{Both{}, mb::TopK<2>{}}, make_inputs(Kind::normal, 8, 2, 5));
}

TEST_CASE("the sign of a zero that padding decides") {
  const mb::Router router{mb::Identity{}, mb::TopK<1>{}, mb::AuxLoss{.coefficient = 1}};
  for (const int experts : {3, 5, 8, 32, 33, 64}) {
    testing::Inputs inputs = make_inputs(Kind::negative, experts, 1, 6);
    inputs.loss_scale = -1.5e-44f;
    check(router, inputs);
  }
}

TEST_CASE("many chosen") {
  check_all(mb::Router{mb::Sigmoid{}, mb::TopK<20>{}, mb::LossFreeBias{}}, true);
}

#if defined(__x86_64__)
TEST_CASE("16 tokens go side by side, fewer and those of baseline instructions do not") {
  std::int64_t nan_logits = 0;
  const mb::Router router{Counting{&nan_logits}, mb::TopK<2>{}};
  const auto counted = [&](std::int64_t count, mb::InstructionSet instructions) {
    testing::Inputs inputs = testing::normal_inputs(1, count, 8, 2);
    inputs.backward = false;
    nan_logits = 0;
    testing::train(testing::HostEngine{.threads = 1, .instructions = instructions}, router, inputs);
    return nan_logits;
  };
  CHECK(counted(15, mb::InstructionSet::automatic) > 0);
  CHECK(counted(32, mb::InstructionSet::baseline) > 0);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    CHECK(counted(32, mb::InstructionSet::automatic) == 0);
}
#endif

TEST_CASE("a scoring that is derived from softmax keeps its own scores") {
  const mb::Router router{HalfSoftmax{}, mb::TopK<2>{.renormalise = false}};
  const testing::Inputs inputs = make_inputs(Kind::normal, 8, 2, 5);
  check(router, inputs);
  const testing::HostEngine engine{};
  const testing::Outcome half = testing::train(engine, router, inputs);
  const testing::Outcome whole =
      testing::train(engine, mb::Router{mb::Softmax{}, mb::TopK<2>{.renormalise = false}}, inputs);
  REQUIRE(half.weights.size() == whole.weights.size());
  for (std::size_t i = 0; i < half.weights.size(); ++i) CHECK(half.weights[i] == whole.weights[i] / 2);
}

TEST_CASE("empty slots, and tokens whose slots are all empty: replayed ids") {
  const mb::Router replay{mb::Sigmoid{}, mb::Replay<mb::TopK<3>>{}, mb::LossFreeBias{}};
  const mb::Router with_loss{mb::Softmax{}, mb::Replay<mb::TopK<3>>{}, mb::AuxLoss{}};
  testing::Random random(9);
  for (const int experts : {5, 64, 65, 200}) {
    for (const double rate : {0.1, 0.5}) {
      testing::Inputs inputs = make_inputs(Kind::normal, experts, 3, 4);
      inputs.load = testing::zero_load(experts);
      inputs.bias = testing::normal_bias(1, experts);
      inputs.replay_experts = testing::replayed_ids(7, tokens, experts, 3);
      for (std::int32_t& id : inputs.replay_experts)
        id = random.chance(rate) ? -1 : random.chance(0.1) ? 2 : id;  // some twice
      for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16}) {
        inputs = testing::with_types(inputs, type, mb::DataType::float32, type);
        check(replay, inputs);
        check(with_loss, inputs);
      }
    }
  }
}

TEST_CASE("sequences of 41 tokens, one after the other and interleaved, and of 13, which are too short") {
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::SequenceLoss{}};
  for (const int experts : {6, 64}) {
    for (const std::int64_t sequences : {13, 41}) {
      testing::Inputs inputs = make_inputs(Kind::rare_faults, experts, 2, 8);
      inputs.sequences = sequences;
      check(router, inputs);
      inputs.layout = mb::Sequences::Layout::token_major;
      check(router, inputs);
    }
  }
}

TEST_CASE("types and rows that are apart") {
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{}};
  const mb::Router only_chosen{mb::SoftmaxOverSelected{}, mb::TopK<2>{}};
  for (const mb::DataType logits : {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16}) {
    for (const mb::DataType weights : {mb::DataType::float32, logits}) {
      for (const int experts : {2, 7, 8, 33, 64}) {
        testing::Inputs inputs = testing::with_types(make_inputs(Kind::normal, experts, 2, 3), logits, weights, logits);
        for (const std::int64_t padding : {0, 3}) {
          inputs.row_padding = padding;
          check(router, inputs);
          check(only_chosen, inputs);
        }
      }
    }
  }
}
