// The body of the forward kernel.
#pragma once

#include <moe_balance/engine/kernel_config.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

// A lane's sums of probabilities. Its tile has a row of them in shared memory, which has all of them after flush(): rows of their own need no
// atomic additions, which for 64 bits would be loops of compare-and-swap. probability(slot, fixed) adds any, unit_probability(slot, probability)
// one of 0 to 2.

/// Where a row of a tile of `Width` lanes has a lane's slot. Neighbouring lanes have neighbouring words; in every other slot lanes change places by
/// eight, so that a warp that reads experts in their order, four slots of eight lanes, meets each bank as seldom as it can.
template <int Width>
[[nodiscard]] MOEB_HOST_DEVICE constexpr int place_in_row(int lane, int slot) {
  return slot * Width + (Width < 16 ? lane : lane ^ slot % 2 * 8);
}

/// In registers.
template <class LayoutT>
struct RegisterSums {
  static constexpr bool adds_to_row = false;
  std::int64_t* row;
  LayoutT layout;
  Slots<std::int64_t, LayoutT> sums{};

  MOEB_HOST_DEVICE void clear() { clear_slots(layout, sums); }
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) { sums[slot] += fixed; }
  MOEB_HOST_DEVICE void unit_probability(int slot, float value) { probability(slot, unit_to_int64(value)); }
  MOEB_HOST_DEVICE void flush() {
    for_each_slot(layout, [&](int slot) { row[place_in_row<LayoutT::width>(layout.lane, slot)] = sums[slot]; });
  }
};

/// In the row itself, where they would not fit registers. It must be clear before.
template <class LayoutT>
struct SharedSums {
  static constexpr bool adds_to_row = true;
  std::int64_t* row;
  LayoutT layout;

  MOEB_HOST_DEVICE void clear() {}
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) {
    row[place_in_row<LayoutT::width>(layout.lane, slot)] += fixed;
  }
  MOEB_HOST_DEVICE void unit_probability(int slot, float value) { probability(slot, unit_to_int64(value)); }
  MOEB_HOST_DEVICE void flush() {}
};

/// Shared memory of the forward kernel, in this order: the token totals, counts, the losses' own counts where they differ, the bias, and a row
/// of probability sums for each tile.
template <class Balancer, int MaxExperts>
struct ForwardShared {
  using Traits = BalancerTraits<Balancer>;
  using Tokens = TokenTotals<Traits::token_losses>;
  static constexpr bool has_probabilities = Traits::losses > 0;
  static constexpr std::size_t counts_at = sizeof(Tokens);
  static constexpr bool counts_apart = Traits::plain_losses > 0;
  static constexpr std::size_t loss_counts_at = counts_apart ? counts_at + MaxExperts * sizeof(std::int32_t) : counts_at;
  static constexpr std::size_t bias_at = loss_counts_at + MaxExperts * sizeof(std::int32_t);
  static constexpr std::size_t rows_at = bias_at + MaxExperts * sizeof(float);
  static constexpr std::size_t row_bytes = has_probabilities ? MaxExperts * sizeof(std::int64_t) : 0;
  static_assert(rows_at % alignof(std::int64_t) == 0);
  static constexpr int words_of_thread = 2;  ///< of a tile's own memory

  /// `threads`: those that have words of their tile's memory.
  [[nodiscard]] static constexpr std::size_t bytes(int tiles, int threads) {
    return rows_at + row_bytes * static_cast<std::size_t>(tiles) +
           words_of_thread * sizeof(std::uint32_t) * static_cast<std::size_t>(threads);
  }

  std::byte* memory;
  [[nodiscard]] MOEB_HOST_DEVICE Tokens* tokens() const { return reinterpret_cast<Tokens*>(memory); }
  [[nodiscard]] MOEB_HOST_DEVICE std::int32_t* counts() const { return reinterpret_cast<std::int32_t*>(memory + counts_at); }
  /// The same as counts() unless losses count apart.
  [[nodiscard]] MOEB_HOST_DEVICE std::int32_t* loss_counts() const {
    return reinterpret_cast<std::int32_t*>(memory + loss_counts_at);
  }
  [[nodiscard]] MOEB_HOST_DEVICE float* bias() const { return reinterpret_cast<float*>(memory + bias_at); }
  [[nodiscard]] MOEB_HOST_DEVICE std::int64_t* probabilities(int tile) const {
    return reinterpret_cast<std::int64_t*>(memory + rows_at) + static_cast<std::int64_t>(tile) * MaxExperts;
  }
  /// A tile's own, behind the rows of all; there are none in a tier that has no use for them on any architecture.
  [[nodiscard]] MOEB_HOST_DEVICE std::uint32_t* words(int tile, int tiles, int width) const {
    const std::size_t words_at = rows_at + row_bytes * static_cast<std::size_t>(tiles);
    return reinterpret_cast<std::uint32_t*>(memory + words_at) + tile * words_of_thread * width;
  }
};

/// The bytes a forward kernel of `Tier` asks for, with blocks of so many threads.
template <class Balancer, CudaTier Tier>
[[nodiscard]] constexpr std::size_t forward_shared_bytes(int threads = Tier.threads) {
  constexpr bool selects_by_words = Tier.max_experts / Tier.width <= (Tier.width == 32 ? 32 : 8);  // see PackedSelection
  return ForwardShared<Balancer, Tier.max_experts>::bytes(threads / Tier.width, selects_by_words ? threads : 0);
}

