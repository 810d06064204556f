// Sinkhorn's scales: held to an oracle that multiplies and adds exponentials as the formulas say; and the same bits whatever
// runs them.
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
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace testing {

/// One call. Rows are `padding` elements longer than E, all NaN.
struct SinkhornCase {
  std::int64_t tokens = 0;
  std::int64_t experts = 1;
  std::vector<double> logits{};
  float tolerance = 1e-4f;
  int max_iterations = 100;
  std::vector<std::uint8_t> active{};
  std::int64_t tokens_on_device = -1;  ///< -1 = left out
  mb::DataType type = mb::DataType::float32;
  std::int64_t padding = 0;
};

struct Scales {
  std::vector<float> log_scale;
  std::int32_t iterations = -1;
  bool operator==(const Scales&) const = default;
};

/// exp, products and sums in long double: e^1000 is a number there.
struct SinkhornOracle {
  std::vector<long double> d0, d1;
  int iterations = 0;
  long double change = 0;  ///< of the last iteration

  explicit SinkhornOracle(const SinkhornCase& given)
      : d0(static_cast<std::size_t>(given.tokens), 0), d1(static_cast<std::size_t>(given.experts), 1) {
    const std::size_t experts = d1.size();
    std::vector<long double> cost(d0.size() * experts, 0);
    long double tokens = 0;
    for (std::size_t t = 0; t < d0.size(); ++t) {
      if (!given.active.empty() && given.active[t] == 0) continue;
      if (given.tokens_on_device >= 0 && static_cast<std::int64_t>(t) >= given.tokens_on_device) continue;
      bool takes_part = false;
      for (std::size_t e = 0; e < experts; ++e) {
        const double x = given.logits[t * experts + e];
        if (!std::isfinite(x)) continue;
        cost[t * experts + e] = std::exp(static_cast<long double>(x));
        takes_part = true;
      }
      d0[t] = takes_part ? 1 : 0;
      tokens += d0[t];
    }
    if (tokens == 0) return;
    do {
      for (std::size_t t = 0; t < d0.size(); ++t) {
        long double row = 1e-8L;
        for (std::size_t e = 0; e < experts; ++e) row += d1[e] * cost[t * experts + e];
        if (d0[t] != 0) d0[t] = 1 / (tokens * row);
      }
      change = 0;
      for (std::size_t e = 0; e < experts; ++e) {
        long double column = 1e-8L;
        for (std::size_t t = 0; t < d0.size(); ++t) column += cost[t * experts + e] * d0[t];
        const long double next = 1 / (static_cast<long double>(experts) * column);
        change += std::abs(next - d1[e]) / static_cast<long double>(experts);
        d1[e] = next;
      }
      ++iterations;
    } while (iterations < given.max_iterations &&
             !(given.tolerance > 0 && change <= static_cast<long double>(given.tolerance)));
  }
};

template <class Engine>
Scales scales_of(const Engine& engine, const SinkhornCase& given) {
  std::vector<double> rows;
  for (std::int64_t t = 0; t < given.tokens; ++t) {
    const auto first = given.logits.begin() + t * given.experts;
    rows.insert(rows.end(), first, first + given.experts);
    rows.insert(rows.end(), static_cast<std::size_t>(given.padding), std::numeric_limits<double>::quiet_NaN());
  }
  typename Engine::template Array<std::uint8_t> logits(engine, encoded(given.type, rows));
  typename Engine::template Array<float> log_scale(engine,
                                                   std::vector<float>(static_cast<std::size_t>(given.experts), 77.0f));
  typename Engine::template Array<std::uint8_t> active(engine, given.active);
  typename Engine::template Array<std::int64_t> tokens(engine, {given.tokens_on_device});
  typename Engine::template Array<std::int32_t> iterations(engine, {77});
  const std::size_t bytes = mb::sinkhorn_workspace_bytes(given.experts);
  // Of exactly so many bytes, of no useful value.
  typename Engine::template Array<std::int64_t> workspace(engine, std::vector<std::int64_t>(bytes / 8, -77));
  mb::sinkhorn({.logits = {logits.data(), given.type, given.tokens, given.experts, given.experts + given.padding},
                .log_scale = {log_scale.data(), given.experts},
                .tolerance = given.tolerance,
                .max_iterations = given.max_iterations,
                .active = active.data(),
                .tokens_on_device = given.tokens_on_device < 0 ? nullptr : tokens.data(),
                .iterations = iterations.data()},
               {workspace.data(), bytes}, engine.place());
  engine.wait();
  return {log_scale.values(), iterations.values()[0]};
}

/// Normal logits around a mean of each expert's own, rounded to float32.
inline SinkhornCase sinkhorn_case(std::uint64_t seed, std::int64_t tokens, std::int64_t experts, double deviation,
                                  double deviation_of_experts) {
  Random random(seed);
  SinkhornCase result{.tokens = tokens, .experts = experts};
  const std::vector<double> means = random.normals<double>(static_cast<std::size_t>(experts), deviation_of_experts);
  for (std::int64_t i = 0; i < tokens * experts; ++i) {
    const double logit = deviation * random.normal() + means[static_cast<std::size_t>(i % experts)];
    result.logits.push_back(static_cast<double>(static_cast<float>(logit)));
  }
  return result;
}

/// The largest difference from the logarithm of the oracle's d1.
inline double error_of(const Scales& scales, const SinkhornOracle& want) {
  double worst = 0;
  for (std::size_t e = 0; e < want.d1.size(); ++e) {
    const double difference = std::abs(static_cast<double>(scales.log_scale[e]) - static_cast<double>(std::log(want.d1[e])));
    worst = difference <= worst ? worst : difference;  // NaN, too
  }
  return worst;
}

TEST_CASE_TEMPLATE_DEFINE("sinkhorn: log_scale is the logarithm of d1 after as many iterations as the formula takes", Engine,
                          sinkhorn_values) {
  struct Size {
    std::int64_t tokens, experts;
  };
  struct Spread {
    double deviation, of_experts;
  };
  for (const Size size : {Size{1, 1}, {1, 9}, {5, 1}, {33, 8}, {17, 32}, {40, 60}, {24, 128}, {9, 300}}) {
    for (const Spread spread : {Spread{0.2, 0.0}, {1.0, 1.0}, {3.0, 0.5}}) {
      CAPTURE(size.tokens);
      CAPTURE(size.experts);
      CAPTURE(spread.deviation);
      SinkhornCase given = sinkhorn_case(170, size.tokens, size.experts, spread.deviation, spread.of_experts);
      const SinkhornOracle want(given);
      const Scales got = scales_of(Engine{}, given);
      CHECK(got.iterations == want.iterations);
      CHECK(error_of(got, want) < 3e-6 + 2e-7 * got.iterations);  // roundings of a factor of all d1 add up
      for (const int iterations : {1, 2, 5}) {
        given.tolerance = 0;
        given.max_iterations = iterations;
        const Scales some = scales_of(Engine{}, given);
        CHECK(some.iterations == iterations);
        CHECK(error_of(some, SinkhornOracle(given)) < 3e-6);
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("sinkhorn: experts share the tokens equally, and tokens have equal sums", Engine,
                          sinkhorn_balance) {
  for (const auto& [tokens, experts] : {std::pair<std::size_t, std::size_t>{200, 8}, {600, 48}}) {
    const SinkhornCase given =
        sinkhorn_case(171, static_cast<std::int64_t>(tokens), static_cast<std::int64_t>(experts), 1, 1);
    const Scales got = scales_of(Engine{}, given);
    std::vector<double> column(experts);
    std::vector<int> count(experts), count_without(experts);
    for (std::size_t t = 0; t < tokens; ++t) {
      const double* const row = given.logits.data() + t * experts;
      double sum = 0;
      std::size_t best = 0, best_without = 0;
      const auto scaled = [&](std::size_t e) { return row[e] + static_cast<double>(got.log_scale[e]); };
      for (std::size_t e = 0; e < experts; ++e) {
        sum += std::exp(scaled(e));
        if (scaled(e) > scaled(best)) best = e;
        if (row[e] > row[best_without]) best_without = e;
      }
      for (std::size_t e = 0; e < experts; ++e) column[e] += std::exp(scaled(e)) / sum / static_cast<double>(tokens);
      ++count[best];
      ++count_without[best_without];
    }
    for (const double sum : column) CHECK(sum * static_cast<double>(experts) == doctest::Approx(1).epsilon(1e-4));
    const int mean = static_cast<int>(tokens / experts);
    CHECK(*std::max_element(count_without.begin(), count_without.end()) > 5 * mean / 2);
    CHECK(*std::max_element(count.begin(), count.end()) < 2 * mean);
  }
}

TEST_CASE_TEMPLATE_DEFINE("sinkhorn: the same bits from one thread, from several, and from any other engine", Engine,
                          sinkhorn_bits) {
  for (const auto& [tokens, experts] : {std::pair<std::int64_t, std::int64_t>{700, 200}, {3000, 31}}) {
    SinkhornCase given = sinkhorn_case(172, tokens, experts, 2, 1);
    given.max_iterations = 4;
    const Scales one = scales_of(HostEngine{.threads = 1}, given);
    CHECK(scales_of(Engine{}, given) == one);
    CHECK(scales_of(HostEngine{.threads = 2}, given) == one);
    CHECK(scales_of(HostEngine{.threads = 7}, given) == one);
  }
}

TEST_CASE_TEMPLATE_DEFINE("sinkhorn: any type of logits that holds them, and any stride, has the same bits", Engine,
                          sinkhorn_types) {
  Random random(173);
  SinkhornCase given{.tokens = 30, .experts = 43};
  for (int i = 0; i < 30 * 43; ++i) given.logits.push_back(random.integer(-60, 60) / 8.0);
  const Scales want = scales_of(HostEngine{}, given);
  CHECK(want.iterations > 1);
  CHECK(want.iterations < 100);
  for (const mb::DataType type :
       {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16, mb::DataType::float64}) {
    if (type == mb::DataType::float64 && !Engine::has_float64) continue;
    CAPTURE(static_cast<int>(type));
    for (const std::int64_t padding : {0, 1, 5}) {
      given.type = type;
      given.padding = padding;
      CHECK(scales_of(Engine{}, given) == want);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("sinkhorn: padding, and logits that are no numbers, take no part", Engine, sinkhorn_padding) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  constexpr std::int64_t tokens = 23, experts = 37;
  SinkhornCase whole = sinkhorn_case(174, tokens, experts, 1, 1);
  const SinkhornCase kept = whole;
  // Padding rows of any content between the others, some by `active` and some behind tokens_on_device.
  SinkhornCase padded{.tokens = 2 * tokens + 3, .experts = experts, .tokens_on_device = 2 * tokens};
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto row = kept.logits.begin() + t * experts;
    padded.logits.insert(padded.logits.end(), row, row + experts);
    padded.logits.insert(padded.logits.end(), experts, t % 3 == 0 ? nan : t % 3 == 1 ? inf : 5.0 * static_cast<double>(t));
    padded.active.push_back(1);
    padded.active.push_back(0);
  }
  padded.logits.insert(padded.logits.end(), 3 * experts, 4.0);
  padded.active.insert(padded.active.end(), 3, std::uint8_t{1});
  CHECK(scales_of(Engine{}, padded) == scales_of(Engine{}, kept));
  // Tokens without a number.
  SinkhornCase empty_rows = kept;
  empty_rows.tokens += 3;
  for (const double value : {nan, inf, -inf}) empty_rows.logits.insert(empty_rows.logits.end(), experts, value);
  CHECK(scales_of(Engine{}, empty_rows) == scales_of(Engine{}, kept));
  // Single logits; one expert has none at all, so that its d1 is 1e8 / E.
  Scales want;
  for (const double value : {-inf, inf, nan, -nan}) {
    for (std::size_t i = 0; i < whole.logits.size(); ++i) {
      if (i % 11 == 3 || i % experts == 20) whole.logits[i] = value;
    }
    const Scales got = scales_of(Engine{}, whole);
    if (want.log_scale.empty()) {
      want = got;
      CHECK(error_of(got, SinkhornOracle(whole)) < 4e-6);
      CHECK(got.log_scale[20] == doctest::Approx(std::log(1e8 / experts)));
    }
    CHECK(got == want);
  }
}

TEST_CASE_TEMPLATE_DEFINE("sinkhorn: no token, one token, one expert, and as many as may be", Engine, sinkhorn_corners) {
  const Engine engine;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Scales nothing{std::vector<float>(6, 0.0f), 0};
  CHECK(scales_of(engine, SinkhornCase{.tokens = 0, .experts = 6}) == nothing);
  CHECK(scales_of(engine, SinkhornCase{.tokens = 0, .experts = 6, .tolerance = 0, .max_iterations = 1}) == nothing);
  CHECK(scales_of(engine, SinkhornCase{.tokens = 2, .experts = 6, .logits = std::vector<double>(12, nan)}) == nothing);
  CHECK(scales_of(engine, SinkhornCase{.tokens = 2, .experts = 6, .logits = std::vector<double>(12, 1), .active = {0, 0}}) ==
        nothing);
  CHECK(scales_of(engine,
                  SinkhornCase{.tokens = 2, .experts = 6, .logits = std::vector<double>(12, 1), .tokens_on_device = 0}) ==
        nothing);
  // One token: whatever it prefers is taken away.
  const SinkhornCase one_token{.tokens = 1, .experts = 4, .logits = {3, -2, 0.5, 1}};
  const Scales alone = scales_of(engine, one_token);
  for (std::size_t e = 1; e < 4; ++e) {
    CHECK(static_cast<double>(alone.log_scale[e] - alone.log_scale[0]) ==
          doctest::Approx(one_token.logits[0] - one_token.logits[e]).epsilon(1e-5));
  }
  const SinkhornCase one_expert{.tokens = 3, .experts = 1, .logits = {-4, 0, 9}};
  CHECK(std::abs(scales_of(engine, one_expert).log_scale[0]) < 1e-4f);
  SinkhornCase many = sinkhorn_case(175, 6, mb::max_experts, 2, 0.5);
  many.tolerance = 0;
  many.max_iterations = 3;
  CHECK(error_of(scales_of(engine, many), SinkhornOracle(many)) < 6e-6);
  CHECK(scales_of(engine, many) == scales_of(HostEngine{.threads = 3}, many));
}

TEST_CASE_TEMPLATE_DEFINE("sinkhorn: logits of any size, whose exponentials no float32 holds", Engine, sinkhorn_sizes) {
  const Engine engine;
  // Constant rows leave experts equal, whatever the constant; of -1000 nothing reaches 1e-8.
  for (const double constant : {0.0, 7.0, 100.0, 1000.0, -7.0, -20.0, -100.0, -1000.0}) {
    CAPTURE(constant);
    const SinkhornCase given{.tokens = 5, .experts = 12, .logits = std::vector<double>(60, constant)};
    const Scales got = scales_of(engine, given);
    CHECK(error_of(got, SinkhornOracle(given)) < 4e-6);
    CHECK(std::all_of(got.log_scale.begin(), got.log_scale.end(), [&](float u) { return u == got.log_scale[0]; }));
  }
  // Logits so low that the formula's 1e-8 counts beside them: d1 is large, and its last bits move it by more than the tolerance.
  for (const double base : {-28.0, -33.0, -35.0, -45.0}) {
    CAPTURE(base);
    SinkhornCase low = sinkhorn_case(178, 64, 64, 0.3, 0.0);
    for (double& logit : low.logits) logit = static_cast<double>(static_cast<float>(logit + base));
    low.max_iterations = 2000;
    const Scales ended = scales_of(engine, low);
    CHECK(ended.iterations <= SinkhornOracle(low).iterations + 2);
    low.tolerance = 0;
    for (const int iterations : {1, 2, ended.iterations}) {
      low.max_iterations = iterations;
      CHECK(error_of(scales_of(engine, low), SinkhornOracle(low)) < 6e-5);
    }
  }
  // Tokens want different experts by far, or all the same: float32 holds the sum of a logit of 1000 and a bias to 6e-5.
  Random random(176);
  for (int round = 0; round < 4; ++round) {
    CAPTURE(round);
    SinkhornCase given{.tokens = 20, .experts = 10, .tolerance = 0, .max_iterations = 6};
    for (int i = 0; i < 200; ++i) {
      const int kind = random.integer(0, 3);
      given.logits.push_back(kind == 0 ? 1000 : kind == 1 ? -1000 : static_cast<double>(random.integer(-90, 90)) / 8);
    }
    if (round > 1) {
      for (std::size_t t = 0; t < 20; ++t) given.logits[t * 10] = round == 2 ? 1000 : -1000;
    }
    const Scales got = scales_of(engine, given);
    CHECK(error_of(got, SinkhornOracle(given)) < 1e-3);
    CHECK(got == scales_of(HostEngine{}, given));
  }
  const double largest = static_cast<double>(std::numeric_limits<float>::max());
  const SinkhornCase extreme{
      .tokens = 3, .experts = 3, .logits = {largest, -largest, 0, largest, largest, 1, -largest, -largest, -largest}};
  for (const float scale : scales_of(engine, extreme).log_scale) CHECK(std::isfinite(scale));
}

TEST_CASE_TEMPLATE_DEFINE("sinkhorn: it ends at max_iterations, and with a tolerance of 0 no earlier", Engine,
                          sinkhorn_iterations) {
  SinkhornCase given = sinkhorn_case(177, 30, 16, 1, 0.5);
  const Scales converged = scales_of(Engine{}, given);
  CHECK(converged.iterations > 3);
  CHECK(converged.iterations < 30);
  given.max_iterations = converged.iterations;
  CHECK(scales_of(Engine{}, given) == converged);
  given.max_iterations = converged.iterations - 1;
  const Scales earlier = scales_of(Engine{}, given);
  CHECK(earlier.iterations == converged.iterations - 1);
  CHECK(earlier.log_scale != converged.log_scale);
  given.tolerance = 0;
  given.max_iterations = converged.iterations;
  CHECK(scales_of(Engine{}, given) == converged);
  given.max_iterations = 30;
  CHECK(scales_of(Engine{}, given).iterations == 30);
  given.tolerance = 1e9f;
  CHECK(scales_of(Engine{}, given).iterations == 1);
}

/// Arguments of a call, and what it must leave alone when it refuses them.
template <class Engine>
struct SinkhornMemory {
  Engine engine;
  typename Engine::template Array<float> logits{engine, std::vector<float>(40, 1.0f)};
  typename Engine::template Array<float> log_scale{engine, std::vector<float>(8, 2.0f)};
  typename Engine::template Array<std::uint8_t> active{engine, std::vector<std::uint8_t>(8, 1)};
  typename Engine::template Array<std::int64_t> tokens{engine, {4}};
  typename Engine::template Array<std::int32_t> iterations{engine, {77, 77}};
  typename Engine::template Array<std::int64_t> scratch{engine, std::vector<std::int64_t>(100, 77)};
  mb::Workspace workspace{scratch.data(), mb::sinkhorn_workspace_bytes(8)};

  mb::SinkhornArgs args() {
    return {.logits = mb::MatrixView<const float>(logits.data(), 4, 8),
            .log_scale = {log_scale.data(), 8},
            .active = active.data(),
            .tokens_on_device = tokens.data(),
            .iterations = iterations.data()};
  }
  void run(const mb::SinkhornArgs& args) { mb::sinkhorn(args, workspace, engine.place()); }
  [[nodiscard]] auto contents() const {
    return std::tuple{logits.values(), log_scale.values(),  active.values(),
                      tokens.values(), iterations.values(), scratch.values()};
  }
};

TEST_CASE_TEMPLATE_DEFINE("sinkhorn refuses bad arguments and overlaps, and writes nothing then", Engine, sinkhorn_errors) {
  SinkhornMemory<Engine> memory;
  const auto before = memory.contents();
  const auto refuse = [&](const std::string& message, const auto& spoil) {
    CAPTURE(message);
    mb::SinkhornArgs args = memory.args();
    mb::Workspace workspace = memory.workspace;
    spoil(args, workspace);
    CHECK_THROWS_WITH_AS(mb::sinkhorn(args, workspace, memory.engine.place()),
                         doctest::Contains(("sinkhorn: " + message).c_str()), mb::InvalidArgument);
  };
  using Args = mb::SinkhornArgs;
  using Scratch = mb::Workspace;
  refuse("logits.columns is 0; allowed: 1 to 2048", [](Args& args, Scratch&) { args.logits.columns = 0; });
  refuse("logits.columns is 2049", [](Args& args, Scratch&) { args.logits.columns = mb::max_experts + 1; });
  refuse("logits.rows is -1", [](Args& args, Scratch&) { args.logits.rows = -1; });
  refuse("logits.rows is 4194305; allowed: 0 to 4194304", [](Args& args, Scratch&) { args.logits.rows = (1 << 22) + 1; });
  refuse("logits.data is null", [](Args& args, Scratch&) { args.logits.data = nullptr; });
  refuse("logits.stride is 7", [](Args& args, Scratch&) { args.logits.stride = 7; });
  refuse("logits.type is 9", [](Args& args, Scratch&) { args.logits.type = mb::DataType(9); });
  refuse("log_scale.size is 7; allowed: 8", [](Args& args, Scratch&) { args.log_scale.size = 7; });
  refuse("log_scale.data is null", [](Args& args, Scratch&) { args.log_scale.data = nullptr; });
  refuse("tolerance is -0.5", [](Args& args, Scratch&) { args.tolerance = -0.5f; });
  refuse("tolerance is nan", [](Args& args, Scratch&) { args.tolerance = std::numeric_limits<float>::quiet_NaN(); });
  refuse("tolerance is inf", [](Args& args, Scratch&) { args.tolerance = std::numeric_limits<float>::infinity(); });
  refuse("max_iterations is 0; allowed: 1 to 10000", [](Args& args, Scratch&) { args.max_iterations = 0; });
  refuse("max_iterations is 10001", [](Args& args, Scratch&) { args.max_iterations = 10001; });
  refuse("tokens_on_device is ", [&](Args& args, Scratch&) {
    args.tokens_on_device = reinterpret_cast<const std::int64_t*>(memory.active.data() + 1);
  });
  refuse("iterations is ",
         [&](Args& args, Scratch&) { args.iterations = reinterpret_cast<std::int32_t*>(memory.active.data() + 1); });
  refuse("workspace.data is null", [](Args&, Scratch& workspace) { workspace.data = nullptr; });
  refuse("workspace.bytes is ", [](Args&, Scratch& workspace) { --workspace.bytes; });
  refuse("workspace.data is ",
         [](Args&, Scratch& workspace) { workspace.data = static_cast<std::byte*>(workspace.data) + 8; });
  refuse("log_scale is memory that workspace shares",
         [](Args& args, Scratch& workspace) { args.log_scale.data = static_cast<float*>(workspace.data) + 2; });
  refuse("logits is memory that workspace shares", [&](Args& args, Scratch&) { args.logits.data = memory.scratch.data(); });
  if constexpr (!Engine::has_float64) {
    refuse("logits.type is float64", [](Args& args, Scratch&) { args.logits.type = mb::DataType::float64; });
  }
  CHECK(memory.contents() == before);
  CHECK_THROWS_WITH_AS((void)mb::sinkhorn_workspace_bytes(0), doctest::Contains("experts is 0; allowed: 1 to 2048"),
                       mb::InvalidArgument);
  CHECK_THROWS_AS((void)mb::sinkhorn_workspace_bytes(mb::max_experts + 1), mb::InvalidArgument);
  refuses_overlaps<Args>(
      "sinkhorn",
      {reads("logits", &Args::logits), writes("log_scale", &Args::log_scale), reads("active", &Args::active),
       reads("tokens_on_device", &Args::tokens_on_device), writes("iterations", &Args::iterations)},
      [] { return SinkhornMemory<Engine>{}; });
}

}  // namespace testing
