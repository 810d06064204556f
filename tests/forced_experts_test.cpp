// Forced ids (topk/forced_experts.hpp): distinct, in range, and as even, as random or as uneven as they say.
#include <doctest/doctest.h>
#include <moe_balance/metrics/load_metrics.hpp>
#include <moe_balance/topk/forced_experts.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace testing {

namespace mb = moe_balance;

namespace {

using Ids = std::vector<std::int32_t>;

constexpr std::tuple<int, int, int> shapes[] = {{1, 1, 1},    {5, 1, 1},     {1, 8, 2},    {37, 8, 8},   {64, 8, 2},
                                                {100, 60, 4}, {333, 256, 8}, {50, 32, 32}, {40, 4096, 6}};

/// Rows of K ids that lie `gap` apart, with -7 between them.
struct Table {
  int tokens, k, stride;
  Ids ids;
  Table(int token_count, int choices, int gap = 0)
      : tokens(token_count), k(choices), stride(choices + gap), ids(static_cast<std::size_t>(token_count * stride), -7) {}
  [[nodiscard]] mb::MatrixView<std::int32_t> view() { return {ids.data(), tokens, k, stride}; }

  /// Tokens of each expert. Every token has K experts in range, none twice, and what lies between rows is as it was.
  [[nodiscard]] std::vector<std::int64_t> counts(int experts) const {
    std::vector<std::int64_t> result(static_cast<std::size_t>(experts), 0);
    for (int t = 0; t < tokens; ++t) {
      const auto row = ids.begin() + t * stride;
      CHECK(std::set<std::int32_t>(row, row + k).size() == static_cast<std::size_t>(k));
      CHECK(std::all_of(row, row + k, [&](std::int32_t id) { return id >= 0 && id < experts; }));
      CHECK(std::all_of(row + k, row + stride, [](std::int32_t id) { return id == -7; }));
      for (int i = 0; i < k; ++i) ++result.at(static_cast<std::size_t>(row[i]));
    }
    return result;
  }
};

std::int64_t largest(const std::vector<std::int64_t>& counts) {
  return *std::max_element(counts.begin(), counts.end());
}

}  // namespace

TEST_CASE("round robin: each expert in turn, and ranks go on where others stop") {
  Table small(3, 2);
  mb::force_round_robin(small.view(), 4);
  CHECK(small.ids == Ids{0, 1, 2, 3, 0, 1});
  for (const auto& [tokens, experts, k] : shapes) {
    CAPTURE(experts);
    Table table(tokens, k, 3);
    mb::force_round_robin(table.view(), experts);
    const std::vector<std::int64_t> counts = table.counts(experts);
    CHECK(largest(counts) - *std::min_element(counts.begin(), counts.end()) <= 1);
    Table rest(tokens, k, 3);
    mb::force_round_robin(rest.view(), experts, 5 * std::int64_t{k});
    for (int t = 5; t < tokens; ++t)
      CHECK(std::equal(table.ids.begin() + t * table.stride, table.ids.begin() + (t + 1) * table.stride,
                       rest.ids.begin() + (t - 5) * table.stride));
  }
}

TEST_CASE(
    "uniform: every expert in every slot equally often, pairs as chance has them, the same for the same seed and token") {
  for (const auto& [tokens, experts, k] : shapes) {
    Table table(tokens, k, 2), again(tokens, k, 2), later(tokens, k, 2), other(tokens, k, 2);
    mb::force_uniform(table.view(), experts, 17);
    (void)table.counts(experts);
    mb::force_uniform(again.view(), experts, 17);
    CHECK(again.ids == table.ids);
    mb::force_uniform(later.view(), experts, 17, 3);
    for (int t = 3; t < tokens; ++t)
      CHECK(std::equal(table.ids.begin() + t * table.stride, table.ids.begin() + (t + 1) * table.stride,
                       later.ids.begin() + (t - 3) * table.stride));
    mb::force_uniform(other.view(), experts, 18);
    if (tokens > 10 && experts > 1) CHECK(other.ids != table.ids);
  }
  // Chi-squared sums have their degrees of freedom as mean, and twice that as variance.
  constexpr int tokens = 40000, experts = 12, k = 3;
  Table table(tokens, k);
  mb::force_uniform(table.view(), experts, 4);
  std::vector<double> in_slot(experts * k, 0.0), pairs(experts * experts, 0.0);
  for (int t = 0; t < tokens; ++t) {
    const std::int32_t* const row = table.ids.data() + t * k;
    for (int i = 0; i < k; ++i) ++in_slot[static_cast<std::size_t>(i * experts + row[i])];
    ++pairs[static_cast<std::size_t>(row[0] * experts + row[2])];
  }
  double slots_off = 0, pairs_off = 0;
  for (const double count : in_slot) slots_off += std::pow(count - tokens / 12.0, 2) / (tokens / 12.0);
  for (int i = 0; i < experts; ++i) {
    for (int j = 0; j < experts; ++j) {
      if (i == j) continue;
      pairs_off += std::pow(pairs[static_cast<std::size_t>(i * experts + j)] - tokens / 132.0, 2) / (tokens / 132.0);
    }
  }
  CHECK(std::abs(slots_off - 33) < 4 * std::sqrt(66.0));
  CHECK(std::abs(pairs_off - 131) < 4 * std::sqrt(262.0));
}

