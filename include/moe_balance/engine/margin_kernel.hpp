// The bodies of the kernels that count margins. The first finds each token's threshold, and counts in the histogram itself where the call has no second: few
// tokens, or bins that shared memory has no room for. The second counts in shared memory, because additions to memory were most of the first one's time.
#pragma once

#include <moe_balance/engine/kernel_config.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/token/margins.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Shared memory of the kernel that finds thresholds: the bias.
[[nodiscard]] constexpr std::size_t margin_shared_bytes(const CudaTier& tier) {
  return static_cast<std::size_t>(tier.max_experts) * sizeof(float);
}

/// The blocks of the second kernel: each counts a few neighbouring experts of a range of tokens.
struct MarginGrid {
  int experts_of_block = 0;  ///< a power of two; 0: the first kernel counts
  std::int64_t expert_ranges = 0;
  std::int64_t token_ranges = 0;
  std::size_t shared_bytes = 0;  ///< of a block

  /// `available`: shared memory of a block.
  MarginGrid(const ConstAnyMatrix& logits, int bins, int multiprocessors, std::size_t available,
             const MarginTuning& tuning) {
    const std::int64_t least_tokens = std::max<std::int64_t>(bins * tuning.tokens_per_bin, 1);
    if (logits.rows < least_tokens || logits.rows * logits.columns < tuning.least_margins) return;
    const std::size_t expert_bytes = static_cast<std::size_t>(bins) * sizeof(std::int32_t);
    experts_of_block = tuning.bytes_of_row / static_cast<int>(size_of(logits.type));
    while (experts_of_block > 0 && static_cast<std::size_t>(experts_of_block) * expert_bytes > available) {
      experts_of_block /= 2;
    }
    if (experts_of_block == 0) return;
    shared_bytes = static_cast<std::size_t>(experts_of_block) * expert_bytes;
    expert_ranges = (logits.columns + experts_of_block - 1) / experts_of_block;
    const std::int64_t wanted = std::int64_t{multiprocessors} * tuning.blocks_per_multiprocessor / expert_ranges;
    const std::int64_t fewest = (logits.rows + tuning.most_tokens - 1) / tuning.most_tokens;
    token_ranges = std::max(std::clamp<std::int64_t>(wanted, 1, logits.rows / least_tokens), fewest);
  }
  [[nodiscard]] bool counts() const { return experts_of_block > 0; }
};

/// The thresholds of all tokens, written to memory; where there is none their margins, added to the histogram as they come: integers, whose sum no order changes.
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
    Slots<float, LayoutT> logits;
    Slots<float, LayoutT> scores;
    const auto threshold = find_threshold<float>(problem, tile, layout, token, bias, logits, scores);
    if (!problem.thresholds.empty()) {
      if (tile.lane() == 0) problem.thresholds.set(token, threshold);
    } else if (threshold.has_margins()) {
      add_margins<float>(problem, tile, layout, token, threshold, logits, scores,
                         [&](std::int64_t cell) { block.add_global(problem.histogram + cell, 1); });
    }
  }
}

/// The experts and tokens of a block of the second kernel.
struct MarginRange {
  int first_expert;
  int experts;  ///< 0 or fewer: none
  std::int64_t first_token;
  std::int64_t last_token;

  template <class BlockT>
  MOEB_INLINE MarginRange(const BlockT& block, const ConstAnyMatrix& logits, int experts_of_block) {
    first_expert = static_cast<int>(block.row()) * experts_of_block;
    const int left = static_cast<int>(logits.columns) - first_expert;
    experts = left < experts_of_block ? left : experts_of_block;
    const std::int64_t tokens = (logits.rows + block.blocks() - 1) / block.blocks();
    first_token = block.index() * tokens;
    last_token = first_token + tokens < logits.rows ? first_token + tokens : logits.rows;
  }
};