template <class BlockT, class SumsT, class Balancer>
struct KernelSink {
  using Traits = BalancerTraits<Balancer>;
  const BlockT& block;
  std::int32_t* counts;
  std::int32_t* loss_counts;
  SumsT& sums;
  TokenTotals<Traits::token_losses> tokens{};
  std::int32_t tokens_of_tile = 0;  ///< 32 bits hold what a kernel's block can see
  std::int32_t non_finite_of_tile = 0;
  std::int32_t invalid_of_lane = 0;

  MOEB_HOST_DEVICE void token() { ++tokens_of_tile; }
  MOEB_HOST_DEVICE void non_finite_token() { ++non_finite_of_tile; }
  MOEB_HOST_DEVICE void invalid_expert() { ++invalid_of_lane; }
  /// This lane's part of all totals.
  [[nodiscard]] MOEB_HOST_DEVICE TokenTotals<Traits::token_losses> part_of_lane(int lane) const {
    TokenTotals<Traits::token_losses> part = tokens;
    part.tokens = lane == 0 ? tokens_of_tile : 0;
    part.non_finite_tokens = lane == 0 ? non_finite_of_tile : 0;
    part.invalid_experts = invalid_of_lane;
    return part;
  }
  MOEB_HOST_DEVICE void count(std::int32_t expert) { block.add_shared(counts + expert, 1); }
  MOEB_HOST_DEVICE void loss_count(std::int32_t expert) { block.add_shared(loss_counts + expert, 1); }
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) { sums.probability(slot, fixed); }
  MOEB_HOST_DEVICE void unit_probability(int slot, float probability) { sums.unit_probability(slot, probability); }
  MOEB_HOST_DEVICE void token_loss(int index, std::int64_t fixed) {
    MOEB_UNROLL
    for (int i = 0; i < Traits::token_losses; ++i) tokens.token_losses[i] += i == index ? fixed : 0;
  }
};

template <class BlockT, class Tokens>
MOEB_HOST_DEVICE inline void add_tokens_shared(const BlockT& block, Tokens* shared, const Tokens& own, int token_losses) {
  if (own.tokens != 0) block.add_shared(&shared->tokens, own.tokens);
  if (own.non_finite_tokens != 0) block.add_shared(&shared->non_finite_tokens, own.non_finite_tokens);
  if (own.invalid_experts != 0) block.add_shared(&shared->invalid_experts, own.invalid_experts);
  MOEB_UNROLL
  for (int i = 0; i < token_losses; ++i) {
    if (own.token_losses[i] != 0) block.add_shared(&shared->token_losses[i], own.token_losses[i]);
  }
}

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

  MOEB_HOST_DEVICE void start_segment() {
    for (int e = block.thread(); e < Config::max_experts; e += block.threads()) {
      shared.counts()[e] = 0;
      shared.loss_counts()[e] = 0;
      if constexpr (Sums::adds_to_row) {
        for (int tile_index = 0; tile_index < rows(); ++tile_index) shared.probabilities(tile_index)[place(e)] = 0;
      }
    }
    if (block.thread() == 0) *shared.tokens() = {};
    if constexpr (Shared::has_probabilities) sums.clear();
    block.barrier();
  }

  [[nodiscard]] MOEB_HOST_DEVICE Sink sink() { return {block, shared.counts(), shared.loss_counts(), sums}; }

  /// No barrier at the end: the next segment starts by clearing, and each thread clears what it alone has just read.
  /// `awaits_blocks`: the first time in a grid that clears together, nothing may be added before all have.
  MOEB_HOST_DEVICE void finish_segment(const Sink& sink, const Totals& totals, std::int64_t segment,
                                       bool awaits_blocks = false) {
    if constexpr (Shared::has_probabilities) sums.flush();
    add_tokens_shared(block, shared.tokens(), sink.part_of_lane(tile.lane()), Shared::Traits::token_losses);
    block.barrier();
    const int groups = add_up_rows_by_groups();
    if constexpr (ClusterBlock<BlockT>) {
      if (awaits_blocks) block.await_blocks();
    }
    if constexpr (BesideBlock<BlockT>) {
      if (totals.cleared_beside) block.await_kernel_before();
    }

    const auto add = [&](std::int64_t* to, std::int64_t value) { block.add_global(to, value); };
    for (int e = block.thread(); e < experts; e += block.threads()) {
      const std::int64_t probability = sum_of_rows(e, 0, 1, groups > 1 ? groups : rows());
      add_expert_totals<Balancer>(totals, segment, experts, e, shared.counts()[e], shared.loss_counts()[e], probability,
                                  add);
    }
    if (block.thread() == 0) add_token_totals<Balancer>(totals, segment, *shared.tokens(), add);
  }

 private:
  /// An expert's sum of probabilities in rows first, first + step, ...
  [[nodiscard]] MOEB_HOST_DEVICE std::int64_t sum_of_rows(int expert, int first, int step, int last) const {
    std::int64_t sum = 0;
    MOEB_UNROLL_BY_8
    for (int row = first; row < last; row += step) sum += shared.probabilities(row)[place(expert)];
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
      load_first_row(pass.layout, ahead, plain, next);
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
