// Selection on the CPU beside a stable sort: every count of columns, all ways through (few candidates, too many, several words of marks), all ways to mark,
// any keys.
#include <moe_balance/numeric/select_from_memory.hpp>
#include <moe_balance/tile/tile.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace {

namespace mb = moe_balance;

using Row = mb::Layout<mb::SerialTile, 2048>;
using Engine = std::mt19937;

/// The instruction sets that this machine has.
std::vector<mb::InstructionSet> instruction_sets() {
  std::vector<mb::InstructionSet> result{mb::InstructionSet::baseline};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) result.push_back(mb::InstructionSet::x86_64_v3);
  if (__builtin_cpu_supports("avx512f")) result.push_back(mb::InstructionSet::x86_64_v4);
#endif
  return result;
}

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

/// Keys, and what a stable sort puts first; a row with too few keys to choose from is left out.
template <class K>
struct Task {
  mb::Slots<K, Row> keys;
  std::vector<int> expected;
  bool is_there = false;
};

template <class K>
void make(Task<K>& task, const Kind<K>& kind, int experts, int count, Engine& engine) {
  const Row layout{experts, 0};
  mb::Slots<K, Row>& keys = task.keys;
  // Past the blocks lies what is nobody's business: too little to be noticed by its number, and larger than all keys.
  std::fill(std::begin(keys.values), std::end(keys.values), mb::excluded_key<K>);
  for (std::size_t i = 3; i < std::size(keys.values); i += 16) keys.values[i] = std::numeric_limits<K>::max();
  for (int i = 0; i < layout.blocks() * Row::block_size; ++i)
    keys[i] = i < experts ? kind.make(engine, i, experts) : mb::excluded_key<K>;
  task.expected.clear();
  for (int i = 0; i < experts; ++i) {
    if (keys[i] != mb::excluded_key<K>) task.expected.push_back(i);
  }
  std::stable_sort(task.expected.begin(), task.expected.end(), [&](int a, int b) { return keys[a] > keys[b]; });
  task.is_there = static_cast<int>(task.expected.size()) >= count;
}

template <class Selection, class K, std::size_t Rows>
void select(Selection& selection, const Row& layout, std::array<Task<K>, Rows>& tasks) {
  const auto each = [&](auto&& step) {
    for (std::size_t r = 0; r < Rows; ++r) {
      if (tasks[r].is_there) step(static_cast<int>(r), tasks[r].keys);
    }
  };
  each([&](int r, auto& keys) { selection.look(layout, r, keys); });
  selection.find_thresholds();
  each([&](int r, const auto& keys) { selection.collect(r, keys); });
  selection.rank();
  each([&](int r, const auto& keys) { selection.finish(r, keys); });
}

template <int Count, class Selection, class K, std::size_t Rows>
void check_rows(const Selection& selection, const std::array<Task<K>, Rows>& tasks) {
  for (std::size_t r = 0; r < Rows; ++r) {
    for (int k = 0; tasks[r].is_there && k < Count; ++k) {
      const int expected = tasks[r].expected[static_cast<std::size_t>(k)];
      if (selection.slot(static_cast<int>(r), k) == expected) continue;
      CAPTURE(r);
      CAPTURE(k);
      CHECK(selection.slot(static_cast<int>(r), k) == expected);
      return;
    }
  }
}

/// Rows of different kinds side by side: some have too many candidates, some are left out. The selection is used again and again.
template <class K, int Count, std::size_t Rows>
void all_shapes(mb::InstructionSet instructions) {
  Engine engine(Count);
  const auto tasks = std::make_unique<std::array<Task<K>, Rows>>();
  mb::MemorySelection<Row, K, Count, static_cast<int>(Rows)> selection(instructions);
  int compared = 0;
  std::size_t next_kind = 0;
  for (const int experts : {1,   2,   5,   8,   16,  17,  31,  32,  33,   64,   65,   96,   100, 128,
                            160, 250, 256, 257, 288, 511, 512, 544, 1000, 1024, 1056, 2047, 2048}) {
    for (int repeat = 0; repeat < 30 && experts >= Count; ++repeat) {
      for (Task<K>& task : *tasks) {
        make(task, kinds<K>[next_kind++ % std::size(kinds<K>)], experts, Count, engine);
        if (Rows > 1 && engine() % 8 == 0) task.is_there = false;
        compared += task.is_there ? 1 : 0;
      }
      CAPTURE(experts);
      CAPTURE(Count);
      CAPTURE((next_kind - Rows) % std::size(kinds<K>));
      select(selection, Row{experts, 0}, *tasks);
      check_rows<Count>(selection, *tasks);
    }
  }
  CHECK(compared > 300);
}

template <class K, int... Counts>
void all_counts() {
  for (const mb::InstructionSet instructions : instruction_sets()) {
    (all_shapes<K, Counts, 1>(instructions), ...);
    (all_shapes<K, Counts, 4>(instructions), ...);
  }
}

TEST_CASE("keys of float32 are selected as a stable sort would") {
  all_counts<std::int32_t, 1, 2, 4, 5, 8, 9, 16, 17, 22, 32>();
}

TEST_CASE("keys of float64 are selected as a stable sort would") {
  all_counts<std::int64_t, 1, 8, 32>();
}

