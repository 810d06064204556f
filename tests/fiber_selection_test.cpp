// Selection by words that have both a key and its slot, on fibers, against std::stable_sort: it gives the K largest keys in order, equal ones by the
// smaller expert, or says that it cannot, which it may do for two reasons only, and seldom does.
#include "random.hpp"
#include "tile/fiber_tile.hpp"

#include <moe_balance/moe_balance.hpp>
#include <moe_balance/numeric/select_in_registers.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace testing {

namespace mb = moe_balance;

namespace {

using Keys = std::vector<std::int32_t>;
constexpr std::int32_t excluded = std::numeric_limits<std::int32_t>::min();
constexpr std::int32_t nan_key = excluded + 1;

struct Pick {
  std::int32_t expert = -1;
  std::int32_t key = 0;
  bool operator==(const Pick&) const = default;
};

/// The experts by their keys, the largest first.
std::vector<Pick> sorted(const Keys& keys) {
  std::vector<Pick> picks(keys.size());
  for (std::size_t e = 0; e < keys.size(); ++e) picks[e] = {static_cast<std::int32_t>(e), keys[e]};
  std::stable_sort(picks.begin(), picks.end(), [](const Pick& a, const Pick& b) { return a.key > b.key; });
  return picks;
}

/// What a selection did.
struct Selected {
  bool succeeded = true;
  std::vector<Pick> picks;
  int emitted = 0;
};

template <int Count, int Width, int Capacity>
struct Subject {
  using Tile = mb::TileWithMemory<FiberTile<Width>>;
  using Layout = mb::Layout<Tile, Width * Capacity>;
  using Packed = mb::PackedSelection<Count, Tile, Layout>;
  static_assert(Packed::works && Packed::serves == (Width == 32 || Capacity <= 8));
  static constexpr int experts = Width * Capacity;
  static constexpr std::int64_t window =
      std::int64_t{0xffffffffu} / Capacity;  ///< how far below the highest key others are told apart

  static Selected run(const Keys& keys, std::int32_t highest, std::uint64_t seed) {
    Selected result{.picks = std::vector<Pick>(Count)};
    std::uint32_t memory[2 * Width];
    std::fill(std::begin(memory), std::end(memory), 0xdeadbeefu);
    FiberGroup group(Width, seed);
    group.run([&](int lane) {
      const Tile tile{{&group, lane}, memory};
      const Layout layout{experts, lane};
      mb::Slots<std::int32_t, Layout> slots;
      for (int i = 0; i < Capacity; ++i) slots[i] = keys[static_cast<std::size_t>(layout.expert(i))];
      const bool succeeded =
          Packed::select(tile, slots, Packed::lowest_for(highest), [&](int k, std::int32_t expert, std::int32_t key) {
            CHECK(k == lane);
            result.picks[static_cast<std::size_t>(k)] = {expert, key};
            ++result.emitted;
          });
      if (!succeeded) result.succeeded = false;
    });
    return result;
  }

  /// Whether it may give up: the last pick is as low as the window's end, or a lane has given all that was known of it before the last.
  static bool may_fail(const std::vector<Pick>& best, std::int32_t highest) {
    if (best[Count - 1].key <= std::max<std::int64_t>(highest - window, excluded)) return true;
    if (Packed::knows_all) return false;
    int taken[Width] = {};
    for (int k = 0; k + 1 < Count; ++k) ++taken[best[static_cast<std::size_t>(k)].expert / 4 % Width];
    return *std::max_element(std::begin(taken), std::end(taken)) >= Packed::depth;
  }

  /// Returns whether it succeeded.
  static bool check(const Keys& keys, std::int32_t highest, std::uint64_t seed) {
    const std::vector<Pick> best = sorted(keys);
    const Selected selected = run(keys, highest, seed);
    CAPTURE(Count);
    CAPTURE(Width);
    CAPTURE(Capacity);
    CAPTURE(seed);
    CHECK(selected.succeeded != may_fail(best, highest));
    CHECK(selected.emitted == (selected.succeeded ? Count : 0));
    if (selected.succeeded) CHECK(std::equal(selected.picks.begin(), selected.picks.end(), best.begin()));
    return selected.succeeded;
  }
  static bool check(const Keys& keys, std::uint64_t seed) {
    return check(keys, *std::max_element(keys.begin(), keys.end()), seed);
  }

  static Keys filled(Random& random, const auto& key) {
    Keys keys(experts);
    for (std::int32_t& value : keys) value = static_cast<std::int32_t>(key(random));
    return keys;
  }

