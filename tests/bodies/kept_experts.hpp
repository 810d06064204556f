// Selections that keep fewer than K experts of a token: top-p, thresholds, and a user's own.
#pragma once

#include "capacity_router.hpp"
#include "everything.hpp"
#include "gradient.hpp"
#include "update.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace users {

/// Keeps the experts that are at least so large a part of the best one.
template <int K>
struct MinP {
  static constexpr int k = K;
  static constexpr bool narrows = false;
  float part = 0.25f;

  MOEB_HOST_DEVICE mb::Weighting weighting() const { return {.renormalise = true, .scaling_factor = 2.0f}; }
  void check(const char* /*call*/, int /*experts*/) const {}
  template <class Real, class Tile, class Layout, class Keys>
  MOEB_HOST_DEVICE void narrow(const Tile& /*tile*/, const Layout& /*layout*/, Keys& /*keys*/) const {}
  MOEB_HOST_DEVICE bool keeps(const mb::RankedExpert<float>& expert) const { return expert.score >= part * expert.best; }
};
static_assert(mb::TopKPolicy<MinP<4>> && mb::keeps_fewer<MinP<4>> && !mb::keeps_fewer<mb::TopK<4>>);

template <int K>
void describe(const MinP<K>& selection, oracle::Problem& problem) {
  problem.k = K;
  problem.scaling_factor = 2;
  problem.surplus = [part = static_cast<double>(selection.part)](double score, double, double, double best, int) {
    return score - part * best;
  };
}

/// Those that rank before a sum of 0.6, but the third.
template <int K>
struct NotTheThird : MinP<K> {
  template <class Real>
  MOEB_HOST_DEVICE bool keeps(const mb::RankedExpert<Real>& expert) const {
    return expert.before < Real(0.6) && expert.rank != 2;
  }
};

/// The first and, of the others, every second one: no prefix of the ranks.
template <int K>
struct EverySecond : MinP<K> {
  MOEB_HOST_DEVICE bool keeps(const mb::RankedExpert<float>& expert) const { return expert.rank % 2 == 0; }
};
template <int K>
void describe(const EverySecond<K>& /*selection*/, oracle::Problem& problem) {
  problem.k = K;
  problem.scaling_factor = 2;
  problem.surplus = [](double, double, double, double, int rank) { return rank % 2 == 0 ? 1.0 : -1.0; };
}

}  // namespace users

