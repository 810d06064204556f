// Selection from rows side by side, beside a stable sort: every way to do it that this machine has, any keys, ties and keys that are excluded.
#include <moe_balance/numeric/select_in_lanes.hpp>

#include "random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

namespace mb = moe_balance;

constexpr std::int32_t excluded = mb::excluded_key<std::int32_t>;

std::int32_t make_key(testing::Random& random, int kind, int slot) {
  switch (kind) {
    case 0:
      return static_cast<std::int32_t>(
          std::max<std::int64_t>(static_cast<std::int32_t>(random.bits()), mb::nan_key<std::int32_t>));
    case 1:
      return random.integer(0, 1);
    case 2:
      return mb::nan_key<std::int32_t>;
    case 3:
      return 100 - slot;
    case 4:
      return slot;
    default:
      return random.chance(0.3) ? excluded : random.integer(-3, 3);
  }
}

template <int Count>
void check(mb::InstructionSet instructions) {
  testing::Random random(Count);
  for (const int slots : {Count, Count + 1, std::min(2 * Count + 3, 64), 64}) {
    CAPTURE(slots);
    for (int kind = 0; kind < 6; ++kind) {
      CAPTURE(kind);
      alignas(64) mb::KeysSideBySide key[64];
      std::vector<std::vector<std::int32_t>> rows(mb::lane_count);
      for (int row = 0; row < mb::lane_count; ++row) {
        std::vector<std::int32_t>& keys = rows[static_cast<std::size_t>(row)];
        for (int slot = 0; slot < slots; ++slot) keys.push_back(make_key(random, kind, slot));
        for (int k = 0; kind == 5 && k < Count; ++k) keys[static_cast<std::size_t>(k)] = 7;  // enough are left
        for (int slot = 0; slot < slots; ++slot) key[slot][row] = keys[static_cast<std::size_t>(slot)];
      }
      alignas(64) mb::KeysSideBySide slot[Count];
      alignas(64) mb::KeysSideBySide best[Count];
      mb::select_in_lanes<Count>(instructions, key, slots, slot, best);
      for (int row = 0; row < mb::lane_count; ++row) {
        const std::vector<std::int32_t>& keys = rows[static_cast<std::size_t>(row)];
        std::vector<int> order(keys.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
          return keys[static_cast<std::size_t>(a)] > keys[static_cast<std::size_t>(b)];
        });
        for (int k = 0; k < Count; ++k) {
          const int expected = order[static_cast<std::size_t>(k)];
          CHECK(slot[k][row] == expected);
          CHECK(best[k][row] == keys[static_cast<std::size_t>(expected)]);
        }
      }
    }
  }
}

void check_all(mb::InstructionSet instructions) {
  check<1>(instructions);
  check<2>(instructions);
  check<7>(instructions);
  check<8>(instructions);
  check<32>(instructions);
}

}  // namespace

TEST_CASE("select_in_lanes for any processor") {
  check_all(mb::InstructionSet::baseline);
}

#if defined(__x86_64__)
TEST_CASE("select_in_lanes for x86-64-v3") {
  if (__builtin_cpu_supports("avx2"))
    check_all(mb::InstructionSet::x86_64_v3);
  else
    MESSAGE("no AVX2: not run");
}
#endif
