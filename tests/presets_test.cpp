// The presets: against vectors recorded from code that the models were published or trained with (golden/README.md), and against plain loops written from
// each model's publication. The loops share nothing with the library and nothing with oracle.hpp.
#include "engine_host.hpp"
#include "golden_cases.hpp"
#include "golden_router.hpp"
#include "random.hpp"

#include <doctest/doctest.h>
#include <moe_balance/moe_balance.hpp>
#include <moe_balance/sync/thread.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

namespace mb = moe_balance;

namespace {

/// What a router made of some logits, read back.
struct Routed {
  std::vector<int> experts;
  std::vector<double> weights;
  float loss = 0;
};

/// route, and where the router has a loss, forward and loss of all tokens as one sequence.
template <class Router>
Routed run(const Router& router, const std::vector<float>& logits, int experts, std::vector<float> bias = {}) {
  const auto tokens = static_cast<std::int64_t>(logits.size()) / experts;
  const auto slots = static_cast<std::size_t>(tokens * Router::k);
  std::vector<std::int32_t> ids(slots);
  std::vector<float> weights(slots);
  if (bias.empty()) bias.assign(static_cast<std::size_t>(experts), 0.0f);
  mb::ForwardArgs forward;
  forward.logits = mb::MatrixView(logits.data(), tokens, experts);
  forward.experts = {ids.data(), tokens, Router::k};
  forward.weights = mb::MatrixView(weights.data(), tokens, Router::k);
  forward.bias = mb::BiasRef{bias.data(), experts};
  const mb::Load load{experts};
  forward.load = load.ref();
  const mb::Saved saved{router, mb::Shape{.tokens = tokens, .experts = experts}};
  forward.saved = saved.ref();
  router.forward(forward, {}, mb::Host{.threads = 1});
  Routed result;
  if constexpr (Router::loss_count > 0) {
    router.loss({.saved = saved.ref(), .experts = experts, .value = &result.loss}, {}, mb::Host{.threads = 1});
  }
  result.experts.assign(ids.begin(), ids.end());
  result.weights.assign(weights.begin(), weights.end());

  std::vector<std::int32_t> inferred(slots);
  std::vector<float> inferred_weights(slots);
  router.route({.logits = forward.logits,
                .experts = {inferred.data(), tokens, Router::k},
                .weights = mb::MatrixView(inferred_weights.data(), tokens, Router::k),
                .bias = forward.bias},
               {}, mb::Host{.threads = 1});
  CHECK(inferred == ids);
  CHECK(inferred_weights == weights);
  return result;
}

// ---- recorded vectors ---------------------------------------------------------------------------------------------------------------

golden::Json recorded(const std::string& name) {
  std::ifstream file(std::string(MOE_BALANCE_GOLDEN_DIR) + "/" + name + ".json");
  REQUIRE(file.good());
  return golden::Json::parse(file);
}

/// tolerance of golden/README.md, of values that were recorded with coefficient 1 and multiplied by `factor`.
template <class Values>
void check_close(const Values& got, const std::vector<double>& want, golden::Tolerance tolerance, double factor = 1) {
  REQUIRE(got.size() == want.size());
  tolerance.absolute *= factor;
  const double absolute = tolerance.absolute_for(want);
  std::size_t differ = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double distance = std::abs(static_cast<double>(got[i]) - want[i]);
    differ += !(distance <= absolute + tolerance.relative * std::abs(want[i]));
  }
  CHECK(differ == 0);
}

void check_close(const std::vector<double>& got, const std::vector<double>& want) {
  check_close(got, want, golden::value_tolerance);
}

/// One recorded loss in a preset's: the key of its value, whose gradient is at <key>_grad_logits, and what a coefficient of 1 became.
struct Share {
  std::string loss;
  double factor = 0;
};

double largest_factor(const std::vector<Share>& shares) {
  double largest = 0;
  for (const Share& share : shares) largest = std::max(largest, share.factor);
  return largest;
}

