// The dispatch kernels' own bodies, broken on purpose, as fiber_faults_test.cpp does with the router's: fibers show each fault, by an error or by results
// that differ from the CPU's under some order of the lanes.
#include "engine_host.hpp"
#include "tile/fiber_dispatch.hpp"

#include "bodies/capacity.hpp"
#include "bodies/sinkhorn.hpp"
#include "dispatch_run.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <set>
#include <tuple>
#include <vector>

namespace testing {

namespace {

/// Arrays with so many words before and behind each that what a broken kernel writes outside stays inside, and shows.
class Arena {
 public:
  template <class T>
  T* array(std::int64_t size) {
    const std::int64_t first = used_ + margin;
    used_ = first + size;
    REQUIRE(used_ + margin <= static_cast<std::int64_t>(words_.size()));
    return reinterpret_cast<T*>(words_.data() + first);
  }
  [[nodiscard]] const std::vector<std::int64_t>& words() const { return words_; }

 private:
  static constexpr std::int64_t margin = 4096;
  std::vector<std::int64_t> words_ = std::vector<std::int64_t>(60000, 77);
  std::int64_t used_ = 0;
};

/// Of 2100 tokens, two parts with several slots for each lane of three tiles; of 150 one launch, whose blocks count all slots.
struct Permutation {
  std::int64_t tokens;
  std::int64_t experts;

  /// All that it writes.
  template <class Engine>
  [[nodiscard]] std::vector<std::int64_t> operator()(const Engine& engine) const {
    constexpr std::int64_t k = 2;
    constexpr std::int64_t align = 4;
    const DispatchProblem p = dispatch_problem(51, tokens, k, experts, 1, align);
    Arena arena;
    std::vector<std::int64_t> workspace(
        16384);  // longer than asked for, and without garbage that a broken kernel would read
    mb::permutation({.experts = mb::MatrixView<const std::int32_t>(p.ids.data(), tokens, k),
                     .offsets = {arena.array<std::int64_t>(experts + 1), experts + 1},
                     .row_of_slot = {arena.array<std::int64_t>(p.slots()), tokens, k},
                     .slot_of_row = {arena.array<std::int64_t>(p.rows()), p.rows()},
                     .align = align,
                     .counts = arena.array<std::int64_t>(experts),
                     .block_size = align,
                     .expert_of_block = {arena.array<std::int32_t>(p.rows() / align), p.rows() / align}},
                    {workspace.data(), mb::permutation_workspace_bytes(tokens, k, experts)}, engine.place());
    return arena.words();
  }
};
constexpr Permutation two_launches{2100, 40};
constexpr Permutation one_launch{150, 200};  // more experts than threads

/// A selection by score whose boundaries are ties, and one by position.
struct Limit {
  template <class Engine>
  [[nodiscard]] auto operator()(const Engine& engine) const {
    const CapacityResult got = limit(engine, capacity_problem(71, 900, 2, 3, 150, 5));
    return std::tuple(got.experts, got.weights, got.kept_counts, got.dropped);
  }
};

/// The sums of rows and the dot products with them.
struct RowSums {
  template <class Engine>
  [[nodiscard]] auto operator()(const Engine& engine) const {
    constexpr std::int64_t tokens = 20;
    constexpr std::int64_t k = 3;
    constexpr std::int64_t hidden = 70;
    Random random(53);
    const auto floats = [&](std::int64_t size) { return random.normals<float>(static_cast<std::size_t>(size)); };
    const std::vector<float> rows = floats(tokens * k * hidden), states = floats(tokens * hidden),
                             scale = floats(tokens * k);
    std::vector<std::int64_t> row_of_slot;
    for (std::int64_t slot = 0; slot < tokens * k; ++slot) row_of_slot.push_back(slot % 7 == 0 ? -1 : tokens * k - 1 - slot);
    std::vector<float> sums(states.size(), 77), dots(scale.size(), 77);
    mb::permute_backward({.grad_permuted = mb::MatrixView<const float>(rows.data(), tokens * k, hidden),
                          .row_of_slot = {row_of_slot.data(), tokens, k},
                          .grad_hidden = mb::MatrixView<float>(sums.data(), tokens, hidden),
                          .scale = mb::MatrixView<const float>(scale.data(), tokens, k),
                          .hidden = mb::MatrixView<const float>(states.data(), tokens, hidden),
                          .grad_scale = mb::MatrixView<float>(dots.data(), tokens, k)},
                         {}, engine.place());
    return std::tuple(sums, dots);
  }
};

/// Four iterations of Sinkhorn, with several experts for each thread and several tokens for each tile: a change that is lost
/// ends them with the third, a wrong one later.
struct Sinkhorn {
  template <class EngineT>
  auto operator()(const EngineT& engine) const {
    SinkhornCase given = sinkhorn_case(181, 13, 150, 2, 1);
    given.tolerance = 0;
    given.max_iterations = 3;
    given.tolerance = 0.99f * static_cast<float>(SinkhornOracle(given).change);
    given.max_iterations = 7;
    const Scales scales = scales_of(engine, given);
    return std::tuple(scales.log_scale, scales.iterations);
  }
};

/// Whether some order of lanes shows the fault.
template <class Call>
bool is_caught(const Call& call, const Faults& faults) {
  const auto host = call(HostEngine{});
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    try {
      if (call(FiberEngine{.seed = seed, .faults = faults}) != host) return true;
    } catch (const FiberError&) {
      return true;
    }
  }
  return false;
}

using Lines = std::set<std::uint_least32_t>;

/// The lines of the barriers that a call passes.
template <class Call>
Lines lines_of(const Call& call, BarrierFault Faults::*barriers) {
  Lines lines;
  Faults faults;
  (faults.*barriers).seen = &lines;
  (void)call(FiberEngine{.seed = 2, .faults = faults});
  return lines;
}

/// Those of `lines` that are caught when left out.
template <class Call>
Lines needed_by(const Call& call, BarrierFault Faults::*barriers, const Lines& lines) {
  Lines needed;
  for (const std::uint_least32_t line : lines) {
    Faults faults;
    (faults.*barriers).skipped = line;
    if (is_caught(call, faults)) needed.insert(line);
  }
  return needed;
}

}  // namespace

