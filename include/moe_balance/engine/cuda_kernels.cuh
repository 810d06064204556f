// The kernels: thin wrappers over engine/kernels.hpp, and the block that their bodies run in.
// Kernels and their launchers have hidden visibility and live in a namespace that carries the architectures and experts they were compiled for, so that
// two shared objects, or two files of one program, with different architectures never share one.
#pragma once

#include <moe_balance/engine/arch_namespace.hpp>
#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/tile/cuda_tile.cuh>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN
inline namespace MOEB_ARCH_NAMESPACE {

static_assert(MOE_BALANCE_CUDA_MAX_EXPERTS >= 1 && MOE_BALANCE_CUDA_MAX_EXPERTS <= max_experts,
              "MOE_BALANCE_CUDA_MAX_EXPERTS must be 1 to 2048");
static_assert(MOE_BALANCE_CUDA_MIN_EXPERTS >= 1 && MOE_BALANCE_CUDA_MIN_EXPERTS <= MOE_BALANCE_CUDA_MAX_EXPERTS,
              "MOE_BALANCE_CUDA_MIN_EXPERTS must be 1 to MOE_BALANCE_CUDA_MAX_EXPERTS");
inline constexpr TierRange compiled_tiers{tier_of(MOE_BALANCE_CUDA_MIN_EXPERTS), tier_of(MOE_BALANCE_CUDA_MAX_EXPERTS)};

/// The block of a running kernel. `Threads`: how many, or 0 for as many as were launched.
template <int Threads = 0>
struct MOEB_HIDDEN CudaBlock {
  std::byte* memory;

  __device__ int thread() const {
    const auto index = static_cast<int>(threadIdx.x);
    __builtin_assume(index >= 0 && index < 1024);  // or else divisions ask for the sign
    return index;
  }
  __device__ int threads() const { return Threads > 0 ? Threads : static_cast<int>(blockDim.x); }
  __device__ std::int64_t index() const { return blockIdx.x; }
  __device__ std::int64_t blocks() const { return gridDim.x; }
  __device__ std::int64_t row() const { return blockIdx.y; }
  __device__ std::int64_t rows() const { return gridDim.y; }
  __device__ void barrier() const { __syncthreads(); }
  // Of a grid that is one cluster; what one thread wrote before it arrived, the others see after they have waited. Never called where no cluster
  // was launched.
  __device__ void arrive() const {
#if __CUDA_ARCH__ >= 900
    __cluster_barrier_arrive();
#endif
  }
  __device__ void await_blocks() const {
#if __CUDA_ARCH__ >= 900
    __cluster_barrier_wait();
#endif
  }
  // Every kernel that CudaEngine::launch starts calls it, most before all else: it may be started while the kernel before it still runs. In others it
  // returns at once.
  __device__ void await_kernel_before() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  }
  /// From here on the next kernel may start, if it was launched to run beside this one.
  __device__ void let_next_kernel_start() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
  }
  __device__ std::byte* shared() const {
    return memory;
  }
  __device__ void add_shared(std::int64_t* to, std::int64_t value) const {
    add_global(to, value);
  }
  __device__ void add_shared(std::int32_t* to, std::int32_t value) const {
    atomicAdd(to, value);
  }
  __device__ void add_global(std::int64_t* to, std::int64_t value) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
  }
};

/// How many of forward's largest blocks a multiprocessor must have registers for.
template <int Tier, bool Usual, class Problem>
inline constexpr int blocks_of_most_threads =
    blocks_per_sm(cuda_tiers[Tier], forward_kind<KernelConfig<Tier, Usual>, Problem>) * cuda_tiers[Tier].threads
    / most_forward_threads<KernelConfig<Tier, Usual>, Problem>;

/// A block's threads where all have as many, else 0.
template <class Config, class Problem>
inline constexpr int fixed_forward_threads =
    most_forward_threads<Config, Problem> == Config::tier.threads ? Config::tier.threads : 0;

