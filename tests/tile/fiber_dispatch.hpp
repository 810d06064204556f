// The dispatch kernels' bodies on fibers, with blocks as small and as few as show every kind of sharing.
#pragma once

#include "fiber_engine.hpp"

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/host_sort.hpp>
#include <moe_balance/dispatch/route_and_permute.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace testing {

/// What the last dispatch call was asked for that a GPU may refuse.
inline moe_balance::ExpertCount expert_count_asked_for{"", 0};

}  // namespace testing

namespace moe_balance {
inline namespace MOEB_VERSION_NAMESPACE {

template <>
struct DispatchEngine<testing::Fibers> {
  static constexpr bool serves_float64 = false;
  static constexpr bool reads_arguments = false;
  static constexpr bool fuses_routing = true;
  using Fibers = testing::Fibers;

  static void check(const char* /*call*/, const Fibers&) {}
  static void clear(void* data, std::size_t bytes, const Fibers& place) { Engine<Fibers>::clear(data, bytes, place); }
  [[nodiscard]] static LaunchSize for_rows(std::int64_t /*rows*/, std::int64_t /*columns*/, const Fibers& place) {
    return {place.multiprocessors, 2, 0};
  }
  [[nodiscard]] static LaunchSize for_items(std::int64_t /*items*/, const Fibers& place) {
    return {place.multiprocessors, 2, 0};
  }
  [[nodiscard]] static LaunchSize for_groups(std::int64_t /*groups*/, std::int64_t /*items*/, const Fibers& place) {
    return {place.multiprocessors, 3, 0};
  }
  [[nodiscard]] static std::int64_t parts(std::int64_t /*slots*/, std::int64_t most, const Fibers& place) {
    return std::min<std::int64_t>(most, place.multiprocessors);
  }
  [[nodiscard]] static bool has_large_routing_blocks(int /*experts*/, const Fibers& place) {
    return place.multiprocessors % 2 == 0;
  }
  [[nodiscard]] static int tiles(const ExpertCount& count, const Fibers& place) {
    testing::expert_count_asked_for = count;
    return place.dispatch_tiles;
  }

  /// What is CUB's on a GPU is the CPU's here: only kernels of our own run on fibers.
  static void check_sort(std::int64_t /*slots*/, const ExpertCount& count, const Fibers&) {
    testing::expert_count_asked_for = count;
  }
  static void sort(SlotPairs& pairs, std::int64_t n, int bits, const Workspace& scratch, const Fibers&) {
    sort_on_host(pairs, n, bits, scratch.data, 1, Host{});
  }
  static void sum(std::int64_t* values, std::int64_t n, const Workspace& /*scratch*/, const Fibers&) {
    sum_on_host(values, n);
  }

  template <class Body, class Problem>
  static void launch(const char* /*call*/, const LaunchSize& size, const Body& body, const Problem& problem,
                     const Fibers& place) {
    const auto run = [=] {
      testing::launch_fibers(place, size.blocks, 1, 32 * size.tiles, size.shared_bytes,
                             [&](const testing::FiberBlock& block) {
                               body(block, testing::FiberTile<32>{block.group, block.thread(), &block.faults}, problem);
                             });
    };
    if constexpr (requires { Body::lets_next_kernel_start; })
      testing::kernel_before = run;  // the next launch runs beside it
    else
      testing::run_beside_kernel_before(run);
  }

  /// The next launch, of the permutation's second kernel, runs beside this one.
  template <class Problem>
  static void forward_and_count(const Problem& problem, const Totals& totals, const Histogram& histogram,
                                const Fibers& place) {
    with_config(problem, [&](auto config) {
      using Config = decltype(config);
      constexpr CudaTier tier = Config::tier;
      const int threads = place.routing_threads;
      testing::usual_kernels += Config::usual ? 1 : 0;
      testing::end_kernel_before();
      testing::kernel_before = [=] {
        testing::launch_fibers(place, histogram.rows, 1, threads,
                               forward_shared_bytes<decltype(problem.balancer), tier>(threads),
                               [&](const testing::FiberBlock& block) {
                                 const testing::FiberTile<tier.width> tile{block.group, block.thread()};
                                 forward_and_count_kernel<Config>(block, tile, problem, totals, histogram);
                               });
      };
    });
  }
};

}  // namespace MOEB_VERSION_NAMESPACE
}  // namespace moe_balance

namespace testing {

/// An engine of test bodies (engine_host.hpp tells what it offers) whose calls run on fibers.
struct FiberEngine {
  static constexpr const char* label = "fibers";
  static constexpr bool has_float64 = false;
  std::uint64_t seed = 1;
  int multiprocessors = 2;
  int dispatch_tiles = 3;
  int routing_threads = 64;
  Faults faults{};

  [[nodiscard]] Fibers place() const {
    return {.seed = seed,
            .multiprocessors = multiprocessors,
            .faults = faults,
            .dispatch_tiles = dispatch_tiles,
            .routing_threads = routing_threads};
  }
  void wait() const {}

  template <class T>
  class Array {
   public:
    Array() = default;
    Array(const FiberEngine&, const std::vector<T>& values) : values_(values) {}
    [[nodiscard]] T* data() { return values_.empty() ? nullptr : values_.data(); }
    [[nodiscard]] std::vector<T> values() const { return values_; }

   private:
    std::vector<T> values_;
  };
};

}  // namespace testing
