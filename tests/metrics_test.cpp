// Metrics of load and of routing (metrics/): against their definitions, written out another way, and against routers that choose at random.
#include "random.hpp"

#include <doctest/doctest.h>
#include <moe_balance/metrics/load_metrics.hpp>
#include <moe_balance/metrics/routing_metrics.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
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

using Ids = std::vector<std::int32_t>;

mb::MatrixView<const std::int32_t> matrix(const Ids& ids, int k) {
  return {ids.data(), static_cast<std::int64_t>(ids.size()) / k, k};
}

/// `tokens` tokens with `k` of `experts` experts each, some slots empty.
Ids random_ids(std::uint64_t seed, int tokens, int experts, int k, double empty = 0.2) {
  Random random(seed);
  std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  Ids ids;
  for (int t = 0; t < tokens; ++t) {
    for (int i = 0; i < k; ++i) {
      std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.integer(i, experts - 1))]);
      ids.push_back(random.chance(empty) ? -1 : order[static_cast<std::size_t>(i)]);
    }
  }
  return ids;
}

bool has(const Ids& ids, std::size_t token, std::size_t k, int expert) {
  const auto first = ids.begin() + static_cast<std::ptrdiff_t>(token * k);
  return std::count(first, first + static_cast<std::ptrdiff_t>(k), expert) > 0;
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

TEST_CASE("co-activation: of an expert's tokens those that have another expert, too") {
  mb::CoActivation by_hand(4);
  by_hand.add(matrix({0, 1, 1, 2, 0, -1, 1, 0}, 2));
  CHECK(by_hand.share(0, 1) == near(2.0 / 3));
  CHECK(by_hand.share(1, 0) == near(2.0 / 3));
  CHECK(by_hand.share(1, 2) == near(1.0 / 3));
  CHECK(by_hand.share(2, 1) == 1);
  CHECK(by_hand.share(0, 2) == 0);
  CHECK(by_hand.share(3, 0) == 0);
  CHECK(by_hand.share(3, 3) == 0);  // no tokens
  CHECK(by_hand.tokens(0, 0) == 3);
  CHECK(by_hand.tokens(3, 3) == 0);

  constexpr int experts = 7, k = 3;
  const Ids first = random_ids(310, 200, experts, k), second = random_ids(311, 50, experts, k);
  mb::CoActivation together(experts);
  together.add(matrix(first, k));
  together.add(matrix(second, k));
  together.add({nullptr, 0, k});
  Ids all = first;
  all.insert(all.end(), second.begin(), second.end());
  for (int i = 0; i < experts; ++i) {
    for (int j = 0; j < experts; ++j) {
      double of_i = 0, of_both = 0;
      for (std::size_t t = 0; t < 250; ++t) {
        if (!has(all, t, k, i)) continue;
        ++of_i;
        if (has(all, t, k, j)) ++of_both;
      }
      CHECK(together.share(i, j) == near(of_both / of_i));
      CHECK(static_cast<double>(together.tokens(i, j)) == of_both);
    }
  }
}

TEST_CASE("specialisation: of a domain's tokens those that have an expert") {
  constexpr int experts = 6, k = 2, domains = 3;
  const Ids ids = random_ids(312, 300, experts, k);
  Random random(313);
  std::vector<std::int32_t> domain_of_token(300);
  for (std::int32_t& domain : domain_of_token) domain = static_cast<std::int32_t>(random.integer(-1, domains - 2));
  mb::Specialisation special(experts, domains);
  special.add({ids.data(), 100, k}, {domain_of_token.data(), 100});
  special.add({ids.data() + 100 * k, 200, k}, {domain_of_token.data() + 100, 200});
  for (int d = 0; d < domains; ++d) {
    const auto tokens = std::count(domain_of_token.begin(), domain_of_token.end(), d);
    CHECK(special.tokens(d) == tokens);
    for (int e = 0; e < experts; ++e) {
      double chosen = 0;
      for (std::size_t t = 0; t < 300; ++t) chosen += domain_of_token[t] == d && has(ids, t, k, e) ? 1 : 0;
      CHECK(special.share(e, d) == near(tokens == 0 ? 0.0 : chosen / static_cast<double>(tokens)));
    }
  }
  CHECK(special.tokens(2) == 0);

  // Each domain's experts and no others: 1; an expert for all: K / E on average.
  mb::Specialisation disjoint(4, 2);
  disjoint.add(matrix({0, 1, 2, 3, 1, 0, 3, 2}, 2), Ids{0, 1, 0, 1});
  CHECK(disjoint.share(0, 0) == 1);
  CHECK(disjoint.share(0, 1) == 0);
  CHECK(disjoint.share(3, 1) == 1);
}

TEST_CASE("router saturation: choices that were made before already") {
  CHECK(mb::router_saturation(matrix({0, 1, 2, 3}, 2), matrix({1, 0, 3, 4}, 2), 5) == near(0.75));
  CHECK(mb::router_saturation(matrix({0, 1, 2, -1}, 2), matrix({-1, 0, -1, 2}, 2), 5) == 1);
  CHECK(mb::router_saturation(matrix({-1, -1}, 2), matrix({0, 1}, 2), 5) == 0);
  CHECK(mb::router_saturation(matrix({3, 1}, 2), matrix({-1, -1}, 2), 5) == 1);
  CHECK(mb::router_saturation(matrix({3, 1, 0}, 3), matrix({0}, 1), 5) == 1);  // with fewer experts per token later
  const Ids before = random_ids(314, 20000, 16, 4, 0), after = random_ids(315, 20000, 16, 4, 0);
  CHECK(mb::router_saturation(matrix(before, 4), matrix(after, 4), 16) == doctest::Approx(0.25).epsilon(0.02));
  // Rows that lie apart.
  CHECK(mb::router_saturation({before.data(), 3, 2, 4}, {before.data(), 3, 2, 4}, 16) == 1);
}

TEST_CASE("metrics of routing refuse what is no routing, by name, and add nothing of it") {
  const auto refuses = [](const std::string& message, const auto& call) {
    CHECK_THROWS_WITH_AS(call(), ("moe_balance: " + message).c_str(), mb::InvalidArgument);
  };
  mb::CoActivation together(4);
  refuses("CoActivation: experts is 0; allowed: 1 to 2048", [] { mb::CoActivation{0}; });
  refuses("CoActivation: experts is 2049; allowed: 1 to 2048", [] { mb::CoActivation{2049}; });
  refuses("CoActivation::add: ids[3] is 4; allowed: -1 to 3", [&] { together.add(matrix({0, 1, 2, 4}, 2)); });
  refuses("CoActivation::add: ids[2] is -2; allowed: -1 to 3", [&] { together.add(matrix({0, 1, -2, 3}, 2)); });
  refuses("CoActivation::add: ids[3] is 2; allowed: an expert that the token does not have yet", [&] {
    together.add(matrix({0, 1, 2, 2}, 2));
  });
  refuses("CoActivation::add: ids.data is null; allowed: a pointer to ids", [&] { together.add({nullptr, 1, 2}); });
  refuses("CoActivation::add: ids.rows is -1; allowed: 0 or more", [&] { together.add({nullptr, -1, 2}); });
  refuses("CoActivation::add: ids.columns is 0; allowed: 1 to 2048", [&] { together.add({nullptr, 0, 0}); });
  const Ids one{0, 1};
  refuses("CoActivation::add: ids.stride is 1; allowed: 2 or more", [&] { together.add({one.data(), 1, 2, 1}); });
  refuses("CoActivation: expert is 4; allowed: 0 to 3", [&] { (void)together.share(4, 0); });
  refuses("CoActivation: other is -1; allowed: 0 to 3", [&] { (void)together.tokens(0, -1); });
  for (int e = 0; e < 4; ++e) CHECK(together.tokens(e, e) == 0);

  mb::Specialisation special(4, 2);
  refuses("Specialisation: experts is 0; allowed: 1 to 2048", [] { mb::Specialisation(0, 1); });
  refuses("Specialisation: domains is 0; allowed: 1 or more", [] { mb::Specialisation(1, 0); });
  refuses("Specialisation::add: ids[0] is 5; allowed: -1 to 3", [&] { special.add(matrix({5, 1}, 2), Ids{0}); });
  refuses("Specialisation::add: domains.size is 2; allowed: 1 (the tokens of ids)", [&] {
    special.add(matrix({0, 1}, 2), Ids{0, 1});
  });
  refuses("Specialisation::add: domains[1] is 2; allowed: -1 to 1", [&] {
    special.add(matrix({0, 1, 0, 1}, 2), Ids{0, 2});
  });
  refuses("Specialisation::add: domains[0] is -2; allowed: -1 to 1", [&] { special.add(matrix({0, 1}, 2), Ids{-2}); });
  refuses("Specialisation: expert is -1; allowed: 0 to 3", [&] { (void)special.share(-1, 0); });
  refuses("Specialisation: domain is 2; allowed: 0 to 1", [&] { (void)special.share(0, 2); });
  CHECK(special.tokens(0) == 0);

  refuses("router_saturation: experts is 0; allowed: 1 to 2048",
          [&] { (void)mb::router_saturation(matrix(one, 2), matrix(one, 2), 0); });
  refuses("router_saturation: earlier[1] is 1; allowed: -1 to 0",
          [&] { (void)mb::router_saturation(matrix(one, 2), matrix(one, 2), 1); });
  refuses("router_saturation: later[0] is 2; allowed: -1 to 1", [&] {
    (void)mb::router_saturation(matrix(one, 2), matrix({2, 0}, 2), 2);
  });
  refuses("router_saturation: later.rows is 2; allowed: 1 (the tokens of earlier)",
          [&] { (void)mb::router_saturation(matrix(one, 2), matrix(one, 1), 2); });
}

}  // namespace testing