template <int Tier, bool Usual, class Problem>
__global__ void __launch_bounds__(most_forward_threads<KernelConfig<Tier, Usual>, Problem>,
                                  blocks_of_most_threads<Tier, Usual, Problem>) MOEB_HIDDEN
    moe_balance_forward(const __grid_constant__ Problem problem, const __grid_constant__ Totals totals) {
  extern __shared__ __align__(16) std::byte moe_balance_shared[];
  const CudaBlock<fixed_forward_threads<KernelConfig<Tier, Usual>, Problem>> block{moe_balance_shared};
  block.await_kernel_before();
  forward_kernel<KernelConfig<Tier, Usual>>(block, CudaTile<cuda_tiers[Tier].width>{}, problem, totals);
}

template <int Tier, bool Usual, class Problem>
__global__ void __launch_bounds__(cuda_tiers[Tier].threads,
                                  blocks_per_sm(cuda_tiers[Tier], KernelConfig<Tier, Usual>::backward)) MOEB_HIDDEN
    moe_balance_backward(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) std::byte moe_balance_shared[];
  const CudaBlock<cuda_tiers[Tier].threads> block{moe_balance_shared};
  block.await_kernel_before();
  backward_kernel<KernelConfig<Tier, Usual>>(block, CudaTile<cuda_tiers[Tier].width>{}, problem);
}

template <int Tier, class Problem>
__global__ void __launch_bounds__(cuda_tiers[Tier].threads, cuda_tiers[Tier].blocks_per_sm) MOEB_HIDDEN
    moe_balance_margins(const __grid_constant__ Problem problem) {
  extern __shared__ __align__(16) std::byte moe_balance_shared[];
  const CudaBlock<cuda_tiers[Tier].threads> block{moe_balance_shared};
  block.await_kernel_before();
  margin_kernel<KernelConfig<Tier>>(block, CudaTile<cuda_tiers[Tier].width>{}, problem);
}

template <class Problem>
__global__ void __launch_bounds__(margin_tuning.threads, margin_tuning.blocks_per_multiprocessor) MOEB_HIDDEN
    moe_balance_margin_counts(const __grid_constant__ Problem problem, int experts_of_block) {
  extern __shared__ __align__(16) std::byte moe_balance_shared[];
  const CudaBlock<margin_tuning.threads> block{moe_balance_shared};
  block.await_kernel_before();
  margin_count_kernel(block, problem, experts_of_block);
}

template <class Problem>
__global__ void __launch_bounds__(32) MOEB_HIDDEN moe_balance_loss(const __grid_constant__ Problem problem) {
  CudaBlock<32>{nullptr}.await_kernel_before();
  evaluate_losses(problem, CudaTile<32>{});
}

template <class Problem>
__global__ void __launch_bounds__(32) MOEB_HIDDEN moe_balance_update(const __grid_constant__ Problem problem) {
  CudaBlock<32>{nullptr}.await_kernel_before();
  update_layer(problem, CudaTile<32>{}, blockIdx.x);
}

template <int Threads>
__global__ void __launch_bounds__(Threads) MOEB_HIDDEN
    moe_balance_clear(std::int64_t* words, std::int64_t word_count, std::int64_t* counts, int count_count) {
  const CudaBlock<Threads> block{nullptr};
  block.await_kernel_before();
  block.let_next_kernel_start();
  clear_kernel(block, words, word_count, counts, count_count);
}

template <int Threads>
__global__ void __launch_bounds__(Threads) MOEB_HIDDEN
    moe_balance_publish(std::int64_t* load, std::int64_t* counts, int experts, bool accumulate) {
  const CudaBlock<Threads> block{nullptr};
  block.await_kernel_before();
  publish_kernel(block, load, counts, experts, accumulate);
}

}  // namespace MOEB_ARCH_NAMESPACE
MOEB_NAMESPACE_END
