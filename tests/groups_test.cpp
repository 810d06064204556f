// Groups of experts on the CPU: which keys stay, of a row and of rows side by side, beside sorted groups; and whole routers.
#include "random.hpp"
#include "side_by_side.hpp"

#include <moe_balance/topk/groups_on_cpu.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

using namespace side_by_side;

namespace {

/// A class that is derived from groups and narrows otherwise: the first expert is never chosen.
struct AllButTheFirst : mb::GroupLimitedTopK<2> {
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT& tile, const LayoutT& layout, Keys& keys) const {
    mb::GroupLimitedTopK<2>::narrow<Real>(tile, layout, keys);
    keys[0] = mb::excluded_key<mb::Key<Real>>;
  }
};

enum class Values { normal, ties, zeros, with_faults, negative };

std::vector<float> make_row(testing::Random& random, Values values, int experts) {
  constexpr float infinite = std::numeric_limits<float>::infinity();
  const float faults[] = {infinite, -infinite, std::numeric_limits<float>::quiet_NaN()};
  std::vector<float> row(static_cast<std::size_t>(experts));
  for (float& value : row) {
    value = static_cast<float>(random.normal());
    if (values == Values::ties) value = static_cast<float>(random.integer(-1, 1));
    if (values == Values::zeros) value = random.chance(0.5) ? -0.0f : 0.0f;
    if (values == Values::with_faults && random.chance(0.3)) value = faults[random.integer(0, 2)];
    if (values == Values::negative) value = value * 1e37f - 3e38f;  // some sums are -infinity
  }
  return row;
}

/// Larger values first; NaN is behind all others.
bool is_before(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return !std::isnan(a) && std::isnan(b);
  return a > b;
}

/// For each expert whether its group is kept.
std::vector<bool> expected_to_stay(const std::vector<float>& row, const mb::GroupsOfRow& groups) {
  std::vector<float> scores;
  for (int g = 0; g < groups.groups; ++g) {
    const auto first = row.begin() + g * groups.size;
    std::vector<float> values(first, first + groups.size);
    std::sort(values.begin(), values.end(), is_before);
    scores.push_back(std::accumulate(values.begin(), values.begin() + groups.score_top, 0.0f));
  }
  std::vector<int> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return is_before(scores[static_cast<std::size_t>(a)], scores[static_cast<std::size_t>(b)]);
  });
  std::vector<bool> stays(row.size());
  for (int i = 0; i < groups.kept; ++i) {
    for (int e = 0; e < groups.size; ++e)
      stays[static_cast<std::size_t>(order[static_cast<std::size_t>(i)] * groups.size + e)] = true;
  }
  return stays;
}

constexpr std::int32_t behind = 77;  ///< what lies behind a row's keys, and stays

/// Calls f(groups) for shapes with whole vectors, parts of them, one expert a group, and the most groups.
template <class Function>
void for_each_shape(int most_score_top, const Function& f) {
  for (const int count : {1, 2, 3, 4, 5, 8, 9, 16, 31, 32}) {
    for (const int size : {1, 2, 3, 7, 8, 9, 16, 20, 32, 63}) {
      for (int top = 1; top <= std::min(size, most_score_top); top += top < 2 ? 1 : 3) {
        for (const int kept : {1, (count + 1) / 2, count - 1, count}) {
          if (kept > 0) f(mb::GroupsOfRow{.groups = count, .kept = kept, .score_top = top, .size = size});
        }
      }
    }
  }
}

static_assert(mb::narrows_side_by_side<mb::GroupLimitedTopK<2>> &&
              mb::narrows_side_by_side<mb::WithCapacity<mb::GroupLimitedTopK<2>>>);
static_assert(!mb::narrows_side_by_side<mb::TopK<2>> && !mb::narrows_side_by_side<mb::WithCapacity<mb::TopK<2>>>);

constexpr Values all_values[] = {Values::normal, Values::ties, Values::zeros, Values::with_faults, Values::negative};

}  // namespace