TEST_CASE("keys are marked that reach the least, by all ways, and no mark is written behind the last word") {
  constexpr std::int32_t lowest = std::numeric_limits<std::int32_t>::min();
  constexpr std::int32_t highest = std::numeric_limits<std::int32_t>::max();
  Engine engine(7);
  constexpr std::size_t most_words = 32;
  std::vector<std::int32_t> keys(64 * most_words + 1);
  int set = 0;
  int wrong = 0;
  for (const mb::InstructionSet instructions : instruction_sets()) {
    for (const std::size_t words : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{5}, most_words}) {
      for (const std::int32_t least : {lowest, -5, -1, 0, 1, 1000, highest}) {
        for (const std::size_t start : {std::size_t{0}, std::size_t{1}}) {  // rows need not be aligned
          for (std::int32_t& key : keys) {
            const std::int32_t near = least < 0
                                          ? least + static_cast<std::int32_t>(engine() % 3)
                                          : least - static_cast<std::int32_t>(engine() % 3) + (least < highest ? 1 : 0);
            key = engine() % 2 == 0 ? near : any_key<std::int32_t>(engine);
          }
          std::vector<std::uint64_t> marks(words + 1, 0x5555);
          mb::mark_keys(instructions, keys.data() + start, static_cast<int>(words), least, marks.data());
          for (std::size_t i = 0; i < 64 * words; ++i) {
            const bool is_set = (marks[i / 64] >> (i % 64) & 1) != 0;
            set += is_set ? 1 : 0;
            wrong += is_set != (keys[start + i] >= least) ? 1 : 0;
          }
          wrong += marks[words] != 0x5555 ? 1 : 0;
        }
      }
    }
  }
  CHECK(set > 10000);
  CHECK(wrong == 0);
}

TEST_CASE("equal keys go to the smaller slot, by either way") {
  const Row layout{256, 0};
  std::array<Task<std::int32_t>, 1> tasks;
  tasks[0].is_there = true;
  auto& keys = tasks[0].keys;
  mb::MemorySelection<Row, std::int32_t, 4, 1> selection(mb::InstructionSet::baseline);
  for (const int first : {253, 55}) {  // few candidates; too many to be ranked
    for (int i = 0; i < 256; ++i) keys[i] = i >= first ? 5 : 1;
    keys[100] = 9;
    select(selection, layout, tasks);
    CHECK(selection.slot(0, 0) == 100);
    for (int k = 1; k < 4; ++k) CHECK(selection.slot(0, k) == first + k - 1);
  }
}

TEST_CASE("ranks that no key is left for have slot 0, by either way") {
  std::array<Task<std::int32_t>, 2> tasks;
  for (Task<std::int32_t>& task : tasks) {
    task.is_there = true;
    for (int i = 0; i < 64; ++i) task.keys[i] = mb::excluded_key<std::int32_t>;
    task.keys[37] = 5;
  }
  mb::MemorySelection<Row, std::int32_t, 8, 2> few(mb::InstructionSet::baseline);
  select(few, Row{64, 0}, tasks);
  std::array<Task<std::int64_t>, 1> inserted;
  inserted[0].is_there = true;
  for (int i = 0; i < 64; ++i) inserted[0].keys[i] = mb::excluded_key<std::int64_t>;
  inserted[0].keys[37] = 5;
  mb::MemorySelection<Row, std::int64_t, 8, 1> float64(mb::InstructionSet::baseline);
  select(float64, Row{64, 0}, inserted);
  for (int k = 0; k < 8; ++k) {
    CHECK(few.slot(0, k) == (k == 0 ? 37 : 0));
    CHECK(few.slot(1, k) == (k == 0 ? 37 : 0));
    CHECK(float64.slot(0, k) == (k == 0 ? 37 : 0));
  }
}

/// The zero-one principle: a network of comparisons sorts whatever it is given if it sorts all rows of zeros and ones.
template <int N, int First, int Last, class T, class Sort>
void sort_all_zeros_and_ones(const Sort& sort) {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 1u << N; bits += 4) {
    T value[N][4];
    for (int r = 0; r < 4; ++r) {
      for (int i = 0; i < N; ++i) value[i][r] = static_cast<T>((bits + static_cast<std::uint32_t>(r)) >> i & 1u);
    }
    sort(value);
    for (int r = 0; r < 4; ++r) {
      const int ones = __builtin_popcount(bits + static_cast<std::uint32_t>(r));
      for (int i = First; i <= Last; ++i) wrong += value[i][r] != T(i < ones ? 1 : 0);
    }
  }
  CHECK(wrong == 0);
}

template <int N, int First, int Last>
void sort_all_ways() {
  sort_all_zeros_and_ones<N, First, Last, std::int32_t>([](auto& value) { mb::sort_rows<First, Last>(value); });
  sort_all_zeros_and_ones<N, First, Last, double>([](auto& value) { mb::sort_rows<First, Last>(value); });
  for (const mb::InstructionSet set : instruction_sets()) {
    sort_all_zeros_and_ones<N, First, Last, std::int32_t>([&](auto& value) { mb::sort_rows<First, Last>(set, value); });
    sort_all_zeros_and_ones<N, First, Last, double>([&](auto& value) { mb::sort_rows<First, Last>(set, value); });
  }
}

TEST_CASE("sorting networks sort, in the places that are wanted, by all ways") {
  sort_all_ways<8, 0, 7>();
  sort_all_ways<8, 0, 3>();
  sort_all_ways<8, 1, 1>();
  sort_all_ways<16, 0, 15>();
  sort_all_ways<16, 0, 7>();
  sort_all_ways<16, 7, 7>();
}

}  // namespace
