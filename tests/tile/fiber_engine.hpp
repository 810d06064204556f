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
#include <memory>
#include <vector>

namespace testing {

/// Where a call runs: on fibers, in an order that `seed` decides.
struct Fibers {
  std::uint64_t seed = 1;
  int multiprocessors = 1;
};

/// One fiber's view of its block.
struct FiberBlock {
  using Site = std::source_location;
  FiberGroup* group;
  std::byte* memory;
  int own_thread;
  int thread_count;
  std::int64_t column;
  std::int64_t column_count;
  std::int64_t own_row;
  std::int64_t row_count;

  [[nodiscard]] int thread() const { return own_thread; }
  [[nodiscard]] int threads() const { return thread_count; }
  [[nodiscard]] std::int64_t index() const { return column; }
  [[nodiscard]] std::int64_t blocks() const { return column_count; }
  [[nodiscard]] std::int64_t row() const { return own_row; }
  [[nodiscard]] std::int64_t rows() const { return row_count; }
  void barrier(const Site& site = Site::current()) const { group->meet(own_thread, 0, thread_count, 1, 0, site); }
  [[nodiscard]] std::byte* shared() const { return memory; }
  void add_shared(std::int64_t* to, std::int64_t value) const { *to += value; }
  void add_shared(std::int32_t* to, std::int32_t value) const { *to += value; }
  void add_global(std::int64_t* to, std::int64_t value) const { *to += value; }
};
static_assert(moe_balance::Block<FiberBlock>);

/// Runs body(block) for every thread of every block. Shared memory starts poisoned; blocks run one after another in shuffled order.
template <class Body>
void launch_fibers(const Fibers& place, std::int64_t columns, std::int64_t rows, int threads, std::size_t shared_bytes,
                   const Body& body) {
  std::mt19937_64 random(place.seed);
  std::vector<std::int64_t> order(static_cast<std::size_t>(columns * rows));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  std::shuffle(order.begin(), order.end(), random);
  for (const std::int64_t block : order) {
    // Exactly as large as asked for, so that AddressSanitizer sees one step too far.
    const std::unique_ptr<std::byte[]> shared(new std::byte[shared_bytes == 0 ? 1 : shared_bytes]);
    std::memset(shared.get(), 0xa5, shared_bytes);
    FiberGroup group(threads, random());
    group.run([&](int thread) {
      body(FiberBlock{&group, shared.get(), thread, threads, block % columns, columns, block / columns, rows});
    });
  }
}

}  // namespace testing

namespace moe_balance {
inline namespace MOEB_VERSION_NAMESPACE {

template <>
struct Engine<testing::Fibers> {
  static constexpr bool serves_float64 = false;
  using Fibers = testing::Fibers;
  using FiberBlock = testing::FiberBlock;

  static void check(const char* /*call*/, const Fibers&) {}

  static void clear(void* data, std::size_t bytes, const Fibers&) {
    if (bytes != 0) std::memset(data, 0, bytes);
  }
  static void copy(void* to, const void* from, std::size_t bytes, const Fibers&) { std::memcpy(to, from, bytes); }

  template <class Real, class Problem>
  static void forward(const Problem& problem, const Totals& totals, const Fibers& place) {
    with_tier(static_cast<int>(problem.logits.columns), [&](auto index) {
      constexpr int tier_index = decltype(index)::value;
      constexpr CudaTier tier = small_block(cuda_tiers[tier_index]);
      const GridShape grid(tier, problem.segments, place.multiprocessors);
      using Shared = ForwardShared<decltype(problem.balancer), tier.max_experts, tier.private_rows>;
      testing::launch_fibers(place, grid.columns, grid.rows, tier.threads, Shared::bytes(tier.threads / tier.width),
                             [&](const FiberBlock& block) {
                               const testing::FiberTile<tier.width> tile{block.group, block.thread()};
                               forward_kernel<KernelConfig<tier_index>>(block, tile, problem, totals);
                             });
    });
  }

  template <class Real, class Problem>
  static void backward(const Problem& problem, const Fibers& place) {
    with_tier(static_cast<int>(problem.logits.columns), [&](auto index) {
      constexpr int tier_index = decltype(index)::value;
      constexpr CudaTier tier = small_block(cuda_tiers[tier_index]);
      const GridShape grid(tier, problem.segments, place.multiprocessors);
      testing::launch_fibers(place, grid.columns, grid.rows, tier.threads,
                             backward_shared_bytes<decltype(problem.balancer), tier.max_experts>(), [&](const FiberBlock& block) {
                               const testing::FiberTile<tier.width> tile{block.group, block.thread()};
                               backward_kernel<KernelConfig<tier_index>>(block, tile, problem);
                             });
    });
  }

  template <class Problem>
  static void loss(const Problem& problem, const Fibers& place) {
    testing::launch_fibers(place, 1, 1, 32, 0, [&](const FiberBlock& block) {
      evaluate_losses(problem, testing::FiberTile<32>{block.group, block.thread()});
    });
  }

  template <class Problem>
  static void update(const Problem& problem, const Fibers& place) {
    testing::launch_fibers(place, problem.load.layers, 1, 32, 0, [&](const FiberBlock& block) {
      update_layer(problem, testing::FiberTile<32>{block.group, block.thread()}, block.index());
    });
  }

  static void publish(std::int64_t* load, std::int64_t* counts, int experts, bool accumulate, const Fibers& place) {
    testing::launch_fibers(place, 1, 1, 32, 0,
                           [&](const FiberBlock& block) { publish_kernel(block, load, counts, experts, accumulate); });
  }

 private:
  /// Two warps a block, two blocks on the device: enough for every kind of sharing, and fast enough for a test.
  static constexpr CudaTier small_block(CudaTier tier) {
    tier.threads = 64;
    tier.blocks_per_sm = 2;
    return tier;
  }
};

}  // namespace MOEB_VERSION_NAMESPACE
}  // namespace moe_balance
