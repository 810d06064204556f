// Selection on the CPU beside a stable sort: every count of columns, all ways through (few candidates, too many, more rows than marks), any keys.
#include <moe_balance/numeric/select_from_memory.hpp>
#include <moe_balance/tile/tile.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace {

namespace mb = moe_balance;

using Row = mb::Layout<mb::SerialTile, 2048>;
using Engine = std::mt19937;

template <class K>
using Maker = K (*)(Engine&, int slot, int slots);

template <class K>
struct Kind {
  const char* name;
  Maker<K> make;
};

template <class K>
K any_key(Engine& engine) {
  return static_cast<K>(std::uniform_int_distribution<std::int64_t>(mb::nan_key<K>, std::numeric_limits<K>::max())(engine));
}

/// Keys that lead to few candidates, to one of every column, to all in one column, to ties at and around the threshold, to excluded ones.
template <class K>
const Kind<K> kinds[] = {
    {"any", [](Engine& engine, int, int) { return any_key<K>(engine); }},
    {"equal", [](Engine&, int, int) { return K{7}; }},
    {"NaN only", [](Engine&, int, int) { return mb::nan_key<K>; }},
    {"two values", [](Engine& engine, int, int) { return static_cast<K>(engine() % 2); }},
    {"neighbours", [](Engine& engine, int, int) { return static_cast<K>(1000 + engine() % 64); }},
    {"ascending", [](Engine&, int slot, int) { return static_cast<K>(slot) - 5; }},
    {"descending", [](Engine&, int slot, int slots) { return static_cast<K>(slots - slot); }},
    {"one column",
     [](Engine& engine, int slot, int) { return static_cast<K>((slot % 64 == 3 ? 1 << 20 : 0) + engine() % 1000); }},
    {"last rows",
     [](Engine& engine, int slot, int slots) { return static_cast<K>((slot > slots - 40 ? 1 << 20 : 0) + engine() % 999); }},
    {"half excluded",
     [](Engine& engine, int slot, int) { return slot % 2 == 0 ? any_key<K>(engine) : mb::excluded_key<K>; }},
    {"largest and least",
     [](Engine& engine, int, int) { return engine() % 3 == 0 ? std::numeric_limits<K>::max() : mb::nan_key<K>; }},
};

template <class K, int Count>
void compare_with_sort(const Kind<K>& kind, int experts, Engine& engine) {
  const Row layout{experts, 0};
  mb::Slots<K, Row> keys;
  std::fill(std::begin(keys.values), std::end(keys.values),
            std::numeric_limits<K>::max());  // past the blocks: nobody's business
  for (int i = 0; i < layout.blocks() * Row::block_size; ++i)
    keys[i] = i < experts ? kind.make(engine, i, experts) : mb::excluded_key<K>;
  std::vector<int> expected;
  for (int i = 0; i < experts; ++i) {
    if (keys[i] != mb::excluded_key<K>) expected.push_back(i);
  }
  if (static_cast<int>(expected.size()) < Count) return;
  std::stable_sort(expected.begin(), expected.end(), [&](int a, int b) { return keys[a] > keys[b]; });
  mb::MemorySelection<Row, K, Count> selection;
  selection.begin(layout, keys);
  selection.finish(keys);
  CAPTURE(std::string(kind.name));
  CAPTURE(experts);
  CAPTURE(Count);
  for (int k = 0; k < Count; ++k) {
    if (selection.slot(k) == expected[static_cast<std::size_t>(k)]) continue;
    CAPTURE(k);
    CHECK(selection.slot(k) == expected[static_cast<std::size_t>(k)]);
    return;
  }
}

template <class K, int Count>
void all_shapes() {
  Engine engine(Count);
  int compared = 0;
  for (const Kind<K>& kind : kinds<K>) {
    for (const int experts : {1,   2,   5,   8,   16,  17,  31,  32,  33,   64,   65,   96,   100, 128,
                              160, 250, 256, 257, 288, 511, 512, 544, 1000, 1024, 1056, 2047, 2048}) {
      for (int repeat = 0; repeat < 3 && experts >= Count; ++repeat, ++compared)
        compare_with_sort<K, Count>(kind, experts, engine);
    }
  }
  CHECK(compared > 400);
}

template <class K, int... Counts>
void all_counts() {
  (all_shapes<K, Counts>(), ...);
}

TEST_CASE("keys of float32 are selected as a stable sort would") {
  all_counts<std::int32_t, 1, 2, 4, 5, 8, 9, 16, 17, 22, 32>();
}

TEST_CASE("keys of float64 are selected as a stable sort would") {
  all_counts<std::int64_t, 1, 8, 32>();
}

TEST_CASE("equal keys go to the smaller slot, by either way") {
  const Row layout{256, 0};
  mb::Slots<std::int32_t, Row> keys;
  mb::MemorySelection<Row, std::int32_t, 4> selection;
  for (const int first : {253, 55}) {  // few candidates; too many to be ranked
    for (int i = 0; i < 256; ++i) keys[i] = i >= first ? 5 : 1;
    keys[100] = 9;
    selection.begin(layout, keys);
    selection.finish(keys);
    CHECK(selection.slot(0) == 100);
    for (int k = 1; k < 4; ++k) CHECK(selection.slot(k) == first + k - 1);
  }
}

}  // namespace