/// The sum of the shares' values at <key><suffix>, which are lists or one number.
std::vector<double> weighted_sum(const golden::Json& expected, const std::vector<Share>& shares, const std::string& suffix) {
  std::vector<double> sum;
  for (const Share& share : shares) {
    const golden::Json& found = expected.at(share.loss + suffix);
    const auto values = found.is_array() ? found.get<std::vector<double>>() : std::vector<double>{found.get<double>()};
    sum.resize(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) sum[i] += share.factor * values[i];
  }
  return sum;
}

/// What a preset makes of a recorded case: forward, loss and backward.
template <class Router>
golden::Answer answer_of(const Router& router, golden::Task task) {
  const auto experts = static_cast<std::size_t>(task.experts);
  REQUIRE(task.k == Router::k);
  if (task.bias.empty()) task.bias.assign(experts, 0.0f);
  if (task.load.empty()) task.load.assign(experts, 0);
  task.loss = Router::loss_count > 0 ? golden::Loss::micro_batch : golden::Loss::none;  // whichever: the router's own
  return golden::ask(testing::HostEngine{}, router, task);
}

void check_losses(const golden::Answer& answer, const golden::Json& expected, const std::vector<Share>& shares) {
  const double factor = largest_factor(shares);
  REQUIRE(factor > 0);
  check_close(std::vector<float>{answer.loss}, weighted_sum(expected, shares, ""), golden::value_tolerance, factor);
  check_close(answer.grad_logits_of_loss, weighted_sum(expected, shares, "_grad_logits"), golden::gradient_tolerance,
              factor);
}

/// Ids, weights and counts, the gradient through the weights where it was recorded, and the loss with its gradient where the preset has one.
template <class Router>
void reproduces(const std::string& name, const Router& router, const std::vector<Share>& shares = {}) {
  CAPTURE(name);
  const golden::Json recording = recorded(name);
  const golden::Json& expected = recording.at("expected");
  golden::Task task = golden::task_of(recording.at("config"), recording.at("inputs"));
  task.sequences = recording.at("config").value("sequences", 1);
  const golden::Answer answer = answer_of(router, task);
  golden::Comparison comparison;
  golden::compare_routing(answer, expected, comparison);
  CHECK(comparison.first_difference() == "");
  if (!shares.empty()) check_losses(answer, expected, shares);
}

// ---- the publications as plain loops ----------------------------------------------------------------------------------------------

using Row = std::vector<double>;