  static void check_all() {
    Random random(static_cast<std::uint64_t>(Count * 10000 + Width * 100 + Capacity));
    const auto any = [](Random& r) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(r.bits())); };
    for (std::uint64_t round = 0; round < 30; ++round) {
      // Over all integers most rows have too few in the window. Below, windows that lie anywhere, the first and the last there can be among them.
      check(filled(random, any), round);
      const std::int64_t highest = round % 3 == 0   ? std::numeric_limits<std::int32_t>::max()
                                   : round % 3 == 1 ? excluded + static_cast<std::int64_t>(random.integer(1, 1000))
                                                    : any(random);
      const auto in_window = [&](Random& r) {
        const auto distance = static_cast<std::int64_t>(r.uniform() * static_cast<double>(window) * 1.01);
        return std::max<std::int64_t>(highest - distance, excluded);
      };
      const auto in_levels = [&](Random& r) { return std::max<std::int64_t>(highest - r.integer(0, 3), excluded); };
      check(filled(random, in_window), round);
      check(filled(random, in_levels), round);
      check(filled(random, [&](Random&) { return highest; }), round);
      // Half of them NaN or excluded, then all but as many as must not be.
      check(filled(random, [&](Random& r) { return r.chance(0.25)  ? excluded
                                                   : r.chance(0.3) ? nan_key
                                                                   : in_levels(r); }),
            round);
      Keys few(experts, round % 2 == 0 ? excluded : nan_key);
      for (const int e : random.distinct_ids(Count, experts))
        few[static_cast<std::size_t>(e)] = nan_key + 1 + random.integer(0, 2);
      check(few, round);
      // A highest key that none reaches, as of probabilities, and one more than the window away.
      check(filled(random, [](Random& r) { return 0x3f800000 - r.integer(0, 0x3000000); }), mb::largest_unit_key, round);
      check(filled(random, [](Random& r) { return r.chance(0.9) ? 0 : 0x3f800000; }), mb::largest_unit_key, round);
      check_edge(random, round);
      check_crowded_lane(random, round);
    }
    CHECK(successful_warps(random) >= 88);
  }

  /// Keys at the window's end and one above it.
  static void check_edge(Random& random, std::uint64_t round) {
    const std::int32_t lowest = std::numeric_limits<std::int32_t>::max() - static_cast<std::int32_t>(window);
    Keys keys(experts, lowest);
    const int above = random.integer(Count - 1, Count + 2);
    for (const int e : random.distinct_ids(std::min(above, experts), experts))
      keys[static_cast<std::size_t>(e)] = lowest + 1;
    check(keys, std::numeric_limits<std::int32_t>::max(), round);
  }

  /// One lane with many of the best.
  static void check_crowded_lane(Random& random, std::uint64_t round) {
    const int crowded = random.integer(0, Width - 1);
    Keys keys = filled(random, [](Random& r) { return r.integer(0, 1000); });
    for (int e = 0; e < experts; ++e) {
      if (e / 4 % Width == crowded && random.chance(0.5)) keys[static_cast<std::size_t>(e)] += 500;
    }
    check(keys, round);
  }

  /// Of a hundred warps with distinct keys, those whose tiles all succeed.
  static int successful_warps(Random& random) {
    int successful = 0;
    for (int warp = 0; warp < 100; ++warp) {
      bool all = true;
      for (int tile = 0; tile < 32 / Width; ++tile) {
        Keys keys(experts);
        std::iota(keys.begin(), keys.end(), 5);
        for (std::size_t i = keys.size() - 1; i > 0; --i) std::swap(keys[i], keys[random.bits() % (i + 1)]);
        all = check(keys, static_cast<std::uint64_t>(warp)) && all;
      }
      successful += all ? 1 : 0;
    }
    return successful;
  }
};

template <int Width, int Capacity>
void check_counts() {
  Subject<1, Width, Capacity>::check_all();
  Subject<2, Width, Capacity>::check_all();
  Subject<4, Width, Capacity>::check_all();
  Subject<8, Width, Capacity>::check_all();
}

}  // namespace

TEST_CASE("packed selection in tiles of 8 lanes: the K largest keys in order, or a reason") {
  check_counts<8, 4>();
  check_counts<8, 8>();
  check_counts<8, 16>();
  check_counts<8, 32>();
}

TEST_CASE("packed selection in tiles of 16 lanes") {
  check_counts<16, 4>();
  check_counts<16, 8>();
  check_counts<16, 16>();
  check_counts<16, 32>();
  Subject<16, 16, 8>::check_all();
}

TEST_CASE("packed selection in tiles of 32 lanes") {
  check_counts<32, 4>();
  check_counts<32, 8>();
  check_counts<32, 16>();
  check_counts<32, 32>();
  Subject<10, 32, 8>::check_all();
  Subject<16, 32, 16>::check_all();
}

}  // namespace testing