namespace testing {

/// Of each token, how many experts it has.
inline std::vector<int> kept_of_tokens(const Outcome& outcome, int k) {
  std::vector<int> kept(outcome.experts.size() / static_cast<std::size_t>(k), 0);
  for (std::size_t i = 0; i < outcome.experts.size(); ++i) kept[i / static_cast<std::size_t>(k)] += outcome.experts[i] >= 0;
  return kept;
}

/// Some tokens have fewer than K, some more than the fewest.
inline void check_varies(const Outcome& outcome, int k) {
  const std::vector<int> kept = kept_of_tokens(outcome, k);
  CHECK(*std::min_element(kept.begin(), kept.end()) < *std::max_element(kept.begin(), kept.end()));
}

template <class Engine, int K, class Scoring>
void check_top_p(const Scoring& scoring, float p, bool renormalise) {
  for (const int experts : {K, 24, 61, 200, 264}) {
    if (experts < K) continue;
    CAPTURE(experts);
    Inputs inputs = full_inputs(1600, 43, experts, K);
    inputs.sequences = 3;
    inputs.layout = mb::Sequences::Layout::offsets;
    inputs.offsets = {0, 7, 7, 43};
    const mb::TopP<K> selection{.p = p, .renormalise = renormalise, .scaling_factor = 1.5f};
    const Outcome outcome = agrees(Engine(), scoring, selection, inputs, everything());
    if (K > 2) check_varies(outcome, K);
    inputs.bias.clear();
    agrees(Engine(), scoring, selection, inputs);
  }
}

TEST_CASE_TEMPLATE_DEFINE("TopP: softmax, every tier, weights as they are", Engine, top_p_softmax) {
  check_top_p<Engine, 6>(mb::Softmax{}, 0.15f, false);
}
TEST_CASE_TEMPLATE_DEFINE("TopP: softmax, weights of the kept renormalised, as many as a token may have", Engine,
                          top_p_renormalised) {
  check_top_p<Engine, 32>(mb::Softmax{}, 0.3f, true);
}
TEST_CASE_TEMPLATE_DEFINE("TopP: sigmoid, whose scores have any sum", Engine, top_p_sigmoid) {
  check_top_p<Engine, 4>(mb::Sigmoid{}, 2.6f, true);
}
TEST_CASE_TEMPLATE_DEFINE("TopP: softmax over the selected, of which p is a part", Engine, top_p_over_selected) {
  check_top_p<Engine, 5>(mb::SoftmaxOverSelected{}, 0.6f, true);
}

TEST_CASE_TEMPLATE_DEFINE("TopP by hand: the smallest set that sums to p", Engine, top_p_by_hand) {
  Inputs inputs;
  inputs.tokens = 4;
  inputs.experts = 4;
  const double parts[] = {0.5, 0.25, 0.125, 0.125, 0.125, 0.125, 0.125, 0.625, 0.25, 0.25, 0.25, 0.25, 1, 0, 0, 0};
  for (const double part : parts) inputs.logits.push_back(static_cast<float>(std::log(part)));  // log 0 is -infinity
  inputs.backward = false;
  const auto chosen = [&](const auto& selection) {
    return train(Engine(), mb::Router{mb::Softmax{}, selection, mb::NoBalancer{}}, inputs);
  };
  const Outcome most = chosen(mb::TopP<3>{.p = 0.74f});
  CHECK(most.experts == std::vector<std::int32_t>{0, 1, -1, 3, 0, -1, 0, 1, 2, 0, -1, -1});
  CHECK(most.counts == std::vector<std::int64_t>{4, 2, 1, 1});
  CHECK(most.status.non_finite_tokens == 0);
  CHECK(most.weights[0] == doctest::Approx(0.5).epsilon(1e-6));
  CHECK(most.weights[1] == doctest::Approx(0.25).epsilon(1e-6));
  CHECK(most.weights[2] == 0);
  CHECK(most.weights[6] == doctest::Approx(0.25).epsilon(1e-6));
  // All of them do not sum to p: as many as there may be.
  CHECK(kept_of_tokens(chosen(mb::TopP<3>{.p = 3.0f}), 3) == std::vector<int>{3, 3, 3, 1});
  CHECK(kept_of_tokens(chosen(mb::TopP<3>{.p = 1e-30f}), 3) == std::vector<int>{1, 1, 1, 1});
  CHECK(kept_of_tokens(chosen(mb::TopP<1>{.p = 1.0f}), 1) == std::vector<int>{1, 1, 1, 1});
  const Outcome renormalised = chosen(mb::TopP<3>{.p = 0.74f, .renormalise = true, .scaling_factor = 3.0f});
  CHECK(renormalised.weights[0] == doctest::Approx(2).epsilon(1e-6));
  CHECK(renormalised.weights[1] == doctest::Approx(1).epsilon(1e-6));
  CHECK(renormalised.weights[9] == doctest::Approx(3).epsilon(1e-6));
}

TEST_CASE_TEMPLATE_DEFINE("Threshold: experts above their cutoff, none or too many of them among them", Engine,
                          threshold_agreement) {
  for (const int experts : {5, 61, 200, 264}) {
    CAPTURE(experts);
    for (const float cutoff : {0.9f, 0.6f}) {
      Inputs inputs = full_inputs(1610, 43, experts, 5);
      for (float& bias : inputs.bias) bias = 0.1f * bias - cutoff + 0.02f * std::log2(static_cast<float>(experts) / 5);
      const Outcome outcome =
          agrees(Engine(), mb::Sigmoid{}, mb::Threshold<5>{.scaling_factor = 1.5f}, inputs, everything());
      check_varies(outcome, 5);
      agrees(Engine(), mb::Sigmoid{}, mb::Threshold<5>{.renormalise = true}, inputs, mb::LossFreeBias{});
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("Threshold by hand: minus the bias is the cutoff, which is not taken", Engine, threshold_by_hand) {
  Inputs inputs;
  inputs.tokens = 3;
  inputs.experts = 4;
  inputs.logits = {0.5, 0.25, 1, 0, 0.25, 0.25, 0.75, -1, 2, 2, 2, 2};
  inputs.bias = {-0.25f, -0.25f, -0.75f, 0.0f};
  inputs.grad_weights = {1, 2, 4, 8, 16, 32};
  inputs.load = zero_load(4);
  const auto route = [&](const auto& selection) {
    return train(Engine(), mb::Router{mb::Identity{}, selection, mb::LossFreeBias{}}, inputs);
  };
  const Outcome outcome = route(mb::Threshold<2>{.scaling_factor = 0.5f});
  CHECK(outcome.experts == std::vector<std::int32_t>{0, 2, -1, -1, 3, 0});
  CHECK(outcome.weights == std::vector<double>{0.25, 0.5, 0, 0, 1, 1});
  CHECK(outcome.counts == std::vector<std::int64_t>{2, 0, 1, 1});
  CHECK(outcome.load == outcome.counts);
  CHECK(outcome.grad_logits == std::vector<double>{0.5, 0, 1, 0, 0, 0, 0, 0, 16, 0, 0, 8});
  CHECK(outcome.status.non_finite_tokens == 0);
  // A token without experts has weights 0 also where they are divided by their sum, and a gradient of 0.
  const Outcome divided = route(mb::Threshold<2>{.renormalise = true});
  CHECK(std::vector<double>(divided.weights.begin() + 2, divided.weights.begin() + 4) == std::vector<double>{0, 0});
  CHECK(std::vector<double>(divided.grad_logits.begin() + 4, divided.grad_logits.begin() + 8) == std::vector<double>(4, 0));
  // Without a bias cutoffs are 0.
  inputs.bias.clear();
  inputs.load.clear();
  inputs.accumulate = false;
  const Outcome unbiased = train(Engine(), mb::Router{mb::Identity{}, mb::Threshold<3>{}, mb::NoBalancer{}}, [&] {
    Inputs all = inputs;
    all.grad_weights.assign(9, 1.0);
    return all;
  }());
  CHECK(unbiased.experts == std::vector<std::int32_t>{2, 0, 1, 2, 0, 1, 0, 1, 2});
}

TEST_CASE_TEMPLATE_DEFINE("TopP and Threshold: more experts than a lane has registers for", Engine, kept_many) {
  for (const int experts : {520, 1027}) {
    CAPTURE(experts);
    Inputs inputs = full_inputs(1615, 21, experts, 6);
    check_varies(agrees(Engine(), mb::Softmax{}, mb::TopP<6>{.p = 0.06f, .renormalise = true}, inputs, everything()), 6);
    agrees(Engine(), mb::Softmax{}, mb::TopP<6>{.p = 0.06f}, inputs, mb::LossFreeBias{});
    for (float& bias : inputs.bias) bias -= 1.0f;
    check_varies(agrees(Engine(), mb::Sigmoid{}, mb::Threshold<6>{}, inputs, everything()), 6);
  }
}

TEST_CASE_TEMPLATE_DEFINE("a user's own: a part of the best score, and others than the first ones", Engine, kept_user) {
  for (const int experts : {4, 40, 300}) {
    CAPTURE(experts);
    const Inputs inputs = full_inputs(1620, 43, experts, 4);
    check_varies(agrees(Engine(), mb::Softmax{}, users::MinP<4>{.part = 0.4f}, inputs, everything()), 4);
    agrees(Engine(), mb::SoftmaxOverSelected{}, users::EverySecond<4>{}, inputs, everything());
    agrees(Engine(), mb::Softmax{}, users::EverySecond<4>{}, inputs);
  }
}

TEST_CASE_TEMPLATE_DEFINE("what is kept is replayed as it is; tokens that are not replayed choose", Engine, kept_replay) {
  for (const int experts : {9, 61, 300}) {
    CAPTURE(experts);
    Inputs inputs = full_inputs(1630, 43, experts, 4);
    const Outcome first = agrees(Engine(), mb::Softmax{}, mb::TopP<4>{.p = 0.3f}, inputs, everything());
    inputs.replay_experts = first.experts;
    const mb::Replay replay{mb::TopP<4>{.p = 0.3f}};
    CHECK(same_bits(agrees(Engine(), mb::Softmax{}, replay, inputs, everything()), first));
    inputs.replay_tokens = Random(1631).flags(43, 0.5);
    CHECK(same_bits(agrees(Engine(), mb::Softmax{}, replay, inputs, everything()), first));
    // Replayed ids are the caller's, however small their scores are.
    inputs.replay_experts = replayed_ids(1632, 43, experts, 4);
    agrees(Engine(), mb::Softmax{}, replay, inputs, everything());
  }
}

TEST_CASE_TEMPLATE_DEFINE("tokens whose weights are not finite keep K experts; -infinity masks an expert", Engine,
                          kept_nan) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  Inputs inputs = normal_inputs(1640, 64, 24, 3);
  Random random(1641);
  const double faults[] = {std::nan(""), infinity, -infinity};
  for (double& logit : inputs.logits) {
    if (random.chance(0.1)) logit = faults[random.integer(0, 2)];
  }
  for (std::size_t e = 0; e < 24; ++e) {
    inputs.logits[e] = e < 22 ? std::nan("") : 1.0;         // of the K best one is NaN
    inputs.logits[24 + e] = e < 22 ? -infinity : 1.0;       // is masked
    inputs.logits[48 + e] = e < 22 ? -infinity : infinity;  // is infinite
    inputs.logits[72 + e] = -infinity;                      // all of them are
  }
  const mb::AuxLoss balancer{.coefficient = 0.5f};
  const Outcome outcome = agrees(Engine(), mb::Softmax{}, mb::TopP<3>{.p = 0.9f}, inputs, balancer);
  CHECK(outcome.status.non_finite_tokens > 3);
  const std::vector<int> kept = kept_of_tokens(outcome, 3);
  CHECK(std::vector<int>(kept.begin(), kept.begin() + 4) == std::vector<int>{3, 2, 3, 3});
  agrees(Engine(), mb::Sigmoid{}, mb::TopP<3>{.p = 1.5f}, inputs, balancer);
  agrees(Engine(), mb::SoftmaxOverSelected{}, mb::TopP<3>{.p = 0.5f}, inputs, balancer);
  agrees(Engine(), mb::Softmax{}, users::MinP<3>{.part = 0.5f}, inputs, balancer);
  // A masked expert ranks first.
  for (double& logit : inputs.logits) logit = logit == infinity ? 0.5 : logit;
  for (std::size_t t = 4; t < 64; t += 3) inputs.logits[t * 24] = -infinity;
  inputs.bias = normal_bias(1642, 24);
  inputs.bias[0] = 9.0f;
  inputs.load = zero_load(24);
  agrees(Engine(), mb::Softmax{}, users::MinP<3>{.part = 0.5f}, inputs, mb::Combine{balancer, mb::LossFreeBias{}});
  agrees(Engine(), mb::Sigmoid{}, mb::TopP<3>{.p = 0.7f}, inputs, mb::Combine{balancer, mb::LossFreeBias{}});
}

TEST_CASE_TEMPLATE_DEFINE("the experts that are kept: 16-bit types, rows apart, no tokens, ties", Engine, kept_types) {
  for (const mb::DataType type : {mb::DataType::bfloat16, mb::DataType::float16}) {
    Inputs inputs = with_types(full_inputs(1650, 43, 60, 6), type, type, type);
    inputs.row_padding = 3;
    agrees(Engine(), mb::Softmax{}, mb::TopP<6>{.p = 0.15f}, inputs, everything());
  }
  agrees(Engine(), mb::Softmax{}, mb::TopP<6>{.p = 0.15f}, full_inputs(1651, 0, 60, 6), everything());
  const Outcome half = agrees(Engine(), mb::Softmax{}, mb::TopP<4>{.p = 0.5f}, rows_of_constant(1, 4, 0.5));  // exact sums
  CHECK(half.experts == std::vector<std::int32_t>{0, 1, -1, -1});
  const Inputs equal = rows_of_constant(5, 8, 0.5);
  const Outcome outcome = agrees(Engine(), mb::Softmax{}, mb::TopP<6>{.p = 0.4f}, equal);
  CHECK(outcome.experts == std::vector<std::int32_t>{0, 1,  2,  3, -1, -1, 0, 1,  2,  3, -1, -1, 0, 1,  2,
                                                     3, -1, -1, 0, 1,  2,  3, -1, -1, 0, 1,  2,  3, -1, -1});
}

TEST_CASE_TEMPLATE_DEFINE("a balanced loss is its coefficient, however many experts tokens have", Engine, kept_balanced) {
  Inputs inputs = rows_of_constant(4, 4, -60.0);
  for (std::size_t t = 0; t < 4; ++t) inputs.logits[t * 4 + t] = 20.0;
  for (const float p : {0.5f, 3.0f}) {
    const auto cost = [&](const auto& balancer) {
      return agrees(Engine(), mb::Softmax{}, mb::TopP<3>{.p = p}, inputs, balancer).loss;
    };
    CHECK(cost(mb::AuxLoss{.coefficient = 0.25f}) == doctest::Approx(0.25).epsilon(p < 1 ? 1e-6 : 1));
    CHECK(cost(mb::SequenceLoss{.coefficient = 0.25f}) == doctest::Approx(0.25).epsilon(p < 1 ? 1e-6 : 1));
  }
  // No token has an expert: there is no share, and no loss.
  inputs.bias.assign(4, -2.0f);
  inputs.load = zero_load(4);
  const Outcome none = agrees(Engine(), mb::Softmax{}, mb::Threshold<3>{}, inputs,
                              mb::Combine{mb::AuxLoss{.coefficient = 0.25f}, mb::LossFreeBias{}});
  CHECK(none.loss == 0);
  CHECK(none.counts == zero_load(4));
}

TEST_CASE_TEMPLATE_DEFINE("WithCapacity drops of what is kept; an order is made of it", Engine, kept_capacity) {
  const Engine engine;
  const Inputs inputs = normal_inputs(1660, 60, 12, 4, 2.0);
  const mb::TopP<4> selection{.p = 0.5f};
  const Outcome all = agrees(engine, mb::Softmax{}, selection, inputs);
  for (const mb::DropBy drop : {mb::DropBy::score, mb::DropBy::position}) {
    const mb::WithCapacity<mb::TopP<4>> capacity{.capacity_factor = 0.6, .drop = drop, .selection = selection};
    const Limited few = limited(engine, mb::Router{mb::Softmax{}, capacity, mb::NoBalancer{}}, inputs);
    CHECK(few.chosen == all.experts);
    CHECK(few.outcome.status.dropped_slots > 0);
    for (std::size_t e = 0; e < 12; ++e) CHECK(few.kept_counts[e] == std::min<std::int64_t>(all.counts[e], 12));
    for (std::size_t i = 0; i < few.chosen.size(); ++i) {
      const bool stays = few.outcome.experts[i] >= 0;
      CHECK((!stays || few.outcome.experts[i] == all.experts[i]));
      CHECK(few.outcome.weights[i] == (stays ? all.weights[i] : 0.0));
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("ThresholdBias by hand: a quantile of scores, its running mean", Engine, threshold_bias_by_hand) {
  const auto moved = [](const mb::ThresholdBias& rule, const std::vector<float>& bias, const std::vector<std::int64_t>& load,
                        std::int64_t layers = 1) {
    const mb::Router router{mb::Sigmoid{}, mb::Threshold<2>{}, rule};
    const Updated updated = update(Engine(), router, bias, load, layers);
    CHECK(updated.load == std::vector<std::int64_t>(load.size(), 0));
    return updated.bias;
  };
  // Eight tokens and two experts; bins of a quarter. Of the first expert's scores two lie in [0.75, 1), of the second's all in [0.25, 0.5). With one expert
  // for each token four scores are above the cutoff, the fifth largest: of the first's six in [0.5, 0.75) the third largest, of eight the fifth.
  const std::vector<std::int64_t> load{0, 0, 0, 0, 6, 2, 0, 8, 0, 0};
  const mb::ThresholdBias rule{.momentum = 0.75f, .spacing = mb::MarginBins::even, .bins = 4};
  const auto cutoff = [](double lower, double rank, double in_bin) { return lower + 0.25 * (1 - (rank - 0.5) / in_bin); };
  const double first = cutoff(0.5, 3, 6), second = cutoff(0.25, 5, 8);
  const auto near = [](const std::vector<float>& got, const std::vector<double>& want) {
    REQUIRE(got.size() == want.size());
    for (std::size_t i = 0; i < got.size(); ++i)
      CHECK(static_cast<double>(got[i]) == doctest::Approx(want[i]).epsilon(1e-6));
  };
  near(moved(rule, {0, 0}, load), {-first, -second});
  near(moved(rule, {-0.5f, 0}, load), {-0.375 - 0.25 * first, -second});
  near(moved(rule, {-0.5f, 1.0f}, load), {-0.375 - 0.25 * first, 0.75 - 0.25 * second});
  // Half an expert, one and a half, and both of them: then the smallest score is the cutoff.
  mb::ThresholdBias of = rule;
  of.experts_per_token = 0.5f;
  near(moved(of, {0, 0}, load), {-cutoff(0.5, 1, 6), -cutoff(0.25, 3, 8)});
  of.experts_per_token = 1.5f;
  near(moved(of, {0, 0}, load), {-cutoff(0.5, 5, 6), -cutoff(0.25, 7, 8)});
  of.experts_per_token = 2.0f;
  near(moved(of, {0, 0}, load), {-cutoff(0.5, 6, 6), -cutoff(0.25, 8, 8)});
  // Nothing was counted, or nothing is to move.
  const std::vector<float> bias{-0.5f, -0.25f};
  CHECK(moved(rule, bias, zero_load(10)) == bias);
  of = rule;
  of.frozen = true;
  CHECK(moved(of, bias, load) == bias);
  // Of 98 tokens and 49 experts two are larger, though 1 / 49 is rounded: each score has a bin of its own.
  std::vector<std::int64_t> all_bins = zero_load(49);
  for (int e = 0; e < 49; ++e) all_bins.insert(all_bins.end(), 98, 1);
  const mb::ThresholdBias single{.spacing = mb::MarginBins::even, .bins = 98};
  near(moved(single, std::vector<float>(49), all_bins), std::vector<double>(49, -95.5 / 98));
  // Each layer by its own.
  std::vector<std::int64_t> layers = load;
  layers.insert(layers.end(), {0, 0, 0, 8, 0, 0, 0, 0, 6, 2});
  near(moved(rule, {0, 0, 0, 0}, layers, 2), {-first, -second, -second, -first});
}

TEST_CASE_TEMPLATE_DEFINE("ThresholdBias: scores are counted where K is all experts, too", Engine, threshold_bias_of_all) {
  Inputs inputs = normal_inputs(1680, 20, 4, 4);
  const mb::ThresholdBias rule{.experts_per_token = 2.0f, .bins = 8};
  inputs.bias.assign(4, -0.5f);
  inputs.load = zero_load(4 * 9);
  const Outcome outcome = train(Engine(), mb::Router{mb::Sigmoid{}, mb::Threshold<4>{}, rule}, inputs);
  CHECK(std::accumulate(outcome.load.begin() + 4, outcome.load.end(), std::int64_t{0}) == 4 * 20);
}

TEST_CASE_TEMPLATE_DEFINE("ThresholdBias: each expert comes to have its share, tokens as many as they need", Engine,
                          threshold_bias_balances) {
  const auto check = [](const auto& scoring, mb::ThresholdBias rule) {  // whose bins hold hardly more than one score
    const float mean = rule.experts_per_token;
    const mb::Router router{scoring, mb::Threshold<12>{}, rule};
    Inputs inputs = normal_inputs(1690, 512, 16, 12, 2.0);
    inputs.backward = false;
    inputs.bias.assign(16, 0.0f);
    inputs.load = zero_load(16 * (1 + router.load_bins()));
    inputs.active = Random(1691).flags(512, 0.1);
    inputs.tokens_on_device = 500;
    for (std::size_t t = 500; t < 512; ++t) inputs.active[t] = 1;  // which are none all the same
    Outcome outcome;
    for (int step = 0; step < 12; ++step) {
      outcome = train(Engine(), router, inputs);
      inputs.bias = update(Engine(), router, inputs.bias, outcome.load).bias;
    }
    const double active = static_cast<double>(std::count(inputs.active.begin(), inputs.active.end() - 12, 1));
    CHECK(std::accumulate(outcome.load.begin() + 16, outcome.load.end(), std::int64_t{0}) == 16 * static_cast<int>(active));
    double all = 0;
    for (const std::int64_t count : outcome.counts) {
      all += static_cast<double>(count);
      CHECK(std::abs(static_cast<double>(count) - active * static_cast<double>(mean) / 16) <= 2);
    }
    CHECK(all / active == doctest::Approx(mean).epsilon(0.03));
    check_varies(outcome, 12);
    // A frozen rule counts nothing.
    rule.frozen = true;
    const mb::Router still{scoring, mb::Threshold<12>{}, rule};
    const Outcome frozen = train(Engine(), still, inputs);
    CHECK(frozen.experts == train(Engine(), router, inputs).experts);
    CHECK(std::accumulate(frozen.load.begin() + 16, frozen.load.end(), std::int64_t{0}) == 0);
  };
  check(mb::Sigmoid{}, {.experts_per_token = 2.0f, .momentum = 0.5f, .spacing = mb::MarginBins::even, .bins = 16384});
  check(mb::Softmax{}, {.experts_per_token = 1.25f, .momentum = 0.9f, .spacing = mb::MarginBins::octaves, .bins = 11265});
  check(mb::SoftmaxOverSelected{},
        {.experts_per_token = 0.5f, .momentum = 0.0f, .spacing = mb::MarginBins::octaves, .bins = 11265});
}

}  // namespace testing
