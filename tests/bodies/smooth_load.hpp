// The smooth load and its loss: held to an oracle that takes each expert's rivals as the formula says, and to what the formula means, a choice
// with noise that is drawn again; and the same bits whatever runs them.
#pragma once

#include "../elements.hpp"
#include "../engine_host.hpp"
#include "../random.hpp"
#include "overlaps.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace testing {

using mb::WinningLogit;

/// A batch. Rows are `padding` elements longer than E, all NaN.
struct ChoiceCase {
  std::int64_t tokens = 0;
  std::int64_t experts = 1;
  int k = 1;
  std::vector<double> logits{};
  std::vector<double> noisy{};
  std::vector<double> scales{};  ///< empty = left out
  float scale = 1.0f;
  WinningLogit winning = WinningLogit::best_of_others;
  std::vector<std::uint8_t> active{};
  std::int64_t tokens_on_device = -1;  ///< -1 = left out
  mb::DataType type = mb::DataType::float32;
  std::int64_t padding = 0;

  [[nodiscard]] std::size_t at(std::int64_t token, std::int64_t expert) const {
    return static_cast<std::size_t>(token * experts + expert);
  }
  [[nodiscard]] bool counts(std::int64_t token) const {
    return (active.empty() || active[static_cast<std::size_t>(token)] != 0) &&
           (tokens_on_device < 0 || token < tokens_on_device);
  }
};

/// Everything in long double, one expert at a time, from the list of those that it has to beat.
struct SmoothLoadOracle {
  using Wide = long double;
  std::vector<Wide> load;
  Wide loss = 0;  ///< with coefficient 1
  std::vector<Wide> grad_load;

  explicit SmoothLoadOracle(const ChoiceCase& given) : load(static_cast<std::size_t>(given.experts), 0) {
    for (std::int64_t t = 0; t < given.tokens; ++t) {
      if (!given.counts(t)) continue;
      for (std::int64_t e = 0; e < given.experts; ++e) load[static_cast<std::size_t>(e)] += probability(given, t, e);
    }
    Wide sum = 0, squares = 0;
    for (const Wide x : load) sum += x;
    const Wide experts = static_cast<Wide>(given.experts), mean = sum / experts;
    for (const Wide x : load) squares += (x - mean) * (x - mean);
    grad_load.assign(load.size(), 0);
    if (sum == 0) return;
    loss = squares / experts / (mean * mean);
    // Of E sum l^2 / (sum l)^2 - 1.
    Wide of_squares = 0;
    for (const Wide x : load) of_squares += x * x;
    for (std::size_t e = 0; e < load.size(); ++e)
      grad_load[e] = experts * (2 * load[e] / (sum * sum) - 2 * of_squares / (sum * sum * sum));
  }

  static bool takes_part(const ChoiceCase& given, std::int64_t t, std::int64_t e) {
    return std::isfinite(given.logits[given.at(t, e)]) && std::isfinite(given.noisy[given.at(t, e)]);
  }
  static Wide probability(const ChoiceCase& given, std::int64_t t, std::int64_t e) {
    if (!takes_part(given, t, e)) return 0;
    std::vector<Wide> rivals;
    int better = 0;
    const double own = given.noisy[given.at(t, e)];
    for (std::int64_t other = 0; other < given.experts; ++other) {
      if (!takes_part(given, t, other)) continue;
      const double value = given.noisy[given.at(t, other)];
      better += other != e && (value > own || (value == own && other < e)) ? 1 : 0;
      if (other != e || given.winning == WinningLogit::last_chosen) rivals.push_back(static_cast<Wide>(value));
    }
    if (rivals.size() < static_cast<std::size_t>(given.k)) return 1;
    std::sort(rivals.begin(), rivals.end(), std::greater<>());
    Wide sigma = static_cast<Wide>(given.scale);
    if (!given.scales.empty()) sigma *= static_cast<Wide>(given.scales[given.at(t, e)]);
    if (!(sigma > 0) || !std::isfinite(sigma)) return better < given.k ? 1 : 0;
    const Wide distance = static_cast<Wide>(given.logits[given.at(t, e)]) - rivals[static_cast<std::size_t>(given.k - 1)];
    return std::erfc(-distance / sigma / std::sqrt(2.0L)) / 2;
  }