Row softmax(const Row& x) {
  const double largest = *std::max_element(x.begin(), x.end());
  Row p;
  for (const double value : x) p.push_back(std::exp(value - largest));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

Row sigmoid(const Row& x) {
  Row s;
  for (const double value : x) s.push_back(1 / (1 + std::exp(-value)));
  return s;
}

/// The `k` largest, best first, of experts for which allowed(e).
std::vector<int> largest(const Row& values, int k, const std::function<bool(int)>& allowed) {
  std::vector<int> ids;
  for (int slot = 0; slot < k; ++slot) {
    int best = -1;
    for (int e = 0; e < static_cast<int>(values.size()); ++e) {
      const bool taken = std::find(ids.begin(), ids.end(), e) != ids.end();
      if (taken || !allowed(e)) continue;
      if (best < 0 || values[static_cast<std::size_t>(e)] > values[static_cast<std::size_t>(best)]) best = e;
    }
    ids.push_back(best);
  }
  return ids;
}

bool any_expert(int) {
  return true;
}

/// Groups of equal size whose sum of the best `best` values is largest.
std::vector<int> kept_groups(const Row& values, int groups, int kept, int best) {
  const int size = static_cast<int>(values.size()) / groups;
  Row score;
  for (int g = 0; g < groups; ++g) {
    Row members(values.begin() + g * size, values.begin() + (g + 1) * size);
    std::sort(members.begin(), members.end(), std::greater<>());
    score.push_back(std::accumulate(members.begin(), members.begin() + best, 0.0));
  }
  return largest(score, kept, any_expert);
}

/// One token: its ids and weights.
struct Choice {
  std::vector<int> ids;
  Row weights;
};

/// `scores` of the chosen, divided by their sum where `renormalise`, times `scale`.
Row weights_of(const Row& scores, const std::vector<int>& ids, bool renormalise, double scale) {
  Row weights;
  double sum = 0;
  for (const int id : ids) sum += scores[static_cast<std::size_t>(id)];
  for (const int id : ids) weights.push_back(scale * scores[static_cast<std::size_t>(id)] / (renormalise ? sum : 1.0));
  return weights;
}

Choice deepseek_v3(const Row& x, const Row& bias) {
  const Row s = sigmoid(x);
  Row ranking = s;
  for (std::size_t e = 0; e < ranking.size(); ++e) ranking[e] += bias[e];
  const std::vector<int> kept = kept_groups(ranking, 8, 4, 2);
  const int size = static_cast<int>(x.size()) / 8;
  const std::vector<int> ids =
      largest(ranking, 8, [&](int e) { return std::find(kept.begin(), kept.end(), e / size) != kept.end(); });
  return {ids, weights_of(s, ids, true, 2.5)};
}

/// Renormalised.
Choice scores_and_bias(const Row& s, const Row& bias, int k, double scale) {
  Row ranking = s;
  for (std::size_t e = 0; e < ranking.size(); ++e) ranking[e] += bias[e];
  const std::vector<int> ids = largest(ranking, k, any_expert);
  return {ids, weights_of(s, ids, true, scale)};
}
Choice deepseek_v4(const Row& x, const Row& bias) {
  Row scores;
  for (const double logit : x) scores.push_back(std::sqrt(std::log1p(std::exp(logit))));
  return scores_and_bias(scores, bias, 6, 1.5);
}
Choice minimax_m2(const Row& x, const Row& bias) {
  return scores_and_bias(sigmoid(x), bias, 8, 1.0);
}
Choice kimi_k2(const Row& x, const Row& bias) {
  return scores_and_bias(sigmoid(x), bias, 8, 2.827);
}
Choice glm_4_5(const Row& x, const Row& bias) {
  return scores_and_bias(sigmoid(x), bias, 8, 2.5);
}

Choice deepseek_v2(const Row& x, const Row&) {
  const Row s = softmax(x);
  const std::vector<int> kept = kept_groups(s, 8, 3, 1);
  const int size = static_cast<int>(x.size()) / 8;
  const std::vector<int> ids =
      largest(s, 6, [&](int e) { return std::find(kept.begin(), kept.end(), e / size) != kept.end(); });
  return {ids, weights_of(s, ids, false, 16.0)};
}

Choice longcat_flash(const Row& x, const Row& bias) {
  const Row s = softmax(x);
  Row ranking = s;
  for (std::size_t e = 0; e < ranking.size(); ++e) ranking[e] += bias[e];
  const std::vector<int> ids = largest(ranking, 12, any_expert);
  return {ids, weights_of(s, ids, false, 6.0)};
}

Choice softmax_of_chosen(const Row& x, int k) {
  const std::vector<int> ids = largest(x, k, any_expert);
  Row chosen;
  for (const int id : ids) chosen.push_back(x[static_cast<std::size_t>(id)]);
  return {ids, softmax(chosen)};
}
Choice mixtral(const Row& x, const Row&) {
  return softmax_of_chosen(x, 2);
}
Choice qwen3(const Row& x, const Row&) {
  return softmax_of_chosen(x, 8);
}
Choice gpt_oss(const Row& x, const Row&) {
  return softmax_of_chosen(x, 4);
}

Choice olmoe(const Row& x, const Row&) {
  const std::vector<int> ids = largest(x, 8, any_expert);
  return {ids, weights_of(softmax(x), ids, false, 1.0)};
}
Choice switch_transformer(const Row& x, const Row&) {
  const std::vector<int> ids = largest(x, 1, any_expert);
  return {ids, weights_of(softmax(x), ids, false, 1.0)};
}
Choice llama4(const Row& x, const Row&) {
  const std::vector<int> ids = largest(x, 1, any_expert);
  return {ids, weights_of(sigmoid(x), ids, false, 1.0)};
}

/// coefficient * E * sum_i f_i P_i, f_i = count_i / divisor.
double switch_loss(double coefficient, const std::vector<int>& ids, const std::vector<Row>& probabilities, double divisor) {
  const std::size_t experts = probabilities.front().size();
  double loss = 0;
  for (std::size_t e = 0; e < experts; ++e) {
    const auto count = static_cast<double>(std::count(ids.begin(), ids.end(), static_cast<int>(e)));
    double mean = 0;
    for (const Row& row : probabilities) mean += row[e] / static_cast<double>(probabilities.size());
    loss += coefficient * static_cast<double>(experts) * count / divisor * mean;
  }
  return loss;
}

struct Problem {
  int experts = 0;
  std::vector<float> logits;
  std::vector<float> bias;
  std::vector<Row> rows;
};

Problem problem_of(int experts, std::uint64_t seed) {
  constexpr std::int64_t tokens = 13;
  Problem problem;
  problem.experts = experts;
  testing::Random random(seed);
  problem.logits = random.normals<float>(static_cast<std::size_t>(tokens * experts), 1.5);
  for (std::size_t i = 0; i < problem.logits.size();
       ++i) {  // low ids are favoured, so that no loss is that of a balanced router
    problem.logits[i] -= static_cast<float>(i % static_cast<std::size_t>(experts)) / static_cast<float>(experts);
  }
  problem.bias = random.normals<float>(static_cast<std::size_t>(experts), 0.1);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto first = problem.logits.begin() + t * experts;
    problem.rows.emplace_back(first, first + experts);
  }
  return problem;
}

