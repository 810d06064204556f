// The CUDA engine of the dispatch calls: one thin kernel that runs any body of dispatch/. Calls enqueue on the given stream and return.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/route_and_permute.hpp>
#include <moe_balance/engine/cuda.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN
inline namespace MOEB_ARCH_NAMESPACE {

template <class Body, class Problem>
__global__ void __launch_bounds__(32 * dispatch_tuning.tiles, dispatch_tuning.blocks_with_registers) MOEB_HIDDEN
    moe_balance_dispatch(const Body body, const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) std::byte moe_balance_shared[];
  body(CudaBlock{moe_balance_shared}, CudaTile<32>{}, problem);
}

template <int Tier, class Problem>
__global__ void __launch_bounds__(cuda_tiers[Tier].threads, cuda_tiers[Tier].blocks_per_sm) MOEB_HIDDEN
    moe_balance_route_and_count(const __grid_constant__ Problem problem, const __grid_constant__ Totals totals,
                                std::int32_t* histogram) {
  extern __shared__ __align__(16) std::byte moe_balance_shared[];
  route_and_count_kernel<KernelConfig<Tier>>(CudaBlock{moe_balance_shared}, CudaTile<cuda_tiers[Tier].width>{}, problem,
                                             totals, histogram);
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
  /// By the shape alone, so that captured graphs and other devices launch the same.
  [[nodiscard]] static std::int64_t parts(std::int64_t /*slots*/, std::int64_t most, cudaStream_t /*stream*/) {
    return most;
  }
  [[nodiscard]] static constexpr int tiles(int experts) {
    return experts <= dispatch_tuning.many_experts ? dispatch_tuning.tiles : dispatch_tuning.tiles_for_many_experts;
  }

  template <class Body, class Problem>
  static void launch(const char* call, const LaunchSize& size, const Body& body, const Problem& problem,
                     cudaStream_t stream) {
    const auto kernel = moe_balance_dispatch<Body, Problem>;
    if (size.shared_bytes > 48 * 1024) {
      check_cuda(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(size.shared_bytes)),
          call);
    }
    kernel<<<static_cast<unsigned>(size.blocks), 32 * static_cast<unsigned>(size.tiles), size.shared_bytes, stream>>>(
        body, problem);
    check_cuda(cudaGetLastError(), call);
  }

  /// The routing kernel of route_and_permute, one block per row of the histogram.
  template <class Problem>
  static void route_and_count(const Problem& problem, const Totals& totals, std::int32_t* histogram, std::int64_t rows,
                              cudaStream_t stream) {
    with_tier(static_cast<int>(problem.logits.columns), [&](auto tier_index) {
      constexpr int index = decltype(tier_index)::value;
      constexpr CudaTier tier = cuda_tiers[index];
      constexpr std::size_t shared_bytes = ForwardShared<decltype(problem.balancer), tier.max_experts>::bytes(0);
      moe_balance_route_and_count<index, Problem>
          <<<static_cast<unsigned>(rows), tier.threads, shared_bytes, stream>>>(problem, totals, histogram);
    });
    check_cuda(cudaGetLastError(), "launching route_and_permute");
  }

 private:
  [[nodiscard]] static std::int64_t blocks_for(std::int64_t useful) {
    int device = 0;
    int multiprocessors = 0;
    check_cuda(cudaGetDevice(&device), "finding the current device");
    check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
               "reading the device's size");
    return std::clamp<std::int64_t>(useful, 1, std::int64_t{multiprocessors} * dispatch_tuning.blocks_per_multiprocessor);
  }
};

}  // namespace MOEB_ARCH_NAMESPACE

/// All its members are CudaDispatchEngine's, whose names carry the architectures.
template <>
struct MOEB_HIDDEN DispatchEngine<cudaStream_t> : CudaDispatchEngine {};

MOEB_NAMESPACE_END