  /// sum of upstream_e load_e, its derivative by one number of the batch: by central differences of both sides of it.
  template <class Member>
  static Wide derivative(const ChoiceCase& given, const std::vector<Wide>& upstream, Member ChoiceCase::*member,
                         std::int64_t t, std::int64_t e) {
    constexpr double step = 0x1p-13;
    if (!given.counts(t)) return 0;
    const auto value = [&](double change) {
      ChoiceCase moved = given;
      (moved.*member)[given.at(t, e)] += change;
      Wide sum = 0;
      for (std::int64_t i = 0; i < given.experts; ++i)
        sum += upstream[static_cast<std::size_t>(i)] * probability(moved, t, i);
      return sum;
    };
    // Of the fourth order.
    return (8 * (value(step) - value(-step)) - (value(2 * step) - value(-2 * step))) / (12 * static_cast<Wide>(step));
  }
};

struct Gradients {
  std::vector<double> logits, noisy, scales;
  bool operator==(const Gradients&) const = default;
};

struct LoadAnswer {
  std::vector<std::int64_t> load;
  float loss = 77;
  std::vector<float> grad_load;
  Gradients grad;
  bool operator==(const LoadAnswer&) const = default;

  [[nodiscard]] double tokens_of(std::size_t e) const {
    return static_cast<double>(load[e]) / static_cast<double>(mb::smooth_load_unit);
  }
};

/// All three calls, one behind the other.
template <class Engine>
LoadAnswer load_of(const Engine& engine, const ChoiceCase& given, float coefficient = 1.0f, float grad_loss = 1.0f) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto padded = [&](const std::vector<double>& values) {
    std::vector<double> rows;
    for (std::int64_t t = 0; t < given.tokens && !values.empty(); ++t) {
      const auto first = values.begin() + t * given.experts;
      rows.insert(rows.end(), first, first + given.experts);
      rows.insert(rows.end(), static_cast<std::size_t>(given.padding), nan);
    }
    return encoded(given.type, rows);
  };
  using Raw = typename Engine::template Array<std::uint8_t>;
  Raw logits(engine, padded(given.logits)), noisy(engine, padded(given.noisy)), scales(engine, padded(given.scales));
  Raw active(engine, given.active);
  typename Engine::template Array<std::int64_t> tokens(engine, {given.tokens_on_device});
  const auto count = static_cast<std::size_t>(given.experts);
  typename Engine::template Array<std::int64_t> load(engine, std::vector<std::int64_t>(count, -77));
  typename Engine::template Array<float> grad_load(engine, std::vector<float>(count, 77.0f));
  typename Engine::template Array<float> loss(engine, {77.0f}), upstream(engine, {grad_loss});
  const auto view = [&](Raw& raw) {
    return mb::AnyMatrix(raw.data(), given.type, given.tokens, given.experts, given.experts + given.padding);
  };
  mb::NoisyChoice choice{.logits = view(logits), .noisy = view(noisy), .top_k = given.k, .scale = given.scale};
  choice.winning = given.winning;
  choice.active = active.data();
  choice.tokens_on_device = given.tokens_on_device < 0 ? nullptr : tokens.data();
  if (!given.scales.empty()) choice.scales = view(scales);
  mb::smooth_load({.choice = choice, .load = {load.data(), given.experts}}, {}, engine.place());
  mb::load_loss({.load = {load.data(), given.experts},
                 .grad_load = {grad_load.data(), given.experts},
                 .coefficient = coefficient,
                 .loss = loss.data()},
                {}, engine.place());
  const std::vector<double> before(given.logits.size() + static_cast<std::size_t>(given.tokens * given.padding), 77.0);
  Raw grad_logits(engine, encoded(given.type, before)), grad_noisy(engine, encoded(given.type, before)),
      grad_scales(engine, encoded(given.type, before));
  mb::SmoothLoadBackwardArgs backward{.choice = choice, .grad_load = {grad_load.data(), given.experts}};
  backward.grad_logits = view(grad_logits);
  backward.grad_noisy = view(grad_noisy);
  if (!given.scales.empty()) backward.grad_scales = view(grad_scales);
  backward.grad_loss = upstream.data();
  mb::smooth_load_backward(backward, {}, engine.place());
  engine.wait();
  // Without padding, which must be as it was.
  const auto gradient = [&](const Raw& raw) {
    const std::vector<double> rows = decoded(given.type, raw.values());
    std::vector<double> values;
    const std::int64_t stride = given.experts + given.padding;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(rows.size()); ++i) {
      const double value = rows[static_cast<std::size_t>(i)];
      if (i % stride < given.experts)
        values.push_back(value);
      else
        CHECK(value == 77.0);
    }
    return values;
  };
  LoadAnswer answer{load.values(), loss.values()[0], grad_load.values(), {gradient(grad_logits), gradient(grad_noisy), {}}};
  if (!given.scales.empty()) answer.grad.scales = gradient(grad_scales);
  return answer;
}

