// The CUDA engine of the dispatch calls: one thin kernel that runs any body of dispatch/. Calls enqueue on the given stream and return.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/route_and_permute.hpp>
#include <moe_balance/engine/cuda.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

inline namespace MOEB_ARCH_LIST_NAME {

/// CUB's sort and scan. dispatch/many_experts.cuh compiles and registers them, once for the program (of files with the same architectures) that it
/// is part of: a permutation of up to max_counted_experts needs neither, and its users should not wait for them to compile.
struct MOEB_HIDDEN DeviceSorting {
  /// Bytes that a sort of so many pairs, and a scan over so many experts, need.
  std::size_t (*scratch_bytes)(std::int64_t slots, std::int64_t experts) = nullptr;
  void (*sort)(SlotPairs& pairs, std::int64_t n, int bits, const Workspace& scratch, cudaStream_t stream) = nullptr;
  void (*sum)(std::int64_t* values, std::int64_t n, const Workspace& scratch, cudaStream_t stream) = nullptr;
};
MOEB_HIDDEN inline DeviceSorting device_sorting{};

}  // namespace MOEB_ARCH_LIST_NAME

inline namespace MOEB_ARCH_NAMESPACE {

/// Whether a body waits for the kernel before it where it first needs what that one wrote.
template <class Body>
inline constexpr bool waits_by_itself = requires {
  Body::waits_by_itself;
};

/// The most tiles that a body's block is launched with.
template <class Body>
[[nodiscard]] constexpr int most_tiles_of() {
  if constexpr (requires { Body::most_tiles; })
    return Body::most_tiles;
  else
    return dispatch_tuning.tiles;
}
/// How many such blocks a multiprocessor must have registers for.
template <class Body>
inline constexpr int blocks_of_most_tiles = dispatch_tuning.blocks_with_registers* dispatch_tuning.tiles /
                                            most_tiles_of<Body>();

template <class Body, class Problem>
__global__ void __launch_bounds__(32 * most_tiles_of<Body>(), blocks_of_most_tiles<Body>) MOEB_HIDDEN
    moe_balance_dispatch(const Body body, const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) std::byte moe_balance_shared[];
  const CudaBlock<> block{moe_balance_shared};
  if constexpr (!waits_by_itself<Body>) block.await_kernel_before();
  if constexpr (requires { Body::lets_next_kernel_start; }) block.let_next_kernel_start();
  body(block, CudaTile<32>{}, problem);
}

/// Blocks of its tier's size whose threads a block that routes and counts may have, for whose registers a multiprocessor has room.
template <class Config, class Problem>
inline constexpr int most_tier_blocks = [] {
  constexpr int resident = blocks_per_sm(Config::tier, forward_kind<Config, Problem>);
  constexpr int most = dispatch_tuning.most_tier_blocks_of_routing_block;
  return !has_room_for_large_routing_blocks(Config::tier) ? 1 : resident < most ? resident : most;
}();
/// The largest block that its kernel is compiled for: with as many registers as forward's.
template <class Config, class Problem>
inline constexpr int most_routing_threads = (most_tier_blocks<Config, Problem>)*Config::tier.threads;
/// Its threads, on a device whose blocks have so much shared memory: no more than it has tokens for.
template <class Config, class Problem>
[[nodiscard]] constexpr int routing_threads(std::int64_t tokens, std::size_t available) {
  const auto fits = [&](int threads) {
    return forward_shared_bytes<decltype(Problem::balancer), Config::tier>(threads) <= available &&
           threads / Config::tier.width <= tokens;
  };
  int threads = most_routing_threads<Config, Problem>;
  while (threads > Config::tier.threads && !fits(threads)) threads -= Config::tier.threads;
  return threads;
}

/// How many of the largest a multiprocessor must have registers for.
template <class Config, class Problem>
inline constexpr int blocks_of_most_routing_threads =
    blocks_per_sm(Config::tier, forward_kind<Config, Problem>) * Config::tier.threads
    / most_routing_threads<Config, Problem>;

