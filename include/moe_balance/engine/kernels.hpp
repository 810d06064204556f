// The bodies of the CUDA kernels, as functions over a Block. `__global__` wrappers (engine/cuda_kernels.cuh) hold no logic, so that everything here also
// runs on a CPU under tests.
#pragma once

#include <moe_balance/engine/backward_kernel.hpp>
#include <moe_balance/engine/forward_kernel.hpp>
#include <moe_balance/engine/margin_kernel.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Sets to 0 what a forward call adds up in.
template <class BlockT>
MOEB_HOST_DEVICE inline void clear_kernel(const BlockT& block, std::int64_t* words, std::int64_t word_count,
                                          std::int64_t* counts, int count_count) {
  const std::int64_t first = block.index() * block.threads() + block.thread();
  const std::int64_t stride = block.blocks() * block.threads();
  MOEB_NO_UNROLL
  for (std::int64_t i = first; i < word_count; i += stride) words[i] = 0;
  MOEB_NO_UNROLL
  for (std::int64_t i = first; i < count_count; i += stride) counts[i] = 0;
}

template <class BlockT>
MOEB_HOST_DEVICE inline void publish_kernel(const BlockT& block, std::int64_t* load, std::int64_t* counts, int experts,
                                            bool accumulate) {
  for (int e = block.thread(); e < experts; e += block.threads()) publish_expert(load, counts, e, accumulate);
}

MOEB_NAMESPACE_END