TEST_CASE("dispatch: unbroken bodies give the CPU's results in every order of lanes") {
  CHECK(!is_caught(two_launches, {}));
  CHECK(!is_caught(one_launch, {}));
  CHECK(!is_caught(Limit{}, {}));
  CHECK(!is_caught(RowSums{}, {}));
  CHECK(!is_caught(Sinkhorn{}, {}));
}

TEST_CASE("dispatch: a permutation's block barriers are needed, and leaving them out is caught") {
  const Lines of_two = lines_of(two_launches, &Faults::block_barriers);
  const Lines of_one = lines_of(one_launch, &Faults::block_barriers);
  CHECK(of_two.size() == 6);  // CountSlots has two, PlaceSlots three, and one for the sum of earlier threads
  CHECK(of_one.size() == 4);  // PlaceSlots has three
  CHECK(needed_by(two_launches, &Faults::block_barriers, of_two) == of_two);
  CHECK(needed_by(one_launch, &Faults::block_barriers, of_one) == of_one);
}

// The third orders memory between a tile's rounds, which on fibers every match does, too.
TEST_CASE(
    "dispatch: a permutation's barriers before its tiles count and before they go on counting are needed, and caught") {
  const Lines lines = lines_of(one_launch, &Faults::tile_barriers);
  CHECK(lines.size() == 3);
  CHECK(needed_by(one_launch, &Faults::tile_barriers, lines).size() == 2);
}

TEST_CASE("dispatch: a second launch that does not wait for the first is caught") {
  const Lines waits = lines_of(two_launches, &Faults::kernel_waits);
  REQUIRE(waits.size() == 1);
  CHECK(needed_by(two_launches, &Faults::kernel_waits, waits) == waits);
}

// Of the two others one follows a digit and one an expert: the next one's first barrier orders the same.
TEST_CASE("dispatch: four of the barriers that drop slots are needed, and leaving them out is caught") {
  Lines lines = lines_of(Limit{}, &Faults::block_barriers);
  for (const std::uint_least32_t line : lines_of(one_launch, &Faults::block_barriers)) lines.erase(line);
  CHECK(lines.size() == 7);
  CHECK(needed_by(Limit{}, &Faults::block_barriers, lines).size() == 4);
}

TEST_CASE("dispatch: shuffles of half the width are caught") {
  const Faults faults{.half_width_shuffles = true};
  CHECK(is_caught(two_launches, faults));
  CHECK(is_caught(RowSums{}, faults));
}

TEST_CASE("dispatch: an off-by-one in the loops over parts, rows and slots is caught") {
  CHECK(is_caught(two_launches, {.more_blocks = 1}));
  CHECK(is_caught(two_launches, {.later_block = 1}));
  CHECK(is_caught(RowSums{}, {.more_blocks = 1}));
  CHECK(is_caught(RowSums{}, {.later_block = 1}));
}

TEST_CASE("dispatch: the four barriers of Sinkhorn's kernel are needed, and leaving them out is caught") {
  const Lines lines = lines_of(Sinkhorn{}, &Faults::block_barriers);
  CHECK(lines.size() == 4);
  CHECK(needed_by(Sinkhorn{}, &Faults::block_barriers, lines) == lines);
}

}  // namespace testing
