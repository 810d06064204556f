// The kernels' own bodies, broken on purpose: a barrier left out, shuffles of half the width, a grid loop that starts or steps one too far.
// Fibers show each, by an error or by results that differ from the CPU's under some order of the lanes.
#include "tile/same_as_host.hpp"

#include <algorithm>
#include <iterator>
#include <set>
#include <string>

namespace testing {

namespace {

/// A bias rule that reads its neighbour's count, as a user's may: only a barrier keeps that from being cleared too early.
struct NeighbourBias {
  MOEB_HOST_DEVICE float next_bias(float bias, int expert, const mb::LoadView& load) const {
    const int neighbour = (expert + 1) % load.experts();
    return bias + 0.25f * static_cast<float>(load.count(neighbour));
  }
};
static_assert(mb::BiasBalancer<NeighbourBias>);

const mb::Router router{mb::Sigmoid{}, mb::GroupLimitedTopK<4>{.groups = 8, .groups_kept = 4},
                        mb::Combine{NeighbourBias{}, mb::SequenceLoss{.coefficient = 0.1f}, mb::ZLoss{}}};

/// More sequences than rows of blocks, so that rows go round their loop more than once; 8 lanes with sums in registers (64), 32 with
/// sums in shared memory (520).
constexpr int all_experts[] = {64, 520};
constexpr std::int64_t tokens = 240;

StepInputs inputs_of(int experts) {
  StepInputs inputs(static_cast<std::uint64_t>(experts), tokens, experts, 4, false);
  inputs.sequences = 12;
  return inputs;
}

std::string outcome_of(const StepInputs& inputs, const StepOutputs& host, const Faults& faults, std::uint64_t seed,
                       int multiprocessors = 2) {
  try {
    const Fibers place{.seed = seed, .multiprocessors = multiprocessors, .faults = faults};
    const StepOutputs fibers = run_step(router, inputs, place);
    return same_bits(host, fibers) ? "" : "other results";
  } catch (const FiberError& error) {
    return error.what();
  }
}

/// Whether some order of lanes shows the fault.
bool is_caught(const Faults& faults, int experts) {
  const StepInputs inputs = inputs_of(experts);
  const StepOutputs host = run_step(router, inputs, mb::Host{.threads = 1});
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    if (!outcome_of(inputs, host, faults, seed).empty()) return true;
  }
  return false;
}

/// The same for each count of experts.
bool is_caught(const Faults& faults) {
  return std::all_of(std::begin(all_experts), std::end(all_experts),
                     [&](int experts) { return is_caught(faults, experts); });
}

/// The lines of the barriers that a step passes.
std::set<std::uint_least32_t> lines_of(BarrierFault Faults::*barriers, int experts = 64) {
  std::set<std::uint_least32_t> lines;
  Faults faults;
  (faults.*barriers).seen = &lines;
  const StepInputs inputs = inputs_of(experts);
  (void)run_step(router, inputs, Fibers{.seed = 2, .multiprocessors = 2, .faults = faults});
  return lines;
}

}  // namespace

TEST_CASE("unbroken bodies give the CPU's results in every order of lanes") {
  for (const int experts : all_experts) CHECK(!is_caught({}, experts));
}

TEST_CASE("every barrier of the forward and backward kernels is needed, and leaving it out is caught") {
  const std::set<std::uint_least32_t> lines = lines_of(&Faults::block_barriers);
  CHECK(lines.size() == 4);  // two in forward_kernel, two in backward_kernel
  for (const std::uint_least32_t line : lines) {
    CAPTURE(line);
    CHECK(is_caught(Faults{.block_barriers = {.skipped = line}}));
  }
}

TEST_CASE(
    "where threads are more than experts, the barrier between rows' sums by groups and the groups' sums is needed, too") {
  constexpr int experts = 32;  // half as many as threads
  const std::set<std::uint_least32_t> others = lines_of(&Faults::block_barriers);
  std::set<std::uint_least32_t> lines = lines_of(&Faults::block_barriers, experts);
  CHECK(!is_caught({}, experts));
  CHECK(lines.size() == others.size() + 1);
  for (const std::uint_least32_t line : lines) {
    CAPTURE(line);
    CHECK(is_caught(Faults{.block_barriers = {.skipped = line}}, experts));
  }
}

// Two more of backward's matter only to a token with an expert twice, which these inputs do not have.
TEST_CASE(
    "the barriers before update clears the counts and around backward's shared row are needed, and leaving them out is "
    "caught") {
  int needed = 0;
  for (const std::uint_least32_t line : lines_of(&Faults::tile_barriers)) {
    needed += is_caught(Faults{.tile_barriers = {.skipped = line}}, 64) ? 1 : 0;
  }
  CHECK(needed == 3);
}

TEST_CASE("a grid that clears its own sums gives the CPU's results, and blocks that do not wait for each other are caught") {
  for (const int experts : all_experts) {
    CAPTURE(experts);
    StepInputs inputs = inputs_of(experts);
    inputs.tokens = inputs.sequences = experts < 65 ? 4 : 6;  // a block each, fewer than eight and than the device holds
    const StepOutputs host = run_step(router, inputs, mb::Host{.threads = 1});
    std::set<std::uint_least32_t> waits;
    int caught = 0;
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      const auto outcome = [&](const BarrierFault& fault) {
        return outcome_of(inputs, host, Faults{.grid_barriers = fault}, seed, 4);
      };
      CHECK(outcome({.seen = &waits}) == "");
      REQUIRE(waits.size() == 1);
      caught += outcome({.skipped = *waits.begin()}).empty() ? 0 : 1;
    }
    CHECK(caught > 0);
  }
}

TEST_CASE("shuffles of half the width are caught") {
  CHECK(is_caught(Faults{.half_width_shuffles = true}));
}

TEST_CASE("an off-by-one in a loop over tokens is caught") {
  CHECK(is_caught(Faults{.more_blocks = 1}));
  CHECK(is_caught(Faults{.later_block = 1}));
}

TEST_CASE("an off-by-one in the loop over segments is caught") {
  CHECK(is_caught(Faults{.more_rows = 1}));
  CHECK(is_caught(Faults{.later_row = 1}));
}

TEST_CASE("an off-by-one in the loops over experts is caught") {
  CHECK(is_caught(Faults{.more_threads = 1}, 520));  // 64 threads take 64 experts in one round
}

}  // namespace testing
