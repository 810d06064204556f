// Metrics of load (metrics/load_metrics.hpp): against their definitions, written out another way, and against routers that choose at random.
#include "random.hpp"

#include <doctest/doctest.h>
#include <moe_balance/metrics/load_metrics.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <tuple>
#include <vector>

namespace testing {

namespace mb = moe_balance;

namespace {

using Counts = std::vector<std::int64_t>;

mb::LoadMetrics metrics_of(const Counts& counts) {
  return mb::load_metrics(counts);
}
mb::LoadMetrics metrics_of_ranks(const Counts& counts, std::int64_t ranks) {
  return mb::rank_load_metrics(counts, ranks);
}

doctest::Approx near(double value) {
  return doctest::Approx(value).epsilon(1e-12);
}

bool same(const mb::LoadMetrics& a, const mb::LoadMetrics& b) {
  return a.total == b.total && a.max_violation == b.max_violation && a.min_over_mean == b.min_over_mean &&
         a.variation == b.variation && a.entropy == b.entropy && a.gini == b.gini && a.starved == b.starved;
}

}  // namespace

TEST_CASE("metrics of an even load, of one expert with everything, of no tokens") {
  const mb::LoadMetrics even = metrics_of(Counts(16, 7));
  CHECK(even.total == 112);
  CHECK(even.max_violation == 0);
  CHECK(even.min_over_mean == 1);
  CHECK(even.variation == 0);
  CHECK(even.entropy == near(1));
  CHECK(even.gini == 0);
  CHECK(even.starved == 0);

  Counts one(16, 0);
  one[5] = 1000;
  const mb::LoadMetrics collapsed = metrics_of(one);
  CHECK(collapsed.max_violation == 15);
  CHECK(collapsed.min_over_mean == 0);
  CHECK(collapsed.variation == near(std::sqrt(15.0)));
  CHECK(collapsed.entropy == near(0));
  CHECK(collapsed.gini == near(15.0 / 16));
  CHECK(collapsed.starved == 15);

  const mb::LoadMetrics nothing = metrics_of(Counts(16, 0));
  CHECK(same(nothing, mb::LoadMetrics{}));
  CHECK(nothing.entropy == 1);

  const mb::LoadMetrics single = metrics_of({9});
  CHECK(single.max_violation == 0);
  CHECK(single.entropy == 1);
  CHECK(single.gini == 0);
}

TEST_CASE("metrics of many tokens and of many experts") {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  CHECK(metrics_of({most, 0}).max_violation == 1);
  const Counts large(38, 32765273825611337);  // whose mean is no double
  CHECK(metrics_of(large).max_violation == 0);
  CHECK(metrics_of(large).min_over_mean == 1);
  CHECK(metrics_of(large).gini == 0);
  Counts many(1000000, 100);
  CHECK(metrics_of(many).entropy == 1);
  many[7] = 101;
  CHECK(metrics_of(many).max_violation == doctest::Approx(0.01).epsilon(1e-5).scale(0));
  CHECK(metrics_of(many).entropy < 1);
}

TEST_CASE("metrics of four experts, by hand") {
  const mb::LoadMetrics metrics = metrics_of({8, 1, 0, 31});  // mean 10
  CHECK(metrics.total == 40);
  CHECK(metrics.max_violation == near(2.1));
  CHECK(metrics.min_over_mean == 0);
  CHECK(metrics.variation == near(std::sqrt((4 + 81 + 100 + 441) / 4.0) / 10));
  CHECK(metrics.starved == 1);  // a tenth of the mean is not less than that
}

TEST_CASE("metrics agree with their definitions, in whatever order the experts are") {
  Random random(301);
  for (const int experts : {2, 3, 8, 60, 256, 2048}) {
    CAPTURE(experts);
    Counts counts(static_cast<std::size_t>(experts));
    for (std::int64_t& count : counts) count = random.chance(0.2) ? 0 : random.integer(0, 1000);
    counts[0] = 5;
    counts[1] = 400;
    const double n = experts;
    const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
    double differences = 0, entropy = 0, second_moment = 0;
    std::int64_t starved = 0;
    for (const std::int64_t a : counts) {
      for (const std::int64_t b : counts) differences += std::abs(static_cast<double>(a - b));
      if (a > 0) entropy += static_cast<double>(a) / total * std::log2(total / static_cast<double>(a));
      second_moment += static_cast<double>(a * a) / n;
      if (static_cast<double>(10 * a) * n < total) ++starved;
    }
    const double mean = total / n;
    const mb::LoadMetrics metrics = metrics_of(counts);
    CHECK(metrics.gini == doctest::Approx(differences / (2 * n * n * mean)).epsilon(1e-11).scale(0));
    CHECK(metrics.entropy == doctest::Approx(entropy / std::log2(n)).epsilon(1e-11).scale(0));
    CHECK(metrics.variation == doctest::Approx(std::sqrt(second_moment - mean * mean) / mean).epsilon(1e-9).scale(0));
    CHECK(metrics.max_violation == near(static_cast<double>(*std::max_element(counts.begin(), counts.end())) / mean - 1));
    CHECK(metrics.min_over_mean == near(static_cast<double>(*std::min_element(counts.begin(), counts.end())) / mean));
    CHECK(metrics.starved == starved);

    std::rotate(counts.begin(), counts.begin() + experts / 2, counts.end());
    std::swap(counts.front(), counts.back());
    CHECK(same(metrics_of(counts), metrics));
  }
}

TEST_CASE("metrics of ranks are those of their experts' sums") {
  const Counts counts{1, 2, 3, 4, 50, 6, 7, 8, 0, 0, 0, 9};
  CHECK(same(metrics_of_ranks(counts, 4), metrics_of({6, 60, 15, 9})));
  CHECK(same(metrics_of_ranks(counts, 12), metrics_of(counts)));
  CHECK(metrics_of_ranks(counts, 1).max_violation == 0);
}

TEST_CASE("the MaxVio of chance: the mean of the largest of E normal numbers") {
  const double pi = std::acos(-1.0);
  const auto mean_of_largest = [](int experts) {  // tokens and K that leave nothing else
    return mb::expected_max_violation(experts - 1, experts, 1);
  };
  CHECK(mean_of_largest(2) == doctest::Approx(1 / std::sqrt(pi)).epsilon(1e-6));
  CHECK(mean_of_largest(3) == doctest::Approx(1.5 / std::sqrt(pi)).epsilon(1e-6));
  CHECK(mean_of_largest(5) == doctest::Approx(1.16296447).epsilon(1e-6));  // Harter 1961, table 1
  CHECK(mean_of_largest(10) == doctest::Approx(1.53875273).epsilon(1e-6));
  CHECK(mean_of_largest(100) == doctest::Approx(2.50759364).epsilon(1e-6));
  CHECK(mb::expected_max_violation(0, 8, 2) == 0);
  CHECK(mb::expected_max_violation(100, 8, 8) == 0);
  CHECK(mb::expected_max_violation(100, 1, 1) == 0);
}

TEST_CASE("the MaxVio of chance is that of routers that choose at random") {
  Random random(302);
  for (const auto& [tokens, experts, k] : {std::tuple{2048, 8, 2}, std::tuple{2048, 64, 8}, std::tuple{4096, 16, 1}}) {
    CAPTURE(experts);
    double mean = 0;
    constexpr int batches = 60;
    std::vector<int> order(static_cast<std::size_t>(experts));
    std::iota(order.begin(), order.end(), 0);
    for (int batch = 0; batch < batches; ++batch) {
      Counts counts(order.size(), 0);
      for (int t = 0; t < tokens; ++t) {
        for (int i = 0; i < k; ++i) {
          std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.integer(i, experts - 1))]);
          ++counts[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])];
        }
      }
      mean += metrics_of(counts).max_violation / batches;
    }
    CHECK(mean == doctest::Approx(mb::expected_max_violation(tokens, experts, k)).epsilon(0.15).scale(0));
  }
}