/// Normal logits, and numbers on them of each expert's own sigma. All are float32 numbers.
inline ChoiceCase choice_case(std::uint64_t seed, std::int64_t tokens, std::int64_t experts, int k, bool has_scales,
                              double deviation = 1.0) {
  Random random(seed);
  ChoiceCase result{.tokens = tokens, .experts = experts, .k = k, .scale = 0.75f};
  const auto rounded = [](double x) { return static_cast<double>(static_cast<float>(x)); };
  const std::vector<double> means = random.normals<double>(static_cast<std::size_t>(experts), 0.5);
  for (std::int64_t i = 0; i < tokens * experts; ++i) {
    const double scale = has_scales ? rounded(0.2 + random.uniform()) : 1.0;
    result.logits.push_back(rounded(deviation * random.normal() + means[static_cast<std::size_t>(i % experts)]));
    result.noisy.push_back(rounded(result.logits.back() + 0.75 * scale * random.normal()));
    if (has_scales) result.scales.push_back(scale);
  }
  return result;
}

inline void check_load(const LoadAnswer& got, const SmoothLoadOracle& want, double tokens) {
  double largest = 0;
  for (const auto g : want.grad_load) largest = std::max(largest, std::abs(static_cast<double>(g)));
  for (std::size_t e = 0; e < want.load.size(); ++e) {
    CAPTURE(e);
    CHECK(std::abs(got.tokens_of(e) - static_cast<double>(want.load[e])) <= 1.8e-7 * tokens);
    CHECK(std::abs(static_cast<double>(got.grad_load[e]) - static_cast<double>(want.grad_load[e])) <=
          1e-5 * largest + 1e-12);
  }
  CHECK(static_cast<double>(got.loss) == doctest::Approx(static_cast<double>(want.loss)).epsilon(1e-5).scale(1e-6));
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load: the sum of each expert's probabilities to win against its rivals, and its loss",
                          Engine, smooth_load_values) {
  struct Size {
    std::int64_t tokens, experts;
    int k;
  };
  for (const Size size : {Size{1, 1, 1},
                          {7, 1, 1},
                          {5, 2, 1},
                          {6, 2, 2},
                          {33, 8, 2},
                          {9, 31, 4},
                          {20, 32, 1},
                          {11, 33, 8},
                          {12, 60, 6},
                          {5, 128, 128},
                          {5, 129, 40},
                          {4, 300, 8}}) {
    for (const WinningLogit winning : {WinningLogit::best_of_others, WinningLogit::last_chosen}) {
      for (const bool has_scales : {false, true}) {
        CAPTURE(size.tokens);
        CAPTURE(size.experts);
        CAPTURE(size.k);
        CAPTURE(has_scales);
        CAPTURE(static_cast<int>(winning));
        ChoiceCase given = choice_case(400, size.tokens, size.experts, size.k, has_scales);
        given.winning = winning;
        check_load(load_of(Engine{}, given), SmoothLoadOracle(given), static_cast<double>(size.tokens));
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load: how often an expert is chosen when its own noise is drawn again", Engine,
                          smooth_load_meaning) {
  constexpr int draws = 20000;
  constexpr std::int64_t experts = 10;
  for (const int k : {1, 3}) {
    const ChoiceCase given = choice_case(401, 1, experts, k, true);
    const LoadAnswer got = load_of(Engine{}, given);
    Random random(402);
    for (std::size_t e = 0; e < experts; ++e) {
      int chosen = 0;
      for (int draw = 0; draw < draws; ++draw) {
        const double own = given.logits[e] + 0.75 * given.scales[e] * random.normal();
        int better = 0;
        for (std::size_t other = 0; other < experts; ++other) better += other != e && given.noisy[other] > own ? 1 : 0;
        chosen += better < k ? 1 : 0;
      }
      const double probability = got.tokens_of(e);
      const double deviation = std::sqrt(probability * (1 - probability) / draws);
      CAPTURE(e);
      CHECK(std::abs(static_cast<double>(chosen) / draws - probability) <= 4.5 * deviation + 1e-4);
    }
  }
}

inline void check_gradient(const ChoiceCase& given, const std::vector<double>& got, std::vector<double> ChoiceCase::*member,
                           const std::vector<long double>& upstream, double tolerance) {
  std::vector<double> want;
  double largest = 0;
  for (std::int64_t t = 0; t < given.tokens; ++t) {
    for (std::int64_t e = 0; e < given.experts; ++e) {
      want.push_back(static_cast<double>(SmoothLoadOracle::derivative(given, upstream, member, t, e)));
      largest = std::max(largest, std::abs(want.back()));
    }
  }
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(got[i] - want[i]) <= tolerance * std::max(largest, 1e-12));
  }
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load_backward: the derivatives of the loss by logits, noisy logits and scales", Engine,
                          smooth_load_gradients) {
  struct Size {
    std::int64_t tokens, experts;
    int k;
  };
  constexpr float coefficient = 0.5f, grad_loss = 3.0f;
  for (const Size size : {Size{3, 1, 1}, {5, 2, 1}, {4, 2, 2}, {6, 9, 2}, {3, 32, 5}, {3, 45, 1}, {2, 70, 7}}) {
    for (const WinningLogit winning : {WinningLogit::best_of_others, WinningLogit::last_chosen}) {
      for (const bool has_scales : {false, true}) {
        CAPTURE(size.experts);
        CAPTURE(size.k);
        CAPTURE(has_scales);
        CAPTURE(static_cast<int>(winning));
        ChoiceCase given = choice_case(403, size.tokens, size.experts, size.k, has_scales);
        given.winning = winning;
        const LoadAnswer got = load_of(Engine{}, given, coefficient, grad_loss);
        std::vector<long double> upstream = SmoothLoadOracle(given).grad_load;
        for (long double& x : upstream) x *= static_cast<long double>(coefficient * grad_loss);
        check_gradient(given, got.grad.logits, &ChoiceCase::logits, upstream, 5e-6);
        check_gradient(given, got.grad.noisy, &ChoiceCase::noisy, upstream, 5e-6);
        if (has_scales) check_gradient(given, got.grad.scales, &ChoiceCase::scales, upstream, 5e-6);
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load: the same bits from one thread, from several, and from any other engine", Engine,
                          smooth_load_bits) {
  for (const auto& [tokens, experts, k] : {std::tuple<std::int64_t, std::int64_t, int>{700, 200, 8}, {3000, 31, 2}}) {
    for (const bool has_scales : {false, true}) {
      ChoiceCase given = choice_case(404, tokens, experts, k, has_scales, 2.0);
      given.winning = has_scales ? WinningLogit::best_of_others : WinningLogit::last_chosen;
      const LoadAnswer one = load_of(HostEngine{.threads = 1}, given);
      CHECK(load_of(Engine{}, given) == one);
      CHECK(load_of(HostEngine{.threads = 2}, given) == one);
      CHECK(load_of(HostEngine{.threads = 7}, given) == one);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load: any type that holds the numbers, and any stride, has the same load", Engine,
                          smooth_load_types) {
  Random random(405);
  ChoiceCase given{.tokens = 30, .experts = 43, .k = 3, .scale = 0.5f};
  for (int i = 0; i < 30 * 43; ++i) {
    given.logits.push_back(random.integer(-60, 60) / 8.0);
    given.noisy.push_back(given.logits.back() + random.integer(-8, 8) / 8.0);
    given.scales.push_back(random.integer(1, 16) / 8.0);
  }
  const LoadAnswer want = load_of(HostEngine{}, given);
  for (const mb::DataType type :
       {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16, mb::DataType::float64}) {
    if (type == mb::DataType::float64 && !Engine::has_float64) continue;
    CAPTURE(static_cast<int>(type));
    for (const std::int64_t padding : {0, 1, 5}) {
      given.type = type;
      given.padding = padding;
      const LoadAnswer got = load_of(Engine{}, given);
      if (type == mb::DataType::float64) {
        check_load(got, SmoothLoadOracle(given), 30);
        continue;
      }
      CHECK(got.load == want.load);
      CHECK(got.loss == want.loss);
      const auto rounds_to = [&](const std::vector<double>& gradients, const std::vector<double>& exact) {
        CHECK(gradients == decoded(type, encoded(type, exact)));
      };
      rounds_to(got.grad.logits, want.grad.logits);
      rounds_to(got.grad.noisy, want.grad.noisy);
      rounds_to(got.grad.scales, want.grad.scales);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load: padding, and logits that are no numbers, take no part", Engine,
                          smooth_load_padding) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  constexpr std::int64_t tokens = 23, experts = 37;
  const ChoiceCase kept = choice_case(406, tokens, experts, 4, true);
  const LoadAnswer want = load_of(Engine{}, kept);
  // Padding rows of any content between the others, some by `active` and some behind tokens_on_device.
  ChoiceCase padded{.tokens = 2 * tokens + 3, .experts = experts, .k = 4, .scale = 0.75f, .tokens_on_device = 2 * tokens};
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double filler = t % 3 == 0 ? nan : t % 3 == 1 ? inf : 5.0 * static_cast<double>(t);
    const auto add_rows = [&](std::vector<double>& to, const std::vector<double>& from) {
      to.insert(to.end(), from.begin() + t * experts, from.begin() + (t + 1) * experts);
      to.insert(to.end(), experts, filler);
    };
    add_rows(padded.logits, kept.logits);
    add_rows(padded.noisy, kept.noisy);
    add_rows(padded.scales, kept.scales);
    padded.active.push_back(1);
    padded.active.push_back(0);
  }
  for (std::vector<double>* const rows : {&padded.logits, &padded.noisy, &padded.scales})
    rows->insert(rows->end(), 3 * experts, 4.0);
  padded.active.insert(padded.active.end(), 3, std::uint8_t{1});
  const LoadAnswer got = load_of(Engine{}, padded);
  CHECK(got.load == want.load);
  CHECK(got.loss == want.loss);
  CHECK(got.grad_load == want.grad_load);
  for (std::int64_t t = 0; t < padded.tokens; ++t) {
    for (std::int64_t e = 0; e < experts; ++e) {
      const bool counts = padded.counts(t);
      const std::size_t at = padded.at(t, e), of_kept = kept.at(t / 2, e);
      CHECK(got.grad.logits[at] == (counts ? want.grad.logits[of_kept] : 0.0));
      CHECK(got.grad.noisy[at] == (counts ? want.grad.noisy[of_kept] : 0.0));
      CHECK(got.grad.scales[at] == (counts ? want.grad.scales[of_kept] : 0.0));
    }
  }
  // Single numbers of either matrix; token 5 has fewer than K left, token 6 K, token 7 none.
  for (const double value : {-inf, inf, nan}) {
    CAPTURE(value);
    ChoiceCase holes = kept;
    for (std::size_t i = 0; i < holes.logits.size(); ++i) {
      const auto t = static_cast<std::int64_t>(i) / experts, e = static_cast<std::int64_t>(i) % experts;
      const bool is_hole = t == 5 ? e >= 3 : t == 6 ? e < experts - 4 : t == 7 || i % 11 == 3;
      if (is_hole) (i % 2 == 0 ? holes.logits : holes.noisy)[i] = value;
    }
    const LoadAnswer with_holes = load_of(Engine{}, holes);
    const SmoothLoadOracle oracle(holes);
    check_load(with_holes, oracle, tokens);
    for (std::size_t i = 0; i < holes.logits.size(); ++i) {
      const bool is_hole = !std::isfinite(holes.logits[i]) || !std::isfinite(holes.noisy[i]);
      CHECK(std::isfinite(with_holes.grad.logits[i]));
      CHECK(std::isfinite(with_holes.grad.scales[i]));
      if (is_hole) {
        CHECK(with_holes.grad.logits[i] == 0.0);
        CHECK(with_holes.grad.noisy[i] == 0.0);
        CHECK(with_holes.grad.scales[i] == 0.0);
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load: no token, one expert, all experts chosen, as many as may be", Engine,
                          smooth_load_corners) {
  const Engine engine;
  const LoadAnswer nothing = load_of(engine, ChoiceCase{.tokens = 0, .experts = 6, .k = 2});
  CHECK(nothing.load == std::vector<std::int64_t>(6, 0));
  CHECK(nothing.loss == 0.0f);
  CHECK(nothing.grad_load == std::vector<float>(6, 0.0f));
  ChoiceCase inactive = choice_case(407, 2, 6, 2, true);
  inactive.active = {0, 0};
  const LoadAnswer none = load_of(engine, inactive);
  CHECK(none.load == nothing.load);
  CHECK(none.loss == 0.0f);
  CHECK(none.grad == Gradients{std::vector<double>(12, 0), std::vector<double>(12, 0), std::vector<double>(12, 0)});
  // Who is chosen whatever the noise has probability 1: no gradient.
  for (const std::int64_t experts : {1, 5, 32, 40}) {
    ChoiceCase all = choice_case(408, 3, experts, static_cast<int>(experts), true);
    const LoadAnswer got = load_of(engine, all);
    const auto zeros = std::vector<double>(all.logits.size(), 0);
    CHECK(got.load == std::vector<std::int64_t>(static_cast<std::size_t>(experts), 3 * mb::smooth_load_unit));
    CHECK(got.loss == 0.0f);
    CHECK(got.grad == Gradients{zeros, zeros, zeros});
    // By the rule of last_chosen one of them has to beat its own noisy logit.
    all.winning = WinningLogit::last_chosen;
    check_load(load_of(engine, all), SmoothLoadOracle(all), 3);
  }
  ChoiceCase many = choice_case(409, 3, mb::max_experts, 32, true);
  const LoadAnswer most = load_of(engine, many);
  check_load(most, SmoothLoadOracle(many), 3);
  CHECK(most == load_of(HostEngine{.threads = 3}, many));
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load: without noise the chosen have probability 1, far from their rivals experts 0 or 1",
                          Engine, smooth_load_extremes) {
  const Engine engine;
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (const double scale : {0.0, -1.0, nan, inf, 1e-30, 1e-42, 1e30}) {
    CAPTURE(scale);
    ChoiceCase given = choice_case(410, 8, 12, 3, true);
    for (std::size_t i = 0; i < given.scales.size(); i += 2) given.scales[i] = scale;
    if (scale == 1e-42) given.scales[0] = static_cast<double>(1e-42f);
    const LoadAnswer got = load_of(engine, given);
    check_load(got, SmoothLoadOracle(given), 8);
    for (const double gradient : got.grad.scales) CHECK(std::isfinite(gradient));
    for (const double gradient : got.grad.logits) CHECK(std::isfinite(gradient));
    for (const double gradient : got.grad.noisy) CHECK(std::isfinite(gradient));
  }
  const double largest = static_cast<double>(std::numeric_limits<float>::max());
  ChoiceCase far{.tokens = 2, .experts = 3, .k = 1, .logits = {largest / 2, -largest, 0, -largest, largest, 1}};
  far.noisy = {-largest, largest, 0, -largest, largest, 1};
  const LoadAnswer got = load_of(engine, far);
  check_load(got, SmoothLoadOracle(far), 2);
  for (const double gradient : got.grad.logits) CHECK(gradient == 0.0);
  // Ties: the smaller id is chosen and is the one to beat; gradients go to it.
  ChoiceCase ties{.tokens = 1, .experts = 5, .k = 2, .logits = {0.5, 0.25, 1, 0.75, 0}, .noisy = {1, 1, 2, 1, 0}};
  const LoadAnswer tied = load_of(engine, ties);
  check_load(tied, SmoothLoadOracle(ties), 1);
  const auto negative_sum = [&](const std::vector<std::size_t>& which) {
    double sum = 0;
    for (const std::size_t e : which) sum += tied.grad.logits[e];
    return doctest::Approx(-sum).epsilon(1e-6);
  };
  CHECK(tied.grad.noisy[0] == negative_sum({1, 3, 4}));
  CHECK(tied.grad.noisy[1] == negative_sum({0, 2}));
  for (const std::size_t e : {2, 3, 4}) CHECK(tied.grad.noisy[e] == 0.0);
}

TEST_CASE_TEMPLATE_DEFINE("smooth_load: loads of parts of a batch add up to the whole batch's", Engine, smooth_load_parts) {
  const ChoiceCase whole = choice_case(411, 60, 19, 2, true);
  ChoiceCase first = whole, second = whole;
  first.tokens_on_device = 25;
  second.active.assign(60, 1);
  std::fill(second.active.begin(), second.active.begin() + 25, std::uint8_t{0});
  const LoadAnswer want = load_of(Engine{}, whole), a = load_of(Engine{}, first), b = load_of(Engine{}, second);
  for (std::size_t e = 0; e < 19; ++e) CHECK(a.load[e] + b.load[e] == want.load[e]);
}

/// Arguments of the calls, and what they must leave alone when they refuse them.
template <class Engine>
struct SmoothLoadMemory {
  template <class T>
  using Array = typename Engine::template Array<T>;
  Engine engine;
  Array<float> logits{engine, std::vector<float>(40, 1.0f)}, noisy{engine, std::vector<float>(40, 1.5f)},
      scales{engine, std::vector<float>(40, 1.0f)};
  Array<std::uint8_t> active{engine, std::vector<std::uint8_t>(8, 1)};
  Array<std::int64_t> tokens{engine, {4}}, load{engine, std::vector<std::int64_t>(8, 1 << 20)};
  Array<float> grad_load{engine, std::vector<float>(8, 2.0f)}, loss{engine, {77.0f}}, grad_loss{engine, {1.0f}};
  Array<float> grad_logits{engine, std::vector<float>(40, 77.0f)}, grad_noisy{engine, std::vector<float>(40, 77.0f)},
      grad_scales{engine, std::vector<float>(40, 77.0f)};

  mb::NoisyChoice choice() {
    mb::NoisyChoice result{.logits = mb::MatrixView<const float>(logits.data(), 4, 8),
                           .noisy = mb::MatrixView<const float>(noisy.data(), 4, 8),
                           .top_k = 2};
    result.scales = mb::MatrixView<const float>(scales.data(), 4, 8);
    result.active = active.data();
    result.tokens_on_device = tokens.data();
    return result;
  }
  mb::SmoothLoadArgs forward() { return {.choice = choice(), .load = {load.data(), 8}}; }
  mb::LoadLossArgs of_loss() { return {.load = {load.data(), 8}, .grad_load = {grad_load.data(), 8}, .loss = loss.data()}; }
  mb::SmoothLoadBackwardArgs backward() {
    return {.choice = choice(),
            .grad_load = {grad_load.data(), 8},
            .grad_logits = mb::MatrixView<float>(grad_logits.data(), 4, 8),
            .grad_noisy = mb::MatrixView<float>(grad_noisy.data(), 4, 8),
            .grad_scales = mb::MatrixView<float>(grad_scales.data(), 4, 8),
            .grad_loss = grad_loss.data()};
  }
  void run(const mb::SmoothLoadArgs& args) { mb::smooth_load(args, {}, engine.place()); }
  void run(const mb::LoadLossArgs& args) { mb::load_loss(args, {}, engine.place()); }
  void run(const mb::SmoothLoadBackwardArgs& args) { mb::smooth_load_backward(args, {}, engine.place()); }
  [[nodiscard]] auto contents() const {
    return std::tuple{logits.values(),    noisy.values(),       scales.values(),     active.values(),
                      tokens.values(),    load.values(),        grad_load.values(),  loss.values(),
                      grad_loss.values(), grad_logits.values(), grad_noisy.values(), grad_scales.values()};
  }
};

/// The same with the arguments of one of the three calls.
template <class Engine, class Args, Args (SmoothLoadMemory<Engine>::*Make)()>
struct MemoryOfCall : SmoothLoadMemory<Engine> {
  Args args() { return (this->*Make)(); }
};

/// A member of a call's `choice`.
template <class Args, class Member>
Argument<Args> in_choice(const std::string& name, Member mb::NoisyChoice::*member) {
  if constexpr (std::is_pointer_v<Member>) {
    return {"choice." + name, false,
            [=](Args& args) { return const_cast<void*>(static_cast<const void*>(args.choice.*member)); },
            [=](Args& args, void* to) { args.choice.*member = static_cast<Member>(to); }};
  } else {
    return {"choice." + name, false, [=](Args& args) { return const_cast<void*>((args.choice.*member).data); },
            [=](Args& args, void* to) { (args.choice.*member).data = to; }};
  }
}
template <class Args>
std::vector<Argument<Args>> beside_choice(std::vector<Argument<Args>> others) {
  using Choice = mb::NoisyChoice;
  others.push_back(in_choice<Args>("logits", &Choice::logits));
  others.push_back(in_choice<Args>("noisy", &Choice::noisy));
  others.push_back(in_choice<Args>("scales", &Choice::scales));
  others.push_back(in_choice<Args>("active", &Choice::active));
  others.push_back(in_choice<Args>("tokens_on_device", &Choice::tokens_on_device));
  return others;
}

TEST_CASE_TEMPLATE_DEFINE(
    "smooth_load, load_loss and smooth_load_backward refuse bad arguments and overlaps, and write nothing then", Engine,
    smooth_load_errors) {
  SmoothLoadMemory<Engine> memory;
  const auto before = memory.contents();
  const auto refused = [&](auto args, const std::string& message, const auto& spoil) {
    CAPTURE(message);
    spoil(args);
    CHECK_THROWS_WITH_AS(memory.run(args), doctest::Contains(message.c_str()), mb::InvalidArgument);
  };
  const auto refuse_choice = [&](const std::string& message, const auto& spoil) {
    const auto in_call = [&](auto& args) { spoil(args.choice); };
    refused(memory.forward(), "smooth_load: choice." + message, in_call);
    refused(memory.backward(), "smooth_load_backward: choice." + message, in_call);
  };
  using Choice = mb::NoisyChoice;
  refuse_choice("logits.columns is 0; allowed: 1 to 2048", [](Choice& choice) { choice.logits.columns = 0; });
  refuse_choice("logits.columns is 2049", [](Choice& choice) { choice.logits.columns = mb::max_experts + 1; });
  refuse_choice("logits.rows is -1", [](Choice& choice) { choice.logits.rows = -1; });
  refuse_choice("logits.rows is 1073741825; allowed: 0 to 1073741824",
                [](Choice& choice) { choice.logits.rows = (1 << 30) + 1; });
  refuse_choice("logits.data is null", [](Choice& choice) { choice.logits.data = nullptr; });
  refuse_choice("logits.stride is 7", [](Choice& choice) { choice.logits.stride = 7; });
  refuse_choice("logits.type is 9", [](Choice& choice) { choice.logits.type = mb::DataType(9); });
  refuse_choice("noisy.rows is 3", [](Choice& choice) { choice.noisy.rows = 3; });
  refuse_choice("noisy.data is null", [](Choice& choice) { choice.noisy.data = nullptr; });
  refuse_choice("noisy.type is bfloat16", [](Choice& choice) { choice.noisy.type = mb::DataType::bfloat16; });
  refuse_choice("scales.columns is 9", [](Choice& choice) { choice.scales.columns = 9; });
  refuse_choice("scales.type is float16", [](Choice& choice) { choice.scales.type = mb::DataType::float16; });
  refuse_choice("top_k is 0; allowed: 1 to 8", [](Choice& choice) { choice.top_k = 0; });
  refuse_choice("top_k is 9; allowed: 1 to 8", [](Choice& choice) { choice.top_k = 9; });
  refuse_choice("scale is 0", [](Choice& choice) { choice.scale = 0.0f; });
  refuse_choice("scale is nan", [](Choice& choice) { choice.scale = std::numeric_limits<float>::quiet_NaN(); });
  refuse_choice("scale is inf", [](Choice& choice) { choice.scale = std::numeric_limits<float>::infinity(); });
  refuse_choice("winning is 2; allowed: best_of_others, last_chosen",
                [](Choice& choice) { choice.winning = WinningLogit(2); });
  refuse_choice("tokens_on_device is ", [&](Choice& choice) {
    choice.tokens_on_device = reinterpret_cast<const std::int64_t*>(memory.active.data() + 1);
  });
  if constexpr (!Engine::has_float64) {
    refuse_choice("logits.type is float64", [](Choice& choice) { choice.logits.type = mb::DataType::float64; });
  }
  using Forward = mb::SmoothLoadArgs;
  refused(memory.forward(), "smooth_load: load.size is 7; allowed: 8", [](Forward& args) { args.load.size = 7; });
  refused(memory.forward(), "smooth_load: load.data is null", [](Forward& args) { args.load.data = nullptr; });
  using OfLoss = mb::LoadLossArgs;
  refused(memory.of_loss(), "load_loss: load.size is 0; allowed: 1 to 2048", [](OfLoss& args) { args.load.size = 0; });
  refused(memory.of_loss(), "load_loss: load.data is null", [](OfLoss& args) { args.load.data = nullptr; });
  refused(memory.of_loss(), "load_loss: grad_load.size is 9; allowed: 8", [](OfLoss& args) { args.grad_load.size = 9; });
  refused(memory.of_loss(), "load_loss: coefficient is inf",
          [](OfLoss& args) { args.coefficient = std::numeric_limits<float>::infinity(); });
  refused(memory.of_loss(), "load_loss: loss is ",
          [&](OfLoss& args) { args.loss = reinterpret_cast<float*>(memory.active.data() + 1); });
  using Backward = mb::SmoothLoadBackwardArgs;
  const std::string backward = "smooth_load_backward: ";
  refused(memory.backward(), backward + "grad_load.size is 7; allowed: 8", [](Backward& args) { args.grad_load.size = 7; });
  refused(memory.backward(), backward + "grad_logits.rows is 5", [](Backward& args) { args.grad_logits.rows = 5; });
  refused(memory.backward(), backward + "grad_noisy.type is float16",
          [](Backward& args) { args.grad_noisy.type = mb::DataType::float16; });
  refused(memory.backward(), backward + "grad_scales.stride is 3", [](Backward& args) { args.grad_scales.stride = 3; });
  refused(memory.backward(), backward + "choice.scales.data is null", [](Backward& args) { args.choice.scales = {}; });
  refused(memory.backward(), backward + "loss_scale is nan",
          [](Backward& args) { args.loss_scale = std::numeric_limits<float>::quiet_NaN(); });
  refused(memory.backward(), backward + "grad_loss is ",
          [&](Backward& args) { args.grad_loss = reinterpret_cast<const float*>(memory.active.data() + 1); });
  CHECK(memory.contents() == before);

  using Memory = SmoothLoadMemory<Engine>;
  refuses_overlaps<Forward>("smooth_load", beside_choice<Forward>({writes("load", &Forward::load)}),
                            [] { return MemoryOfCall<Engine, Forward, &Memory::forward>{}; });
  refuses_overlaps<OfLoss>(
      "load_loss", {reads("load", &OfLoss::load), writes("grad_load", &OfLoss::grad_load), writes("loss", &OfLoss::loss)},
      [] { return MemoryOfCall<Engine, OfLoss, &Memory::of_loss>{}; });
  refuses_overlaps<Backward>(
      "smooth_load_backward",
      beside_choice<Backward>({writes("grad_logits", &Backward::grad_logits), writes("grad_noisy", &Backward::grad_noisy),
                               writes("grad_scales", &Backward::grad_scales), reads("grad_load", &Backward::grad_load),
                               reads("grad_loss", &Backward::grad_loss)}),
      [] { return MemoryOfCall<Engine, Backward, &Memory::backward>{}; });
}

}  // namespace testing