/// Where a thread of the second kernel counts: an expert, and every step-th token of a range.
template <class T, class Scoring>
struct MarginWalk {
  const T* logits;  ///< of the expert, token 0
  std::int64_t stride;
  TokenThresholds<Scoring> thresholds;
  int step;
  std::int32_t* cells;  ///< [bins], of the expert
};

/// Adds the margins of `Count` tokens of a walk to its cells.
template <int Count, class T, class BlockT, class Scoring, class Binning>
MOEB_INLINE void count_tokens(const BlockT& block, const Scoring& scoring, const Binning& binning, int bins,
                              const MarginWalk<T, Scoring>& walk, std::int64_t token) {
  const T* const logits = walk.logits + token * walk.stride;
  const TokenThresholds<Scoring> thresholds = walk.thresholds.from(token);
  TokenThreshold<float, Scoring> threshold[Count];
  float logit[Count];
  MOEB_UNROLL
  for (int i = 0; i < Count; ++i) {  // all are loaded before one is waited for
    logit[i] = to_real(logits[i * walk.step * walk.stride]);
    threshold[i] = thresholds[i * walk.step];
  }
  MOEB_UNROLL
  for (int i = 0; i < Count; ++i) {
    const int bin = bin_of_margin(binning, bins, threshold[i].margin_of_logit(scoring, logit[i]));
    if (threshold[i].has_margins()) block.add_shared(walk.cells + bin, 1);
  }
}

/// Adds a range's margins to its cells [experts, bins] in shared memory. Neighbouring threads have neighbouring experts of a token, then those of the next tokens.
/// `T`: of the logits.
template <class T, class BlockT, class Problem, class Binning>
MOEB_HOST_DEVICE inline void count_range(const BlockT& block, const Problem& problem, const Binning& binning, int bins,
                                         const MarginRange& range, int experts_of_block, std::int32_t* cells) {
  const int own = block.thread() % experts_of_block;
  if (own >= range.experts) return;
  const MarginWalk<T, decltype(problem.scoring)> walk{static_cast<const T*>(problem.logits.data) + range.first_expert + own,
                                                      problem.logits.stride, problem.thresholds,
                                                      block.threads() / experts_of_block, cells + own * bins};
  constexpr int at_once = margin_tuning.tokens_at_once;
  std::int64_t token = range.first_token + block.thread() / experts_of_block;
  for (; token + (at_once - 1) * walk.step < range.last_token; token += at_once * walk.step) {
    count_tokens<at_once>(block, problem.scoring, binning, bins, walk, token);
  }
  MOEB_NO_UNROLL
  for (; token < range.last_token; token += walk.step) count_tokens<1>(block, problem.scoring, binning, bins, walk, token);
}

/// Counts the margins of a block's experts and tokens and adds them to the histogram, once for each cell.
template <class BlockT, class Problem>
MOEB_HOST_DEVICE inline void margin_count_kernel(const BlockT& block, const Problem& problem, int experts_of_block) {
  const MarginRange range(block, problem.logits, experts_of_block);
  const int bins = bins_of(problem.balancer);
  const int cell_count = range.experts * bins;
  auto* const cells = reinterpret_cast<std::int32_t*>(block.shared());
  for (int cell = block.thread(); cell < cell_count; cell += block.threads()) cells[cell] = 0;
  block.barrier();
  with_binning(problem, [&](const auto& binning, int /*bins*/) MOEB_LAMBDA {
    with_element_type<float>(problem.logits.type, [&](auto* type) MOEB_LAMBDA {
      count_range<std::remove_pointer_t<decltype(type)>>(block, problem, binning, bins, range, experts_of_block, cells);
    });
  });
  block.barrier();
  std::int64_t* const histogram = problem.histogram + static_cast<std::int64_t>(range.first_expert) * bins;
  for (int cell = block.thread(); cell < cell_count; cell += block.threads()) {
    if (cells[cell] != 0) block.add_global(histogram + cell, cells[cell]);
  }
}

MOEB_NAMESPACE_END
