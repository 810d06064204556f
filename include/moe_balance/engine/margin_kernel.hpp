// The body of the kernel that counts margins.
#pragma once

#include <moe_balance/engine/kernel_config.hpp>
#include <moe_balance/token/margins.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Shared memory of the kernel that counts margins: the bias.
[[nodiscard]] constexpr std::size_t margin_shared_bytes(const CudaTier& tier) {
  return static_cast<std::size_t>(tier.max_experts) * sizeof(float);
}

/// The margins of every token, added to the histogram as they come: integers, whose sum no order changes.
template <class Config, class BlockT, class TileT, class Problem>
MOEB_HOST_DEVICE inline void margin_kernel(const BlockT& block, const TileT& tile, const Problem& problem) {
  using LayoutT = Layout<TileT, Config::max_experts>;
  const LayoutT layout{static_cast<int>(problem.logits.columns), tile.lane()};
  auto* const bias = reinterpret_cast<float*>(block.shared());
  for (int e = block.thread(); e < Config::max_experts; e += block.threads()) {
    bias[e] = problem.bias != nullptr && e < layout.experts ? problem.bias[e] : 0.0f;
  }
  block.barrier();
  const int tiles = block.threads() / TileT::width;
  const std::int64_t stride = block.blocks() * tiles;
  for (std::int64_t token = block.index() * tiles + tile_in_block(block, tile); token < problem.logits.rows;
       token += stride) {
    if (token + stride < problem.logits.rows) prefetch_row<RowUse::read>(layout, problem.logits, token + stride);
    add_margins<float>(problem, tile, layout, token, bias,
                       [&](std::int64_t cell) { block.add_global(problem.histogram + cell, 1); });
  }
}

MOEB_NAMESPACE_END
