// The body of the forward kernel.
#pragma once

#include <moe_balance/engine/forward_shared.hpp>
#include <moe_balance/engine/kernel_config.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// The shared memory of a block of forward, its lane's part in the sums, and where they go.
template <class Config, class BlockT, class TileT, class Problem>
struct ForwardPass {
  using Balancer = decltype(Problem::balancer);
  using Shared = ForwardShared<Balancer, Config::max_experts>;
  using LayoutT = Layout<TileT, Config::max_experts, Config::usual>;
  using Sums = std::conditional_t<Config::private_rows, SharedSums<LayoutT>, RegisterSums<LayoutT>>;
  using Sink = KernelSink<BlockT, Sums, Balancer>;

  static constexpr bool reads_bias = LayoutT::rereads_logits || !Config::usual || Shared::Traits::biases > 0;

  const BlockT& block;
  const Problem& problem;
  int experts;
  LayoutT layout;
  Shared shared;
  TileWithMemory<TileT, Config::usual> tile;
  Sums sums;

  MOEB_HOST_DEVICE ForwardPass(const BlockT& own_block, const TileT& own_tile, const Problem& of)
      : block(own_block),
        problem(of),
        experts(static_cast<int>(of.logits.columns)),
        layout{experts, own_tile.lane()},
        shared{own_block.shared()},
        tile{own_tile, shared.words(tile_in_block(own_block, own_tile), own_block.threads() / TileT::width, TileT::width)},
        sums{shared.probabilities(tile_in_block(own_block, own_tile)), layout} {
    if constexpr (reads_bias) {
      MOEB_NO_UNROLL
      for (int e = block.thread(); e < Config::max_experts; e += block.threads()) {
        shared.bias()[e] = problem.bias != nullptr && e < experts ? problem.bias[e] : 0.0f;
      }
    }
  }

  /// Null where there is none.
  [[nodiscard]] MOEB_HOST_DEVICE const float* bias() const {
    if constexpr (reads_bias)
      return LayoutT::rereads_logits || problem.bias != nullptr ? shared.bias() : nullptr;
    else
      return nullptr;
  }

  /// Loops over experts stay rolled: most threads go through them once, and how often would be found by a division.
  MOEB_HOST_DEVICE void start_segment() {
    MOEB_NO_UNROLL
    for (int e = block.thread(); e < Config::max_experts; e += block.threads()) {
      shared.counts()[e] = 0;
      if constexpr (Shared::Traits::marks_tokens) shared.load_counts()[e] = 0;
      shared.loss_counts()[e] = 0;
      if constexpr (Shared::counts_arrivals) shared.arrivals()[e] = 0;
      if constexpr (Sums::adds_to_row) {
        for (int tile_index = 0; tile_index < rows(); ++tile_index) shared.probabilities(tile_index)[place(e)] = 0;
      }
    }
    if (block.thread() == 0) *shared.tokens() = {};
    if constexpr (Shared::has_probabilities) sums.clear();
    block.barrier();
  }

  [[nodiscard]] MOEB_HOST_DEVICE Sink sink() {
    return {block, shared.counts(), shared.load_counts(), shared.loss_counts(), shared.arrivals(), sums};
  }

  /// No barrier at the end: the next segment starts by clearing, and each thread clears what it alone has just read.
  /// `awaits_blocks`: the first time in a grid that clears together, nothing may be added before all have. `row`: where the block, which has one segment,
  /// leaves what would be added to `totals.saved`; empty where there is none.
  MOEB_HOST_DEVICE void finish_segment(const Sink& sink, const Totals& totals, std::int64_t segment,
                                       bool awaits_blocks = false, const SavedView& row = {}) {
    if constexpr (Shared::has_probabilities) sums.flush();
    shared.tokens()->add(block, sink.part_of_lane(tile.lane()));
    block.barrier();
    const int groups = add_up_rows_by_groups();
    if constexpr (ClusterBlock<BlockT>) {
      if (awaits_blocks) block.await_blocks();
    }

    const auto add = [&](std::int64_t* to, std::int64_t value) { block.add_global(to, value); };
    MOEB_NO_UNROLL
    for (int e = block.thread(); e < experts; e += block.threads()) {
      ExpertSums sums_of_expert{.count = shared.counts()[e],
                                .load_count = shared.load_counts()[e],
                                .loss_count = shared.loss_counts()[e],
                                .probability = sum_of_rows(e, 0, 1, groups > 1 ? groups : rows())};
      if constexpr (Shared::counts_arrivals) sums_of_expert.arrivals = shared.arrivals()[e];
      if (row.counts != nullptr) set_expert_row<Balancer>(row, experts, e, sums_of_expert);
      add_expert_totals<Balancer>(totals, segment, experts, e, sums_of_expert, add);
    }
    if (block.thread() == 0) {
      const auto tokens = shared.tokens()->totals();
      if (row.counts != nullptr) set_token_row(row, tokens);
      add_token_totals<Balancer>(totals, segment, tokens, add);
    }
  }

