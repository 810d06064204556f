// An engine that runs the CUDA kernels' bodies on fibers, with the grids that the CUDA engine would launch on a small device. It is one more
// place for Router's calls, so that every test body runs on it.
#pragma once

#include "fiber_tile.hpp"

#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/moe_balance.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace testing {

/// Where a call runs: on fibers, in an order that `seed` decides, with the kernels of the given tiers, which rise.
template <int... Tiers>
struct FibersOfTiers {
  std::uint64_t seed = 1;
  int multiprocessors = 1;
  Faults faults{};
  int dispatch_tiles = 3;  ///< of a permutation's block
  /// Two kernels whatever a call's size, if they are given memory, with several ranges of tokens.
  moe_balance::MarginTuning margins{.least_margins = 0, .tokens_per_bin = 0, .threads = 64, .blocks_per_multiprocessor = 12};
  std::size_t shared_bytes = 99 * 1024;  ///< of a block that counts margins
  int routing_threads = 64;
};
// A tier costs a test seconds of compilation: tests/CMakeLists.txt gives those of few experts fewer.
#if !defined(MOEB_FIBER_TIERS)
#define MOEB_FIBER_TIERS 0, 1, 2, 3, 4, 5, 6
#endif
using Fibers = FibersOfTiers<MOEB_FIBER_TIERS>;
static_assert(moe_balance::cuda_tier_count == 7);

/// How many kernels for usual calls (engine/usual_call.hpp) have run on fibers: tests of those must not pass without one.
inline int usual_kernels = 0;

/// What the kernel that was launched before has still to do, where the next one may run beside it: on fibers all of it, and not before a thread of the
/// next one waits for it. No order on a GPU is worse.
inline std::function<void()> kernel_before;

/// Before whatever does not run beside it.
inline void end_kernel_before() {
  if (kernel_before != nullptr) std::exchange(kernel_before, nullptr)();
}

/// Runs `launch`, of a kernel that may run beside kernel_before. That has ended when it ends, or else what comes after would not wait for it.
template <class Launch>
void run_beside_kernel_before(const Launch& launch) {
  struct Forgotten {
    ~Forgotten() { kernel_before = nullptr; }
  } forgotten;
  launch();
  if (kernel_before != nullptr) throw FiberError("a kernel has ended and has not waited for the one that it ran beside");
}

/// One fiber's view of its block.
struct FiberBlock {
  using Site = std::source_location;
  FiberGroup* group;
  int first_fiber;  ///< of the block, in a group that may have several
  std::byte* memory;
  int own_thread;
  int thread_count;
  std::int64_t column;
  std::int64_t column_count;
  std::int64_t own_row;
  std::int64_t row_count;
  Faults faults;

  [[nodiscard]] int thread() const { return own_thread; }
  [[nodiscard]] int threads() const { return thread_count + faults.more_threads; }
  [[nodiscard]] std::int64_t index() const { return column + faults.later_block; }
  [[nodiscard]] std::int64_t blocks() const { return column_count + faults.more_blocks; }
  [[nodiscard]] std::int64_t row() const { return own_row + faults.later_row; }
  [[nodiscard]] std::int64_t rows() const { return row_count + faults.more_rows; }
  void barrier(const Site& site = Site::current()) const {
    if (!faults.block_barriers.skips(site)) group->meet(fiber(), first_fiber, thread_count, 1, 0, site);
  }
  void arrive() const { group->arrive(); }
  void await_blocks(const Site& site = Site::current()) const {
    if (!faults.grid_barriers.skips(site)) group->await_arrivals(fiber(), site);
  }
  void await_kernel_before(const Site& site = Site::current()) const {
    if (kernel_before == nullptr || faults.kernel_waits.skips(site)) return;
    std::exchange(kernel_before, nullptr)();
  }
  [[nodiscard]] int fiber() const { return first_fiber + own_thread; }
  [[nodiscard]] std::byte* shared() const { return memory; }
  void add_shared(std::int64_t* to, std::int64_t value) const { *to += value; }
  void add_shared(std::int32_t* to, std::int32_t value) const { *to += value; }
  void add_global(std::int64_t* to, std::int64_t value) const { *to += value; }
};
static_assert(moe_balance::ClusterBlock<FiberBlock> && moe_balance::BesideBlock<FiberBlock>);

/// A grid of blocks, which run in an order of their own.
struct FiberGrid {
  std::int64_t columns;
  std::int64_t rows;
  int threads;
  std::size_t shared_bytes;

  [[nodiscard]] std::vector<std::int64_t> shuffled_blocks(std::mt19937_64& random) const {
    std::vector<std::int64_t> order(static_cast<std::size_t>(columns * rows));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
    std::shuffle(order.begin(), order.end(), random);
    return order;
  }

