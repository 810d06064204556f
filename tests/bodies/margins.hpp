// The pass that counts margins, alone: ids come from the CPU, so that no routing kernel has to be compiled, and every tier has its turn.
#pragma once

#include "../engine_host.hpp"
#include "../make_inputs.hpp"
#include "../margins.hpp"

#include <cmath>
#include <limits>

namespace testing {

/// A rule of the user's whose bins are as wide as they are far from 0: finer near the threshold.
struct BinsByRoot {
  int bins = 50;
  [[nodiscard]] MOEB_INLINE int bin_of(float margin) const {
    const float place = mb::div(margin, mb::add(1.0f, margin < 0.0f ? -margin : margin));  // -1 to 1, NaN for -infinity
    return place > -1.0f ? static_cast<int>(mb::mul(mb::add(place, 1.0f), 25.0f)) : -1;    // 50 and -1 are outside
  }
  [[nodiscard]] MOEB_INLINE float next_bias(float bias, int expert, const mb::LoadView&,
                                            const mb::MarginView& margins) const {
    return mb::sub(bias, static_cast<float>(margins.position(expert, margins.tokens() / 2).bin - 25));
  }
};
/// A scoring of the user's that makes NaN of numbers.
struct NanBelowZero {
  [[nodiscard]] MOEB_INLINE float operator()(float logit) const { return logit < 0.0f ? mb::quiet_nan<float> : logit; }
  [[nodiscard]] MOEB_INLINE float derivative(float /*logit*/, float /*score*/) const { return 1.0f; }
};
inline oracle::Scoring oracle_of(const NanBelowZero& /*scoring*/) {
  return oracle::elementwise([](double logit) { return logit < 0 ? std::nan("") : logit; }, [](double) { return 1.0; });
}
static_assert(mb::BiasFromMargins<BinsByRoot> && mb::BiasBalancer<BinsByRoot> && !mb::MemorylessBias<BinsByRoot>);

struct alignas(16) Sixteen {
  std::uint64_t words[2];
  bool operator==(const Sixteen&) const = default;
};

/// The histogram [E, bins] as a call adds to it, where each cell had 7; what lies around it stays as it was, and what lies around the memory that it has on a GPU.
template <class Real, class Engine, class Scoring, class TopKT, class Balancer>
std::vector<std::int64_t> histogram_of(const Engine& engine, const Scoring& scoring, const TopKT& top_k,
                                       const Balancer& balancer, const Inputs& inputs,
                                       const std::vector<std::int32_t>& ids) {
  constexpr std::int64_t before = 7;
  constexpr std::size_t around = 40;
  const auto cell_count = static_cast<std::size_t>(inputs.experts) * static_cast<std::size_t>(mb::bins_of(balancer));
  const std::size_t element = mb::size_of(inputs.logits_type), padding = static_cast<std::size_t>(inputs.row_padding);
  typename Engine::template Array<std::uint8_t> logits(
      engine, with_row_padding(encoded(inputs.logits_type, inputs.logits),
                               static_cast<std::size_t>(inputs.experts) * element, padding * element));
  typename Engine::template Array<std::int32_t> experts_of_token(engine, ids);
  typename Engine::template Array<float> bias(engine, inputs.bias);
  typename Engine::template Array<std::uint8_t> active(engine, inputs.active);
  typename Engine::template Array<std::int64_t> token_count(engine, {inputs.tokens_on_device});
  typename Engine::template Array<std::int64_t> cells(engine, std::vector<std::int64_t>(cell_count + 2 * around, before));
  constexpr std::size_t guard = 4;  // of 16 bytes each
  const auto scratch_size = mb::TokenThresholds<Scoring>::bytes(inputs.tokens) / sizeof(Sixteen);
  const std::vector<Sixteen> untouched_scratch(scratch_size + 2 * guard, Sixteen{0x4d4d4d4d4d4d4d4d, 0x4d4d4d4d4d4d4d4d});
  typename Engine::template Array<Sixteen> scratch(engine, untouched_scratch);
  constexpr bool on_host = mb::Engine<std::remove_cv_t<decltype(engine.place())>>::serves_float64;
  const mb::ConstAnyMatrix view(logits.data(), inputs.logits_type, inputs.tokens, inputs.experts,
                                inputs.experts + inputs.row_padding);
  const mb::MarginProblem<Scoring, TopKT, Balancer> problem{
      scoring,
      top_k,
      balancer,
      view,
      mb::MatrixView<const std::int32_t>(experts_of_token.data(), inputs.tokens, TopKT::k),
      inputs.bias.empty() ? nullptr : bias.data(),
      cells.data() + around,
      mb::rows_hold_quads(view),
      inputs.active.empty() ? nullptr : active.data(),
      inputs.tokens_on_device < 0 ? nullptr : token_count.data(),
      on_host ? mb::TokenThresholds<Scoring>{} : mb::TokenThresholds<Scoring>::of(scratch.data() + guard, inputs.tokens)};
  const auto place = engine.place();
  mb::Engine<std::remove_cv_t<decltype(place)>>::template count_margins<Real>(problem, place);
  engine.wait();
  const std::vector<std::int64_t> after = cells.values();
  std::vector<std::int64_t> own;
  bool others_stay = true;
  for (std::size_t i = 0; i < after.size(); ++i) {
    if (i >= around && i < around + cell_count)
      own.push_back(after[i] - before);
    else
      others_stay = others_stay && after[i] == before;
  }
  const std::vector<Sixteen> scratch_after = scratch.values();
  for (std::size_t i = 0; i < guard; ++i) {
    others_stay = others_stay && scratch_after[i] == untouched_scratch[i] &&
                  scratch_after[guard + scratch_size + i] == untouched_scratch[i];
  }
  CHECK(others_stay);
  return own;
}

/// Logits among which are ties, infinities, NaN and values that float32 hardly holds.
inline Inputs awkward_inputs(std::uint64_t seed, std::int64_t tokens, int experts) {
  Inputs inputs = normal_inputs(seed, tokens, experts, 1, 0.5);
  Random random(seed + 1);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const double odd[] = {infinity, std::nan(""), -infinity, 0.5, 0.5, -0.0, 0.0, -200.0, 300.0, 1e-30, 3e38};
  const std::vector<std::uint8_t> is_odd = random.flags(inputs.logits.size(), 0.3);
  for (std::size_t i = 0; i < inputs.logits.size(); ++i) {
    if (is_odd[i] == 0) continue;
    const int first = i / static_cast<std::size_t>(experts) % 4 == 3 ? 0 : 2;  // in most rows neither +infinity nor NaN
    const int last = static_cast<int>(std::size(odd)) - 1;
    inputs.logits[i] = static_cast<double>(static_cast<float>(odd[random.integer(first, last)]));
  }
  return inputs;
}

/// Test bodies with many tokens have this share of them on an engine that is slow.
template <class Engine>
constexpr std::int64_t shares_of_tokens() {
  if constexpr (requires { Engine::share_of_tokens; })
    return Engine::share_of_tokens;
  else
    return 1;
}

/// What forward chooses, as the pass gets it.
template <class Scoring, class TopKT>
std::vector<std::int32_t> ids_of(const Scoring& scoring, const TopKT& top_k, const Inputs& inputs) {
  return route(HostEngine{}, mb::Router{scoring, top_k}, inputs).experts;
}

/// On the engine against the oracle and, bit for bit, against the CPU.
template <class Real = float, class Engine, class Scoring, class TopKT, class Balancer>
void check_counted(const Engine& engine, const Scoring& scoring, const TopKT& top_k, const Balancer& balancer,
                   const Bins& bins, const Inputs& inputs) {
  CAPTURE(inputs.experts);
  CAPTURE(inputs.tokens);
  const std::vector<std::int32_t> ids = ids_of(scoring, top_k, inputs);
  const std::vector<std::int64_t> counted = histogram_of<Real>(engine, scoring, top_k, balancer, inputs, ids);
  check_histogram(counted, problem_of(scoring, top_k, inputs), bins, mb::BalancerTraits<Balancer>::reads_scores);
  CHECK(counted == histogram_of<Real>(HostEngine{}, scoring, top_k, balancer, inputs, ids));
}

/// All tiers, awkward numbers of experts and of tokens, types, rows apart, masks, with and without a bias.
template <class Engine, class Scoring, class TopKT, class Balancer>
void check_all_counted(const Engine& engine, const Scoring& scoring, const TopKT& top_k, const Balancer& balancer,
                       const Bins& bins) {
  for (const int experts : {TopKT::k + 1, 32, 61, 64, 66, 128, 130, 256, 257, 512, 900, 1024, 1027, 2048}) {
    if (experts <= TopKT::k) continue;
    const auto seed = static_cast<std::uint64_t>(experts);
    check_counted(engine, scoring, top_k, balancer, bins, normal_inputs(seed, 5, experts, 1, 0.5));
    Inputs inputs = normal_inputs(seed + 1, 21, experts, 1, 0.5);
    inputs.bias = normal_bias(seed + 2, experts);
    inputs.active = Random(seed + 3).flags(21, 0.2);
    inputs.row_padding = experts % 2;
    check_counted(engine, scoring, top_k, balancer, bins, inputs);
    inputs = awkward_inputs(seed + 4, 12, experts);
    inputs.tokens_on_device = 11;
    check_counted(engine, scoring, top_k, balancer, bins, inputs);
    inputs.bias = normal_bias(seed + 5, experts);
    inputs.logits_type = experts % 3 == 0 ? mb::DataType::float16 : mb::DataType::bfloat16;
    check_counted(engine, scoring, top_k, balancer, bins, inputs);
  }
}

TEST_CASE_TEMPLATE_DEFINE("margins of a softmax", Engine, margins_softmax) {
  const mb::QuantileBias rule{.spacing = mb::MarginBins::even, .low = -0.1f, .high = 0.3f, .bins = 40};
  check_all_counted(Engine(), mb::Softmax{}, mb::TopK<4>{}, rule, bins_of(rule));
}
TEST_CASE_TEMPLATE_DEFINE("margins of logits, where those rank", Engine, margins_over_selected) {
  const mb::QuantileBias rule{.spacing = mb::MarginBins::even, .low = -8.0f, .high = 4.0f, .bins = 31};
  check_all_counted(Engine(), mb::SoftmaxOverSelected{}, mb::TopK<8>{}, rule, bins_of(rule));
}
TEST_CASE_TEMPLATE_DEFINE("margins of a sigmoid", Engine, margins_sigmoid) {
  const mb::QuantileBias rule{.bins = 100};
  check_all_counted(Engine(), mb::Sigmoid{}, mb::TopK<1>{}, rule, bins_of(rule));
}
TEST_CASE_TEMPLATE_DEFINE("margins that are scores, of any selection", Engine, margins_scores) {
  const mb::ThresholdBias rule{.spacing = mb::MarginBins::even, .low = 0.1f, .high = 0.8f, .bins = 20};
  check_all_counted(Engine(), mb::Sigmoid{}, mb::Threshold<4>{}, rule, bins_of(rule));
  const mb::ThresholdBias octaves{.spacing = mb::MarginBins::octaves, .bins = 41};
  check_all_counted(Engine(), mb::SoftmaxOverSelected{}, mb::TopK<2>{}, mb::Combine{mb::ZLoss{}, octaves}, bins_of(octaves));
}
TEST_CASE_TEMPLATE_DEFINE("margins of many chosen, beside losses", Engine, margins_of_many) {
  const mb::QuantileBias rule{.spacing = mb::MarginBins::even, .low = -3.0f, .high = 1.0f, .bins = 17};
  check_all_counted(Engine(), mb::SqrtSoftplus{}, mb::TopK<32>{}, mb::Combine{mb::SequenceLoss{}, mb::ZLoss{}, rule},
                    bins_of(rule));
}
TEST_CASE_TEMPLATE_DEFINE("a margin that is NaN counts in the lowest bin", Engine, margins_nan) {
  const mb::QuantileBias rule{.spacing = mb::MarginBins::even, .low = -2.0f, .high = 2.0f, .bins = 8};
  const Inputs inputs = normal_inputs(9, 40, 24, 1);
  check_counted(Engine(), NanBelowZero{}, mb::TopK<2>{}, rule, bins_of(rule), inputs);
}
TEST_CASE_TEMPLATE_DEFINE("margins in bins of a user's rule", Engine, margins_user) {
  const BinsByRoot rule;
  const Bins bins{rule.bins,
                  [](int bin) {
                    const double place = bin / 25.0 - 1;
                    return place / (1 - std::abs(place) + 1e-12);
                  },
                  [](double edge) { return 4e-7 * (1 + std::abs(edge)) * (1 + std::abs(edge)); }};
  check_counted(Engine(), mb::Identity{}, mb::TopK<2>{}, rule, bins, normal_inputs(5, 40, 24, 1));
  check_counted(Engine(), mb::Identity{}, mb::TopK<2>{}, rule, bins, normal_inputs(6, 40, 300, 1));
  check_counted(Engine(), mb::Identity{}, mb::TopK<2>{}, rule, bins, awkward_inputs(7, 40, 24));  // bins -1 and 50
}

TEST_CASE_TEMPLATE_DEFINE("margins of many tokens, which on a GPU two kernels count", Engine, margins_of_many_tokens) {
  const mb::QuantileBias octaves;
  const mb::QuantileBias even{.spacing = mb::MarginBins::even, .low = -0.25f, .high = 0.25f, .bins = 64};
  const mb::ThresholdBias of_scores;
  const auto check = [](int experts, mb::DataType type, const auto& scoring, const auto& rule) {
    const auto seed = static_cast<std::uint64_t>(experts);
    Inputs inputs = normal_inputs(seed, 2600 / shares_of_tokens<Engine>(), experts, 1, 0.5);
    inputs.logits_type = type;
    inputs.bias = normal_bias(seed + 1, experts, 0.02);
    inputs.active = Random(seed + 2).flags(static_cast<std::size_t>(inputs.tokens), 0.1);
    inputs.row_padding = experts % 4;
    check_counted(Engine(), scoring, mb::TopK<4>{}, rule, bins_of(rule), inputs);
  };
  check(256, mb::DataType::float32, mb::Sigmoid{}, octaves);
  check(257, mb::DataType::bfloat16, mb::Softmax{}, even);
  check(61, mb::DataType::float16, mb::SqrtSoftplus{}, octaves);
  check(130, mb::DataType::float32, mb::SoftmaxOverSelected{}, octaves);
  check(64, mb::DataType::float32, mb::Softmax{}, of_scores);
}

}  // namespace testing