TEST_CASE("a set MaxVio: the busiest expert has it to the token, the others are even") {
  for (const auto& [tokens, experts, k] : shapes) {
    CAPTURE(experts);
    const double most = static_cast<double>(experts) / k - 1;
    for (const double part : {0.0, 0.1, 0.5, 1.0}) {
      Table table(tokens, k, 1);
      mb::force_max_violation(table.view(), experts, part * most);
      std::vector<std::int64_t> counts = table.counts(experts);
      const double want = (1 + part * most) * tokens * k / experts;
      CHECK(std::abs(static_cast<double>(counts[0]) - want) <= 0.5 + 1e-9);
      counts.erase(counts.begin());
      if (!counts.empty()) CHECK(largest(counts) - *std::min_element(counts.begin(), counts.end()) <= 1);
    }
  }
  Table table(8000, 4);
  mb::force_max_violation(table.view(), 32, 1.5);
  CHECK(mb::load_metrics(table.counts(32)).max_violation == doctest::Approx(1.5).epsilon(1e-9));
}

TEST_CASE("forced ids refuse what they cannot do, by name, and write nothing") {
  Table table(2, 4);
  const auto refuses = [&](const std::string& message, const auto& call) {
    CHECK_THROWS_WITH_AS(call(), ("moe_balance: " + message).c_str(), mb::InvalidArgument);
    CHECK(table.ids == Ids(8, -7));
  };
  std::int32_t* const ids = table.ids.data();
  refuses("force_round_robin: experts is 3; allowed: 4 (the columns of ids) to 1048576",
          [&] { mb::force_round_robin(table.view(), 3); });
  refuses("force_round_robin: first_slot is -1; allowed: 0 or more", [&] { mb::force_round_robin(table.view(), 4, -1); });
  refuses("force_uniform: first_token is -1; allowed: 0 or more", [&] { mb::force_uniform(table.view(), 4, 1, -1); });
  refuses("force_uniform: ids.columns is 33; allowed: 1 to 32", [&] { mb::force_uniform({ids, 1, 33}, 64, 1); });
  refuses("force_uniform: ids.columns is 0; allowed: 1 to 32", [&] { mb::force_uniform({ids, 1, 0}, 64, 1); });
  refuses("force_uniform: ids.rows is -1; allowed: 0 to 1099511627776", [&] { mb::force_uniform({ids, -1, 4}, 64, 1); });
  refuses("force_uniform: ids.data is null; allowed: a pointer to the caller's memory, on the host", [&] {
    mb::force_uniform({nullptr, 1, 4}, 64, 1);
  });
  refuses("force_uniform: ids.stride is 3; allowed: 4 or more", [&] { mb::force_uniform({ids, 2, 4, 3}, 64, 1); });
  refuses("force_max_violation: max_violation is -0.500000; allowed: 0 to 1.000000 (experts / K - 1)",
          [&] { mb::force_max_violation(table.view(), 8, -0.5); });
  refuses("force_max_violation: max_violation is 1.100000; allowed: 0 to 1.000000 (experts / K - 1)",
          [&] { mb::force_max_violation(table.view(), 8, 1.1); });
  refuses("force_max_violation: max_violation is nan; allowed: 0 to 1.000000 (experts / K - 1)",
          [&] { mb::force_max_violation(table.view(), 8, std::numeric_limits<double>::quiet_NaN()); });
  refuses("force_uniform: experts is 1048577; allowed: 4 (the columns of ids) to 1048576",
          [&] { mb::force_uniform(table.view(), 1048577, 1); });
  mb::force_uniform({nullptr, 0, 4}, 4, 1);  // no tokens
  Table last(2, 3);                          // tokens whose numbers end before those of the type
  mb::force_uniform(last.view(), 8, 1, std::numeric_limits<std::int64_t>::max());
  (void)last.counts(8);
  Table float_limit(9, 3);
  mb::force_max_violation(float_limit.view(), 8, static_cast<double>(8.0f / 3 - 1));
  CHECK(float_limit.counts(8)[0] == 9);
}

}  // namespace testing