  /// Runs body(block) for every thread of these blocks, all at once. Shared memory starts poisoned.
  template <class Body>
  void run(const std::vector<std::int64_t>& blocks, std::uint64_t seed, const Faults& faults, const Body& body) const {
    // Exactly as large as asked for, so that AddressSanitizer sees one step too far.
    std::vector<std::unique_ptr<std::byte[]>> shared;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      shared.emplace_back(new std::byte[shared_bytes == 0 ? 1 : shared_bytes]);
      std::memset(shared.back().get(), 0xff, shared_bytes);  // NaN as a float, -1 as an integer
    }
    FiberGroup group(threads * static_cast<int>(blocks.size()), seed);
    group.run([&](int fiber) {
      const auto own = static_cast<std::size_t>(fiber / threads);
      const std::int64_t block = blocks[own];
      body(FiberBlock{&group, fiber / threads * threads, shared[own].get(), fiber % threads, threads, block % columns,
                      columns, block / columns, rows, faults});
    });
  }
};

/// Kernels launched so far.
inline int kernels_launched = 0;

/// Runs body(block) for every thread of every block. Shared memory starts poisoned; blocks run one after another in shuffled order.
template <class Place, class Body>
void launch_fibers(const Place& place, std::int64_t columns, std::int64_t rows, int threads, std::size_t shared_bytes,
                   const Body& body) {
  ++kernels_launched;
  std::mt19937_64 random(place.seed);
  const FiberGrid grid{columns, rows, threads, shared_bytes};
  for (const std::int64_t block : grid.shuffled_blocks(random)) grid.run({block}, random(), place.faults, body);
}

/// The same with all blocks at once, as in a cluster.
template <class Place, class Body>
void launch_fibers_together(const Place& place, std::int64_t columns, std::int64_t rows, int threads,
                            std::size_t shared_bytes, const Body& body) {
  ++kernels_launched;
  std::mt19937_64 random(place.seed);
  const FiberGrid grid{columns, rows, threads, shared_bytes};
  const std::vector<std::int64_t> blocks = grid.shuffled_blocks(random);
  grid.run(blocks, random(), place.faults, body);
}

}  // namespace testing