template <int Tier, bool Usual, class Problem>
__global__ void __launch_bounds__(most_routing_threads<KernelConfig<Tier, Usual>, Problem>,
                                  blocks_of_most_routing_threads<KernelConfig<Tier, Usual>, Problem>) MOEB_HIDDEN
    moe_balance_forward_and_count(const __grid_constant__ Problem problem, const __grid_constant__ Totals totals,
                                  const __grid_constant__ Histogram histogram) {
  extern __shared__ __align__(16) std::byte moe_balance_shared[];
  using Config = KernelConfig<Tier, Usual>;
  constexpr bool has_one_size = (most_tier_blocks<Config, Problem>) == 1;
  constexpr int fixed_threads = has_one_size ? Config::tier.threads : 0;
  const CudaBlock<fixed_threads> block{moe_balance_shared};
  block.await_kernel_before();
  block.let_next_kernel_start();
  forward_and_count_kernel<Config>(block, CudaTile<Config::tier.width>{}, problem, totals, histogram);
}

struct MOEB_HIDDEN CudaDispatchEngine {
  static constexpr bool serves_float64 = false;
  /// Index arrays are the device's: kernels take bad entries as -1 and count them in Status.
  static constexpr bool reads_arguments = false;
  static constexpr bool fuses_routing = true;

  static void check(const char* call, cudaStream_t stream) { Engine<cudaStream_t>::check(call, stream); }
  static void clear(void* data, std::size_t bytes, cudaStream_t stream) { Engine<cudaStream_t>::clear(data, bytes, stream); }

  /// A warp per row, on as many blocks as the device holds at once.
  [[nodiscard]] static LaunchSize for_rows(std::int64_t rows, std::int64_t /*columns*/, cudaStream_t /*stream*/) {
    return {blocks_for((rows + dispatch_tuning.tiles - 1) / dispatch_tuning.tiles), dispatch_tuning.tiles, 0};
  }
  /// A thread per item.
  [[nodiscard]] static LaunchSize for_items(std::int64_t items, cudaStream_t /*stream*/) {
    constexpr int threads = 32 * dispatch_tuning.tiles;
    return {blocks_for((items + threads - 1) / threads), dispatch_tuning.tiles, 0};
  }
  /// A block per group.
  [[nodiscard]] static LaunchSize for_groups(std::int64_t groups, std::int64_t /*items*/, cudaStream_t /*stream*/) {
    return {blocks_for(groups), dispatch_tuning.tiles, 0};
  }
  /// As many as run at the same time, one on a multiprocessor.
  [[nodiscard]] static std::int64_t parts(std::int64_t /*slots*/, std::int64_t most, cudaStream_t /*stream*/) {
    while (most > multiprocessors()) most = (most + 1) / 2;
    return most;
  }
  /// Whether blocks that route have the threads of several, which all run at the same time only where there are multiprocessors enough. Few experts may
  /// be served by the tier of more.
  [[nodiscard]] static bool has_large_routing_blocks(int experts, cudaStream_t /*stream*/) {
    const int served = std::max(experts, MOE_BALANCE_CUDA_MIN_EXPERTS);
    return served <= most_experts_of_large_routing_blocks && multiprocessors() >= dispatch_tuning.most_routing_blocks;
  }
  /// Tiles of a block that counts and ranks slots.
  [[nodiscard]] static int tiles(const ExpertCount& count, cudaStream_t /*stream*/) {
    const std::size_t available = most_shared_bytes();
    const int result = PlaceSlots::tiles_that_fit(count.experts, available);
    MOEB_EXPECTS(result > 0, count.call, count.argument, count.experts + count.more, 1 + count.more, " to ",
                 PlaceSlots::most_experts(available) + count.more, " on this device, whose blocks have ", available,
                 " bytes of shared memory");
    return result;
  }

  /// Before a permutation by sorting, of which nothing is written yet.
  static void check_sort(std::int64_t slots, const ExpertCount& count, cudaStream_t /*stream*/) {
    MOEB_EXPECTS(device_sorting.sort != nullptr, count.call, count.argument, count.experts + count.more, 1 + count.more,
                 " to ", max_counted_experts + count.more,
                 " in a program none of whose files includes <moe_balance/dispatch/many_experts.cuh>");
    const std::size_t needed = device_sorting.scratch_bytes(slots, count.experts);
    const std::size_t reserved = detail::SortScratch::engine_bytes(slots, count.experts);
    MOEB_EXPECTS(needed <= reserved, count.call, "workspace.bytes", "short by " + std::to_string(needed - reserved),
                 "what this version of CUB asks for; please report it");
  }
  static void sort(SlotPairs& pairs, std::int64_t n, int bits, const Workspace& scratch, cudaStream_t stream) {
    device_sorting.sort(pairs, n, bits, scratch, stream);
  }
  static void sum(std::int64_t* values, std::int64_t n, const Workspace& scratch, cudaStream_t stream) {
    device_sorting.sum(values, n, scratch, stream);
  }