 private:
  /// An expert's sum of probabilities in rows first, first + step, ...
  [[nodiscard]] MOEB_HOST_DEVICE std::int64_t sum_of_rows(int expert, int first, int step, int last) const {
    constexpr int at_once = cuda_launch_tuning.rows_of_sums_at_once;
    std::int64_t sum = 0;
    // A compiler that unrolls this finds how often by a division, and does so before the first token.
    MOEB_NO_UNROLL
    for (int row = first; row < last; row += at_once * step) {
      MOEB_UNROLL
      for (int i = 0; i < at_once; ++i)
        sum += row + i * step < last ? shared.probabilities(row + i * step)[place(expert)] : 0;
    }
    return sum;
  }

  /// Where a block has several times as many threads as there are experts, groups of as many add up the rows by turns, so that none waits for all.
  /// Returns how many rows have all sums then: one for each group; 1 where all rows are as they were.
  [[nodiscard]] MOEB_HOST_DEVICE int add_up_rows_by_groups() const {
    const int groups = block.threads() / Config::max_experts;
    if (!Shared::has_probabilities || groups < 2) return 1;
    const int expert = block.thread() % Config::max_experts;
    const int group = block.thread() / Config::max_experts;
    // Nobody else reads what this thread overwrites.
    if (group < groups) shared.probabilities(group)[place(expert)] = sum_of_rows(expert, group, groups, rows());
    block.barrier();
    return groups;
  }

  [[nodiscard]] MOEB_HOST_DEVICE int rows() const { return Shared::has_probabilities ? block.threads() / TileT::width : 0; }
  /// Where a row of probability sums has an expert's: place_in_row of its slot and lane.
  [[nodiscard]] static MOEB_HOST_DEVICE int place(int expert) {
    const int quad = expert / 4;
    return place_in_row<TileT::width>(quad % TileT::width, quad / TileT::width * 4 + expert % 4);
  }
};

/// Clears what a call adds up in, where its own grid does that. A single block's barriers order this before its additions; several blocks must
/// run together: all say here that they have cleared their part, and wait for the others before they add.
template <ClusterBlock BlockT>
MOEB_HOST_DEVICE inline void clear_totals(const BlockT& block, const Totals& totals) {
  if (totals.clearing_blocks == 0) return;  // few blocks: 32 bits count their threads
  const auto first =
      static_cast<std::int32_t>((block.row() * block.blocks() + block.index()) * block.threads() + block.thread());
  const auto stride = static_cast<std::int32_t>(block.rows() * block.blocks() * block.threads());
  MOEB_NO_UNROLL
  for (std::int32_t i = first; i < totals.words_to_clear; i += stride) totals.saved_words[i] = 0;
  MOEB_NO_UNROLL
  for (std::int32_t e = first; e < totals.counts_to_clear; e += stride) totals.counts[e] = 0;
  if (totals.clearing_blocks > 1) block.arrive();
}