template <class Router, class Published>
Routed agrees_with(const Router& router, const Published& published, const Problem& problem, bool has_bias) {
  const std::vector<float> no_bias(problem.bias.size(), 0.0f);
  const std::vector<float>& bias = has_bias ? problem.bias : no_bias;
  const Routed routed = run(router, problem.logits, problem.experts, bias);
  std::vector<int> ids;
  Row weights;
  for (const Row& row : problem.rows) {
    const Choice choice = published(row, Row(bias.begin(), bias.end()));
    ids.insert(ids.end(), choice.ids.begin(), choice.ids.end());
    weights.insert(weights.end(), choice.weights.begin(), choice.weights.end());
  }
  CHECK(routed.experts == ids);
  check_close(routed.weights, weights);
  return routed;
}

std::vector<Row> all_softmax(const Problem& problem) {
  std::vector<Row> rows;
  for (const Row& row : problem.rows) rows.push_back(softmax(row));
  return rows;
}

}  // namespace

TEST_CASE("DeepSeekV3 routes as DeepSeek's own gate and Hugging Face's, gradient included") {
  reproduces("deepseek_v3_t9_e256_k8_g8", mb::presets::DeepSeekV3<>{});
  reproduces("deepseek_v3_gradient_t6_e256_k8_g8", mb::presets::DeepSeekV3<>{});
}

TEST_CASE("DeepSeekV3 has 0.0001 of the sequence loss, which Megatron-Core takes from a choice without groups") {
  const golden::Json recording = recorded("sequence_loss_sigmoid_s6_b4_e128_k8");
  const golden::Json& config = recording.at("config");
  golden::Task task = golden::task_of(config, recording.at("inputs"));
  task.sequences = config.at("sequences");
  const golden::Answer answer = answer_of(mb::presets::DeepSeekV3<>{}, task);
  const double factor = 1e-4 / config.at("coefficient").get<double>();
  golden::Json expected = recording.at("expected");
  expected["loss_grad_logits"] = expected.at("grad_logits");
  check_losses(answer, expected, {{"loss", factor}});
}