TEST_CASE("metrics refuse what is no load, by name") {
  const Counts counts{1, -2, 3};
  CHECK_THROWS_WITH_AS((void)metrics_of(counts), "moe_balance: load_metrics: counts[1] is -2; allowed: 0 or more tokens",
                       mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)metrics_of({}), "moe_balance: load_metrics: counts.size is 0; allowed: 1 or more experts",
                       mb::InvalidArgument);
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  CHECK_THROWS_WITH_AS((void)metrics_of({most, 0, 1}),
                       "moe_balance: load_metrics: counts[2] is 1; allowed: counts with a sum that fits int64",
                       mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)metrics_of_ranks({most, 1, 0, 0}, 2),
                       "moe_balance: rank_load_metrics: counts[1] is 1; allowed: counts with a sum that fits int64",
                       mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)metrics_of_ranks({1, 2, 3}, 2),
                       "moe_balance: rank_load_metrics: ranks is 2; allowed: a divisor of the 3 experts",
                       mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)metrics_of_ranks({1, 2, 3}, 0),
                       "moe_balance: rank_load_metrics: ranks is 0; allowed: a divisor of the 3 experts",
                       mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)metrics_of_ranks(counts, 3),
                       "moe_balance: rank_load_metrics: counts[1] is -2; allowed: 0 or more tokens", mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)mb::expected_max_violation(-1, 8, 2),
                       "moe_balance: expected_max_violation: tokens is -1; allowed: 0 or more", mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)mb::expected_max_violation(1, 0, 2),
                       "moe_balance: expected_max_violation: experts is 0; allowed: 1 or more", mb::InvalidArgument);
  CHECK_THROWS_WITH_AS((void)mb::expected_max_violation(1, 8, 9),
                       "moe_balance: expected_max_violation: top_k is 9; allowed: 1 to the 8 experts", mb::InvalidArgument);
}

}  // namespace testing