namespace moe_balance {
inline namespace MOEB_VERSION_NAMESPACE {

template <int... Tiers>
struct Engine<testing::FibersOfTiers<Tiers...>> {
  static constexpr bool serves_float64 = false;
  static constexpr int most_experts = max_experts;
  using Fibers = testing::FibersOfTiers<Tiers...>;
  using FiberBlock = testing::FiberBlock;

  static void check(const char* /*call*/, const Fibers&) {}

  static void clear(void* data, std::size_t bytes, const Fibers&) {
    testing::end_kernel_before();
    if (bytes != 0) std::memset(data, 0, bytes);
  }
  static void copy(void* to, const void* from, std::size_t bytes, const Fibers&) {
    testing::end_kernel_before();
    std::memcpy(to, from, bytes);
  }

  static void clear_sums(std::int64_t* words, std::int64_t word_count, std::int64_t* counts, int count_count,
                         const Fibers& place) {
    testing::end_kernel_before();
    testing::launch_fibers(with_tile_faults(place), 2, 1, 64, 0,
                           [&](const FiberBlock& block) { clear_kernel(block, words, word_count, counts, count_count); });
  }

  template <class Problem>
  [[nodiscard]] static int clearing_blocks(const Problem& problem, const Fibers& place) {
    std::int64_t result = 0;
    with_own_tier(static_cast<int>(problem.logits.columns), [&](auto index) {
      constexpr CudaTier tier = small_block(cuda_tiers[decltype(index)::value]);
      const std::int64_t resident = resident_blocks(tier, place);
      const std::int64_t blocks = GridShape(tier, problem.segments, std::int64_t{1} << 30).blocks();
      if (blocks <= most_blocks_of_cluster && blocks <= resident) result = blocks;
    });
    return static_cast<int>(result);
  }

  template <class Real, class Problem>
  static void forward(const Problem& problem, const Totals& totals, const Fibers& place) {
    with_own_config(problem, [&](auto config) {
      using Config = decltype(config);
      constexpr CudaTier tier = small_block(Config::tier);
      testing::usual_kernels += Config::usual ? 1 : 0;
      const GridShape grid(tier, problem.segments, resident_blocks(tier, place));
      const std::size_t shared_bytes =
          forward_shared_bytes<decltype(problem.balancer), tier>() - place.faults.less_shared_bytes;
      const auto body = [&](const FiberBlock& block) {
        forward_kernel<Config>(block, tile_of<tier.width>(block), problem, totals);
      };
      if (totals.clearing_blocks > 1)
        testing::launch_fibers_together(place, grid.columns, grid.rows, tier.threads, shared_bytes, body);
      else
        testing::launch_fibers(place, grid.columns, grid.rows, tier.threads, shared_bytes, body);
    });
  }

  template <class Real, class Problem>
  static void backward(const Problem& problem, const Fibers& place) {
    with_own_config(problem, [&](auto config) {
      using Config = decltype(config);
      constexpr CudaTier tier = small_block(Config::tier);
      testing::usual_kernels += Config::usual ? 1 : 0;
      const GridShape grid(tier, problem.segments, resident_blocks(tier, place));
      testing::launch_fibers(place, grid.columns, grid.rows, tier.threads,
                             backward_shared_bytes<decltype(problem.balancer), tier.max_experts>(tier.threads / tier.width),
                             [&](const FiberBlock& block) {
                               const testing::FiberTile<tier.width> tile = tile_of<tier.width>(block);
                               backward_kernel<Config>(block, tile, problem);
                             });
    });
  }

  template <class Real, class Problem>
  static void count_margins(const Problem& given, const Fibers& place) {
    testing::end_kernel_before();
    const MarginGrid grid(given.logits, bins_of(given.balancer), place.multiprocessors, place.shared_bytes, place.margins);
    const bool has_second = grid.counts() && !given.thresholds.empty();
    Problem problem = given;
    if (!has_second) problem.thresholds = {};
    with_own_tier(static_cast<int>(problem.logits.columns), [&](auto index) {
      constexpr int tier_index = decltype(index)::value;
      constexpr CudaTier tier = small_block(cuda_tiers[tier_index]);
      const GridShape shape(tier, Segments({}, problem.logits.rows), resident_blocks(tier, place));
      testing::launch_fibers(place, shape.columns, shape.rows, tier.threads,
                             margin_shared_bytes(tier) - place.faults.less_shared_bytes, [&](const FiberBlock& block) {
                               margin_kernel<KernelConfig<tier_index>>(block, tile_of<tier.width>(block), problem);
                             });
    });
    if (!has_second) return;
    testing::launch_fibers(place, grid.token_ranges, grid.expert_ranges, place.margins.threads,
                           grid.shared_bytes - place.faults.less_shared_bytes,
                           [&](const FiberBlock& block) { margin_count_kernel(block, problem, grid.experts_of_block); });
  }

  template <class Problem>
  static void loss(const Problem& problem, const Fibers& place) {
    testing::launch_fibers(with_tile_faults(place), 1, 1, 32, 0,
                           [&](const FiberBlock& block) { evaluate_losses(problem, tile_of<32>(block)); });
  }

  template <class Problem>
  static void update(const Problem& problem, const Fibers& place) {
    testing::launch_fibers(with_tile_faults(place), problem.load.layers, 1, 32, 0,
                           [&](const FiberBlock& block) { update_layer(problem, tile_of<32>(block), block.index()); });
  }

  static void publish(std::int64_t* load, std::int64_t* counts, int experts, bool accumulate, const Fibers& place) {
    testing::end_kernel_before();
    testing::launch_fibers(with_tile_faults(place), 1, 1, 32, 0,
                           [&](const FiberBlock& block) { publish_kernel(block, load, counts, experts, accumulate); });
  }

 private:
  /// with_tier, of these tiers only. For a part of them (not testing::Fibers) the next larger one will do.
  template <class Function>
  static void with_own_tier(int experts, const Function& f) {
    const bool has_its_tier = ((Tiers == tier_of(experts)) || ...);
    if (std::is_same_v<Fibers, testing::Fibers> && !has_its_tier)
      throw std::logic_error("no kernel for " + std::to_string(experts) + " experts: MOEB_FIBER_TIERS");
    const auto serve = [&](auto tier) {
      const bool serves = experts <= cuda_tiers[decltype(tier)::value].max_experts;
      if (serves) f(tier);
      return serves;
    };
    (void)(serve(std::integral_constant<int, Tiers>{}) || ...);
  }

  /// with_config, of these tiers only.
  template <class Problem, class Function>
  static void with_own_config(const Problem& problem, const Function& f) {
    with_own_tier(static_cast<int>(problem.logits.columns), [&](auto tier) {
      constexpr int index = decltype(tier)::value;
      if constexpr (has_usual_kernel<index, Problem>) {
        if (serves_as_usual<index>(problem)) return f(KernelConfig<index, true>{});
      }
      f(KernelConfig<index, false>{});
    });
  }

  /// Faults of blocks are for the kernels over tokens: the others have no loop over blocks.
  static Fibers with_tile_faults(Fibers place) {
    place.faults = {.tile_barriers = place.faults.tile_barriers, .half_width_shuffles = place.faults.half_width_shuffles};
    return place;
  }

  template <int W>
  static testing::FiberTile<W> tile_of(const FiberBlock& block) {
    return {.group = block.group, .thread = block.fiber(), .faults = &block.faults, .is_apart_at_times = true};
  }

  /// Two warps a block, two blocks on the device: enough for every kind of sharing, and fast enough for a test.
  static constexpr CudaTier small_block(CudaTier tier) {
    tier.threads = 64;
    tier.blocks_per_sm = 2;
    return tier;
  }
  static std::int64_t resident_blocks(const CudaTier& tier, const Fibers& place) {
    return std::int64_t{place.multiprocessors} * tier.blocks_per_sm;
  }
};

}  // namespace MOEB_VERSION_NAMESPACE
}  // namespace moe_balance