  template <class Body, class Problem>
  static void launch(const char* call, const LaunchSize& size, const Body& body, const Problem& problem,
                     cudaStream_t stream) {
    const auto kernel = moe_balance_dispatch<Body, Problem>;
    CudaEngine::LaunchShape shape{dim3(static_cast<unsigned>(size.blocks)), 32 * size.tiles, size.shared_bytes};
    bool may_start_early = true;
    if constexpr (waits_by_itself<Body>) {
      // The first launch of two has let it start long before its own end.
      const std::int64_t processors = multiprocessors();
      may_start_early = size.blocks * cuda_launch_tuning.multiprocessors_per_block_beside <= processors;
      // Blocks that start early are put where there is room first: none of nearly as many as multiprocessors has room beside another.
      if (may_start_early && 2 * size.blocks > processors) {
        shape.shared_bytes = std::max(size.shared_bytes, most_shared_bytes() / 2 + reserved_shared_bytes);
      }
    }
    allow_shared_bytes(call, kernel, shape.shared_bytes);
    if (!may_start_early) {
      kernel<<<shape.grid, shape.threads, shape.shared_bytes, stream>>>(body, problem);
      return check_cuda(cudaGetLastError(), call);
    }
    CudaEngine::launch(call, CudaEngine::current_device(call), kernel, shape, stream, body, problem);
  }

  /// The routing kernel of the fused calls, one block per row of the histogram.
  template <class Problem>
  static void forward_and_count(const Problem& problem, const Totals& totals, const Histogram& histogram,
                                cudaStream_t stream) {
    with_config<compiled_tiers>(problem, [&](auto config) {
      using Config = decltype(config);
      const bool is_large = has_large_routing_blocks(static_cast<int>(problem.logits.columns), stream);
      const int threads =
          is_large ? routing_threads<Config, Problem>(histogram.tokens_per_row, most_shared_bytes()) : Config::tier.threads;
      const std::size_t shared_bytes = forward_shared_bytes<decltype(problem.balancer), Config::tier>(threads);
      const auto kernel = moe_balance_forward_and_count<Config::index, Config::usual, Problem>;
      allow_shared_bytes("forward_and_permute", kernel, shared_bytes);
      const CudaEngine::LaunchShape shape{dim3(static_cast<unsigned>(histogram.rows)), threads, shared_bytes};
      CudaEngine::launch("launching forward_and_permute", CudaEngine::current_device("forward_and_permute"), kernel, shape,
                         stream, problem, totals, histogram);
    });
  }

 private:
  /// What a kernel has without asking is 48 KiB. All that the device has, whatever this call needs: another thread's call of the same kernel may need
  /// more, and must not find less.
  template <class Kernel>
  static void allow_shared_bytes(const char* call, Kernel kernel, std::size_t bytes) {
    if (bytes <= shared_bytes_without_asking) return;
    const int most = static_cast<int>(most_shared_bytes());
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), call);
  }

  [[nodiscard]] static int attribute_of_device(cudaDeviceAttr attribute) {
    int device = 0;
    int value = 0;
    check_cuda(cudaGetDevice(&device), "finding the current device");
    check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "reading the device's size");
    return value;
  }
  [[nodiscard]] static std::int64_t multiprocessors() { return attribute_of_device(cudaDevAttrMultiProcessorCount); }
  /// Of a block.
  [[nodiscard]] static std::size_t most_shared_bytes() {
    return static_cast<std::size_t>(attribute_of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  }

  [[nodiscard]] static std::int64_t blocks_for(std::int64_t useful) {
    return std::clamp<std::int64_t>(useful, 1, multiprocessors() * dispatch_tuning.blocks_per_multiprocessor);
  }
};

}  // namespace MOEB_ARCH_NAMESPACE

/// All its members are CudaDispatchEngine's, whose names carry architectures and experts.
template <>
struct MOEB_HIDDEN DispatchEngine<cudaStream_t> : CudaDispatchEngine {};

MOEB_NAMESPACE_END