TEST_CASE("DeepSeekV3 moves its bias as Megatron-Core does at a rate of 0.001") {
  const golden::Json recording = recorded("bias_update_l1_e16");
  REQUIRE(recording.at("config").at("update_rate").get<double>() == 0.001);
  const mb::Bias bias{16};
  const mb::Load load{16};
  for (std::size_t step = 0; step < 4; ++step) {
    const auto counts = recording.at("inputs").at("counts_per_step").at(step).get<std::vector<std::int64_t>>();
    std::copy(counts.begin(), counts.end(), load.data());
    mb::presets::DeepSeekV3<>{}.update(bias.ref(), load.ref(), {}, mb::Host{.threads = 1});
    const auto want = recording.at("expected").at("bias_per_step").at(step).get<std::vector<double>>();
    check_close(std::vector<float>(bias.data(), bias.data() + 16), want, golden::value_tolerance, 1e-3);
  }
}

TEST_CASE("DeepSeekV2 routes as DeepSeek's own gates and has 0.003 of their loss over each sequence") {
  reproduces("deepseek_v2_t9_e160_k6_g8", mb::presets::DeepSeekV2<>{});
  reproduces("deepseek_v2_loss_t10_e160_k6_g8", mb::presets::DeepSeekV2<>{}, {{"loss", 0.003}});
}

TEST_CASE("LongCatFlash routes as Hugging Face's, gradient included, and has no loss") {
  static_assert(mb::presets::LongCatFlash<>::loss_count == 0);
  reproduces("longcat_flash_t4_e768_k12", mb::presets::LongCatFlash<>{});
}

TEST_CASE("LongCatFlash moves the biases of the 512 experts that compute by 0.001 (K_e / (K N) - c / (K T)), K_e = 8") {
  const mb::presets::LongCatFlash<> router;
  const mb::Bias bias{768};
  const mb::Load load{768};
  constexpr double tokens = 1000;
  for (int e = 0; e < 768; ++e) load.data()[e] = e % 2 == 0 ? 30 : 0;
  load.data()[767] = 12000 - 384 * 30;
  router.update(bias.ref(), load.ref(), {}, mb::Host{.threads = 1});
  for (int e = 0; e < 768; ++e) {
    const auto moved = static_cast<double>(bias.data()[e]);
    if (e >= 512) {
      CHECK(moved == 0);
      continue;
    }
    const double share = e % 2 == 0 ? 30 / (12 * tokens) : 0.0;
    CHECK(moved == doctest::Approx(1e-3 * (8.0 / (12 * 512) - share)).epsilon(1e-6).scale(0));
  }
}

TEST_CASE("Mixtral routes as Hugging Face's and has 0.02 of its loss") {
  reproduces("mixtral_t20_e8_k2", mb::presets::Mixtral<>{}, {{"loss", 0.02}});
  reproduces("mixtral_t48_e16_k2", mb::presets::Mixtral<>{}, {{"loss", 0.02}});
}

TEST_CASE("Qwen3 routes as Hugging Face's and has 0.001 of its loss, which is K times the published one") {
  reproduces("qwen3_t9_e128_k8", mb::presets::Qwen3<>{}, {{"loss", 0.001 / 8}});
}

TEST_CASE("Qwen3 has 0.001 of the global-batch loss of Qiu et al., ranks and micro-batches counted so far") {
  const golden::Json recording = recorded("global_batch_loss_softmax_r4_m4_e128_k8");
  for (golden::Json expected : recording.at("expected")) {
    golden::Task task = golden::task_of(recording.at("config"), recording.at("inputs"));
    golden::fill_global_batch(task, recording.at("inputs"), expected);
    const golden::Answer answer = answer_of(mb::presets::Qwen3<>{}, task);
    const double factor = 0.001 / recording.at("config").at("coefficient").get<double>();
    expected["loss_grad_logits"] = expected.at("grad_logits");
    check_losses(answer, expected, {{"loss", factor}});
  }
}

TEST_CASE("GptOss routes as Hugging Face's, gradient included, and has no loss") {
  static_assert(mb::presets::GptOss<>::loss_count == 0);
  reproduces("gpt_oss_t12_e32_k4", mb::presets::GptOss<>{});
  reproduces("gpt_oss_t8_e128_k4", mb::presets::GptOss<>{});
}