/// Starts a segment and runs forward over its tokens first, first + stride, ... below `last`; returns what lanes have counted. In a usual call each token's
/// logits are read ahead, the first one's before the segment starts; or only asked for, where lanes have no registers for them.
template <class Config, class Pass, class Problem>
[[nodiscard]] MOEB_HOST_DEVICE inline auto forward_tokens(Pass& pass, const Problem& problem, std::int64_t segment,
                                                          std::int64_t first, std::int64_t last, std::int64_t stride) {
  using LayoutT = decltype(pass.layout);
  if constexpr (Config::usual) {
    const auto begin = static_cast<std::uint32_t>(segment * problem.segments.length);
    const auto end = static_cast<std::uint32_t>(begin + last);
    const auto step = static_cast<std::uint32_t>(stride);
    const std::uint32_t row_bytes = bytes_of_dense_row(problem.logits);
    const std::int32_t plain = are_plain_rows(pass.layout, problem.logits.type);
    constexpr bool reads_ahead = usual_kernel_reads_ahead<Config::index, Problem>;
    Slots<float, LayoutT> next;
    ConstAnyMatrix ahead = problem.logits;
    const auto read = [&](std::uint32_t row) MOEB_LAMBDA {
      ahead.data = moved(problem.logits.data, row, row_bytes);
      load_first_row(pass.tile, pass.layout, ahead, plain, next);
    };
    const auto read_ahead = [&](std::uint32_t row) MOEB_LAMBDA {
      const auto* first_logit = moved(problem.logits.data, row, row_bytes);
      if constexpr (reads_ahead)
        read(row);
      else
        prefetch_bytes<RowUse::read>(pass.layout, row_bytes, reinterpret_cast<std::uintptr_t>(first_logit));
    };
    std::uint32_t token = begin + static_cast<std::uint32_t>(first);
    if (token < end) read_ahead(token);
    pass.start_segment();
    auto sink = pass.sink();
    Problem own = problem;
    const std::int32_t masked = has_masks(problem) ? opaque(1) : 0;
    while (token < end) {
      if constexpr (!reads_ahead) read(token);
      const Slots<float, LayoutT> logits = next;
      ForwardStep::place(problem, token, row_bytes, own);
      const std::uint32_t row = token;
      token += step;
      if (token < end) read_ahead(token);
      if (masked != 0 && !is_active(problem, row)) {
        store_nothing<float>(own, pass.tile, 0);
      } else {
        forward_read_token<float>(own, pass.tile, pass.layout, logits, pass.bias(), sink);
      }
    }
    return sink;
  } else {
    pass.start_segment();
    auto sink = pass.sink();
    for_each_token<ForwardStep>(pass.layout, problem, segment, first, last, stride, true,
                                [&](const Problem& own, std::int64_t row) MOEB_LAMBDA {
                                  forward_token<float>(own, pass.tile, pass.layout, row, pass.bias(), sink);
                                });
    return sink;
  }
}

/// The first token of a tile. Where a block may have a multiprocessor to itself, warps take turns over the blocks, so that those with a token more than
/// others are spread over all multiprocessors.
template <class Config, class BlockT, class TileT>
[[nodiscard]] MOEB_HOST_DEVICE inline std::int64_t first_token_of(const BlockT& block, const TileT& tile) {
  const int own = tile_in_block(block, tile);
  if constexpr (Config::usual && Config::tier.merges_blocks) {
    static_assert(TileT::width == 32);
    return own * block.blocks() + block.index();
  } else {
    return block.index() * (block.threads() / TileT::width) + own;
  }
}

/// Logits to ids, weights, counts, probability sums, token losses and status, in one pass. Blocks stride over the tokens of a segment, rows
/// of blocks over segments; sums meet in shared memory and go to global memory once per block and segment.
template <class Config, class BlockT, class TileT, class Problem>
MOEB_HOST_DEVICE inline void forward_kernel(const BlockT& block, const TileT& tile, const Problem& given,
                                            const Totals& totals) {
  const auto& problem = specialised<Config>(given);
  ForwardPass<Config, BlockT, TileT, Problem> pass(block, tile, problem);
  const int tiles = block.threads() / TileT::width;
  const std::int64_t first = first_token_of<Config>(block, tile);
  // The first row, too, is asked for ahead of what a block does before it reads: clearing, and saying so, take as long as the row does.
  if (block.row() < problem.segments.count() && first < problem.segments.size(block.row())) {
    prefetch_row<RowUse::read>(pass.layout, problem.logits, problem.segments.token(block.row(), first));
  }
  clear_totals(block, totals);
  for (std::int64_t segment = block.row(); segment < problem.segments.count(); segment += block.rows()) {
    const auto sink =
        forward_tokens<Config>(pass, problem, segment, first, problem.segments.size(segment), block.blocks() * tiles);
    pass.finish_segment(sink, totals, segment, totals.clearing_blocks > 1 && segment == block.row());
  }
}

MOEB_NAMESPACE_END
