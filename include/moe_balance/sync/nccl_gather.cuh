// NcclGatherSync: as NcclSync, but every rank gathers all ranks' counts and sums them itself, in rank order. NCCL's all-reduce over symmetric
// memory does not serve integers; its all-gather does, so that in an NVLink domain this is the faster of the two for few
// counts. It also gives the counts of every rank: exchange().counts_of_ranks(). Over many ranks it moves ranks times the bytes: docs/distributed.md.
// Opt-in, as sync/nccl.hpp; needs nvcc and NCCL 2.19. Memory is allocated at construction, which is collective.
#pragma once

#include <moe_balance/engine/cuda.cuh>
#include <moe_balance/sync/nccl_gather.hpp>

MOEB_NAMESPACE_BEGIN
inline namespace MOEB_ARCH_LIST_NAME {

template <int Threads>
__global__ void __launch_bounds__(Threads) MOEB_HIDDEN
    moe_balance_sum_in_rank_order(const std::int64_t* gathered, int ranks, std::int64_t n, std::int64_t* counts) {
  const std::int64_t index = std::int64_t{blockIdx.x} * Threads + threadIdx.x;
  if (index < n) counts[index] = sum_in_rank_order(gathered, ranks, n, index);
}

struct MOEB_HIDDEN CudaRankOrder {
  static cudaError_t sum(const std::int64_t* gathered, int ranks, std::int64_t n, std::int64_t* counts,
                         cudaStream_t stream) {
    constexpr int threads = 128;
    if (n == 0) return cudaSuccess;
    moe_balance_sum_in_rank_order<threads>
        <<<static_cast<unsigned>((n + threads - 1) / threads), threads, 0, stream>>>(gathered, ranks, n, counts);
    return cudaGetLastError();
  }
};

using NcclGatherSync = BasicNcclSync<NcclAllGather<CudaRankOrder>>;

}  // namespace MOEB_ARCH_LIST_NAME
static_assert(SyncPolicyOn<NcclGatherSync, cudaStream_t>);

MOEB_NAMESPACE_END