TEST_CASE(
    "Olmoe routes as Hugging Face's and has 0.01 and 0.001 of the losses it was trained with, where the second is divided "
    "by K") {
  reproduces("olmoe_t12_e64_k8", mb::presets::Olmoe<>{}, {{"loss", 0.01}, {"z_loss", 0.001 * 8}});
}

TEST_CASE("Switch routes as Hugging Face's top-1 router and has 0.01 of its loss; its z-loss is ZLoss") {
  for (const char* name : {"switch_t20_e8_k1", "switch_t24_e16_k1", "switch_t9_e128_k1"}) {
    const mb::presets::Switch<> router;
    reproduces(name, router, {{"loss", 0.01}});
    reproduces(name, router.with(mb::Combine{router.balancer, mb::ZLoss{.coefficient = 1e-3f}}),
               {{"loss", 0.01}, {"z_loss", 0.001}});
  }
}

TEST_CASE("Switch with a capacity drops the tokens that Hugging Face's router drops: the last ones") {
  for (const char* name : {"switch_t20_e8_k1", "switch_t24_e16_k1", "switch_t9_e128_k1"}) {
    CAPTURE(name);
    const golden::Json recording = recorded(name);
    const golden::Json& config = recording.at("config");
    const double mean = config.at("tokens").get<double>() / config.at("experts").get<double>();
    const mb::presets::Switch<> published;
    const mb::WithCapacity<mb::TopK<1>> selection{
        .capacity_factor = (config.at("capacity").get<double>() - 0.5) / mean,  // rounded up to the capacity
        .drop = mb::DropBy::position,
        .selection = published.top_k};
    testing::Inputs inputs;
    inputs.tokens = config.at("tokens");
    inputs.experts = config.at("experts");
    inputs.logits = recording.at("inputs").at("logits").get<std::vector<double>>();
    const auto outcome =
        testing::route(testing::HostEngine{}, mb::Router{published.scoring, selection, mb::NoBalancer{}}, inputs);
    const auto experts = recording.at("expected").at("experts_within_capacity").get<std::vector<int>>();
    CHECK(outcome.experts == experts);
    CHECK(std::count(experts.begin(), experts.end(), -1) > 0);
  }
}

TEST_CASE("over a batch of sequences Hugging Face's Switch loss is SequenceLoss") {
  const auto router = mb::presets::Switch<>{}.with(mb::SequenceLoss{.coefficient = 1e-2f});
  reproduces("switch_t20_e8_k1", router, {{"sequence_loss", 0.01}});
  reproduces("switch_t24_e16_k1", router, {{"sequence_loss", 0.01}});
}

TEST_CASE("Llama4 routes as Hugging Face's, gradient included, and has no loss") {
  static_assert(mb::presets::Llama4<>::loss_count == 0);
  for (const char* name : {"llama4_t20_e8_k1", "llama4_t24_e16_k1", "llama4_t9_e128_k1"})
    reproduces(name, mb::presets::Llama4<>{});
}

TEST_CASE("every preset routes as its model's publication says") {
  agrees_with(mb::presets::DeepSeekV3<>{}, deepseek_v3, problem_of(256, 1), true);
  agrees_with(mb::presets::DeepSeekV2<>{}, deepseek_v2, problem_of(160, 2), false);
  agrees_with(mb::presets::DeepSeekV4<>{}, deepseek_v4, problem_of(256, 14), true);
  agrees_with(mb::presets::MiniMaxM2<>{}, minimax_m2, problem_of(256, 15), true);
  agrees_with(mb::presets::KimiK2<>{}, kimi_k2, problem_of(384, 12), true);
  agrees_with(mb::presets::LongCatFlash<>{}, longcat_flash, problem_of(768, 11), true);
  agrees_with(mb::presets::GptOss<>{}, gpt_oss, problem_of(32, 3), false);
  agrees_with(mb::presets::Llama4<>{}, llama4, problem_of(16, 4), false);
}