TEST_CASE("a row's keys: those of the best groups stay, the others are excluded, nothing else is written") {
  testing::Random random(1);
  std::int64_t wrong = 0;
  std::int64_t rows = 0;
  for_each_shape(2, [&](const mb::GroupsOfRow& groups) {
    for (const Values values : all_values) {
      const int experts = groups.groups * groups.size;
      const std::vector<float> row = make_row(random, values, experts);
      const std::vector<bool> stays = expected_to_stay(row, groups);
      std::vector<std::int32_t> keys(row.size() + 8, behind);
      for (std::size_t e = 0; e < row.size(); ++e) keys[e] = mb::ordered_key(row[e]);
      mb::exclude_groups(groups, keys.data());
      for (std::size_t e = 0; e < row.size(); ++e)
        wrong += keys[e] != (stays[e] ? mb::ordered_key(row[e]) : mb::excluded_key<std::int32_t>) ? 1 : 0;
      for (std::size_t e = row.size(); e < keys.size(); ++e) wrong += keys[e] != behind ? 1 : 0;
      ++rows;
    }
  });
  CHECK(wrong == 0);
  CHECK(rows > 3000);
}

TEST_CASE("the same of rows side by side, for scores of up to eight values") {
  testing::Random random(2);
  std::int64_t wrong = 0;
  for_each_shape(8, [&](const mb::GroupsOfRow& groups) {
    const int experts = groups.groups * groups.size;
    if (experts > 64) return;
    alignas(64) mb::KeysSideBySide keys[65];
    std::vector<float> rows[mb::lane_count];
    for (int i = 0; i < mb::lane_count; ++i) {
      rows[i] = make_row(random, all_values[i % 5], experts);
      for (int e = 0; e < experts; ++e) keys[e][i] = mb::ordered_key(rows[i][static_cast<std::size_t>(e)]);
      keys[experts][i] = behind;
    }
    mb::exclude_groups_side_by_side(groups, keys);
    for (int i = 0; i < mb::lane_count; ++i) {
      const std::vector<bool> stays = expected_to_stay(rows[i], groups);
      for (std::size_t e = 0; e < stays.size(); ++e)
        wrong += keys[e][i] != (stays[e] ? mb::ordered_key(rows[i][e]) : mb::excluded_key<std::int32_t>) ? 1 : 0;
      wrong += keys[experts][i] != behind ? 1 : 0;
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("routers with groups: side by side and row by row") {
  std::uint64_t seed = 1;
  for (const int experts : {8, 24, 60, 64, 72}) {
    for (const mb::GroupLimitedTopK<4> selection :
         {mb::GroupLimitedTopK<4>{.groups = 4, .groups_kept = 2}, mb::GroupLimitedTopK<4>{.groups = 4, .groups_kept = 4},
          mb::GroupLimitedTopK<4>{.groups = 2, .groups_kept = 1, .group_score_top = 4}}) {
      CAPTURE(experts);
      CAPTURE(selection.group_score_top);
      for (const Kind kind : kinds) {
        CAPTURE(static_cast<int>(kind));
        testing::Inputs inputs = make_inputs(kind, experts, 4, ++seed);
        inputs.bias = testing::normal_bias(seed, experts);
        inputs.load = testing::zero_load(experts);
        check(mb::Router{mb::Sigmoid{}, selection, mb::LossFreeBias{}}, inputs);
      }
    }
  }
}

TEST_CASE("a selection that is derived from groups keeps its own narrow") {
  static_assert(!mb::narrows_side_by_side<AllButTheFirst>);
  testing::Inputs inputs = make_inputs(Kind::normal, 64, 2, 3);
  for (std::size_t token = 0; token < inputs.logits.size(); token += 64) inputs.logits[token] = 50;
  inputs.backward = false;
  const testing::Outcome outcome =
      testing::train(testing::HostEngine{}, mb::Router{mb::Sigmoid{}, AllButTheFirst{}}, inputs);
  CHECK(std::count(outcome.experts.begin(), outcome.experts.end(), 0) == 0);
}