TEST_CASE("presets with a loss have the published coefficient and scale") {
  const Problem mixtral_problem = problem_of(8, 5);
  const Routed mixtral_routed = agrees_with(mb::presets::Mixtral<>{}, mixtral, mixtral_problem, false);
  CHECK(
      mixtral_routed.loss ==
      doctest::Approx(switch_loss(0.02, mixtral_routed.experts, all_softmax(mixtral_problem), 13.0)).epsilon(1e-5).scale(0));

  const Problem qwen_problem = problem_of(128, 6);
  const Routed qwen_routed = agrees_with(mb::presets::Qwen3<>{}, qwen3, qwen_problem, false);
  CHECK(
      qwen_routed.loss ==
      doctest::Approx(switch_loss(0.001, qwen_routed.experts, all_softmax(qwen_problem), 8 * 13.0)).epsilon(1e-5).scale(0));

  const Problem olmoe_problem = problem_of(64, 7);
  const Routed olmoe_routed = agrees_with(mb::presets::Olmoe<>{}, olmoe, olmoe_problem, false);
  double z = 0;
  for (const Row& row : olmoe_problem.rows) {
    double sum = 0;
    for (const double x : row) sum += std::exp(x);
    z += std::log(sum) * std::log(sum) / 13.0;
  }
  CHECK(olmoe_routed.loss ==
        doctest::Approx(switch_loss(0.01, olmoe_routed.experts, all_softmax(olmoe_problem), 8 * 13.0) + 0.001 * z)
            .epsilon(1e-5)
            .scale(0));

  const Problem switch_problem = problem_of(64, 8);
  const Routed switch_routed = agrees_with(mb::presets::Switch<>{}, switch_transformer, switch_problem, false);
  CHECK(switch_routed.loss ==
        doctest::Approx(switch_loss(0.01, switch_routed.experts, all_softmax(switch_problem), 13.0)).epsilon(1e-5).scale(0));

  const Problem glm_problem = problem_of(160, 13);
  const Routed glm_routed = agrees_with(mb::presets::Glm45<>{}, glm_4_5, glm_problem, true);
  std::vector<Row> shares;
  for (const Row& row : glm_problem.rows) {
    shares.push_back(sigmoid(row));
    const double sum = std::accumulate(shares.back().begin(), shares.back().end(), 0.0);
    for (double& share : shares.back()) share /= sum;
  }
  CHECK(glm_routed.loss == doctest::Approx(switch_loss(1e-4, glm_routed.experts, shares, 8 * 13.0)).epsilon(1e-5).scale(0));

  const Problem v2_problem = problem_of(160, 9);
  const Routed v2_routed = run(mb::presets::DeepSeekV2<>{}, v2_problem.logits, 160);
  CHECK(v2_routed.loss ==
        doctest::Approx(switch_loss(0.003, v2_routed.experts, all_softmax(v2_problem), 6 * 13.0)).epsilon(1e-5).scale(0));
}

TEST_CASE("DeepSeekV4, MiniMaxM2, KimiK2 and GLM-4.5 route as Hugging Face's, gradient included") {
  reproduces("deepseek_v4_t6_e256_k6", mb::presets::DeepSeekV4<>{});
  reproduces("minimax_m2_t6_e256_k8", mb::presets::MiniMaxM2<>{});
  reproduces("kimi_k2_t5_e384_k8", mb::presets::KimiK2<>{});
  reproduces("glm_4_5_t8_e160_k8", mb::presets::Glm45<>{});
}

TEST_CASE("DeepSeekV4, MiniMaxM2, KimiK2 and GLM-4.5 move their biases by 0.001") {
  const auto moves = [](const auto& router) {
    const mb::Bias bias{384, 1};
    const mb::Load load{384, 1};
    for (int e = 0; e < 384; ++e) load.ref().counts[e] = e % 3;  // 384 in all, 1 on the mean
    router.update(bias.ref(), load.ref(), {}, mb::Host{.threads = 1});
    for (int e = 0; e < 384; ++e) {
      if (bias.ref().data[e] != (e % 3 == 0 ? 1e-3f : e % 3 == 1 ? 0.0f : -1e-3f)) return false;
    }
    return true;
  };
  CHECK(moves(mb::presets::DeepSeekV4<>{}));
  CHECK(moves(mb::presets::MiniMaxM2<>{}));
  CHECK(moves(mb::presets::KimiK2<>{}));
  CHECK(moves(mb::presets::Glm45<>{}));
  static_assert(
      mb::presets::DeepSeekV4<>::loss_count + mb::presets::MiniMaxM2<>::loss_count + mb::presets::KimiK2<>::loss_count == 0);
}

TEST_CASE("DeepSeekV3 moves its bias by 0.001 and has the sequence loss at 0.0001") {
  const mb::presets::DeepSeekV3<> router;
  const Problem problem = problem_of(256, 10);
  std::vector<Row> probabilities;
  std::vector<int> plain;  // what eq. (18) counts: neither bias nor groups
  for (const Row& row : problem.rows) {
    Row p = sigmoid(row);
    std::vector<int> ids(256);
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(),
                     [&](auto a, auto b) { return p[static_cast<std::size_t>(a)] > p[static_cast<std::size_t>(b)]; });
    plain.insert(plain.end(), ids.begin(), ids.begin() + 8);
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= sum;
    probabilities.push_back(p);
  }
  const Routed routed = run(router, problem.logits, 256, problem.bias);
  CHECK(plain != routed.experts);
  CHECK(routed.loss == doctest::Approx(switch_loss(1e-4, plain, probabilities, 8 * 13.0)).epsilon(1e-5).scale(0));

  const mb::Bias bias{256};
  const mb::Load load{256};
  for (int e = 0; e < 256; ++e) load.data()[e] = e < 128 ? 0 : 2;
  router.update(bias.ref(), load.ref(), {}, mb::Host{.threads = 1});
  CHECK(bias.data()[0] == 1e-3f);
  CHECK(bias.data()[255] == -1e-3f);
}

TEST_CASE("with changes one policy and keeps the others and their options") {
  mb::presets::DeepSeekV3<> changed;
  changed.top_k.scaling_factor = 1.0f;
  static_assert(std::is_same_v<decltype(changed.with(mb::NoBalancer{})), mb::presets::DeepSeekV3<mb::NoBalancer>>);
  changed.top_k.groups_kept = 8;
  CHECK(changed.with(mb::NoBalancer{}).top_k.scaling_factor == 1.0f);
  CHECK(changed.with(mb::LossFreeBias{.frozen = true}).top_k.groups_kept == 8);
  CHECK(changed.with(mb::ThreadSync::group(1).front()).top_k.groups_kept == 8);
  CHECK(changed.with(mb::ThreadSync::group(1).front()).balancer.first.update_rate == 1e-3f);
  CHECK(mb::presets::DeepSeekV3<>{}.with(mb::NoBalancer{}).top_k.scaling_factor == 2.5f);
  CHECK(mb::presets::DeepSeekV3<>{}.with(mb::NoBalancer{}).saved_bytes({.tokens = 1, .experts = 256}) == 0);

  const mb::ThreadSync sync = mb::ThreadSync::group(2).front();  // has no default constructor
  const auto distributed = mb::presets::Qwen3<>{}.with(sync);
  static_assert(std::is_same_v<decltype(distributed), const mb::presets::Qwen3<mb::GlobalBatchLoss, mb::ThreadSync>>);
  CHECK(distributed.sync.ranks() == 2);
  CHECK(distributed.balancer.coefficient == 1e-3f);
}

TEST_CASE("kernels may take what a preset is made of") {
  static_assert(std::is_trivially_copyable_v<mb::presets::DeepSeekV3<>>);
  static_assert(std::is_base_of_v<mb::Router<mb::Softmax, mb::TopK<2>, mb::AuxLoss>, mb::presets::Mixtral<>>);
}
