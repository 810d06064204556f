// The bodies of the CUDA kernels, as functions over a Block: thread and block indices, a barrier, shared memory and atomic additions.
// `__global__` wrappers (engine/cuda.cuh) hold no logic, so that everything here also runs on a CPU under tests.
#pragma once

#include <moe_balance/engine/engine.hpp>
#include <moe_balance/engine/tuning.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// What a kernel body may ask of the block that runs it.
template <class B>
concept Block = requires(const B block, std::int64_t* sum, std::int32_t* count) {
  { block.thread() } -> std::same_as<int>;          // index of this thread in its block
  { block.threads() } -> std::same_as<int>;         // threads of the block
  { block.index() } -> std::same_as<std::int64_t>;  // block index along the tokens
  { block.blocks() } -> std::same_as<std::int64_t>;
  { block.row() } -> std::same_as<std::int64_t>;  // block index along the segments
  { block.rows() } -> std::same_as<std::int64_t>;
  {block.barrier()};
  { block.shared() } -> std::same_as<std::byte*>;  // 16-byte aligned
  {block.add_shared(sum, std::int64_t{})};
  {block.add_shared(count, std::int32_t{})};
  {block.add_global(sum, std::int64_t{})};
};

/// What a kernel asks of a block whose grid may be launched so that all its blocks run at the same time.
template <class B>
concept ClusterBlock = Block<B> && requires(const B block) {
  {block.arrive()};        // says, once, that this thread has come so far
  {block.await_blocks()};  // waits until all threads of the grid have
};

// A lane's sums of probabilities. Its tile has a row of them in shared memory, cleared before, which has all of them after flush(): rows of
// their own need no atomic additions, which for 64 bits would be loops of compare-and-swap. probability(slot, fixed) adds any, unit_probability(
// slot, probability) one of 0 to 1.

/// Where a row has a lane's slot: neighbouring lanes touch neighbouring words.
template <class LayoutT>
[[nodiscard]] MOEB_HOST_DEVICE constexpr int place_in_row(const LayoutT& layout, int slot) {
  return slot * LayoutT::width + layout.lane;
}

/// In registers, where any probability may come.
template <class LayoutT>
struct RegisterSums {
  std::int64_t* row;
  LayoutT layout;
  Slots<std::int64_t, LayoutT> sums{};

  MOEB_HOST_DEVICE void clear() { clear_slots(layout, sums); }
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) { sums[slot] += fixed; }
  MOEB_HOST_DEVICE void flush() {
    for_each_slot(layout, [&](int slot) { row[place_in_row(layout, slot)] += sums[slot]; });
  }
};

/// In registers in two halves, which are brought to the row before they can overflow.
template <class LayoutT>
struct UnitRegisterSums {
  std::int64_t* row;
  LayoutT layout;
  Slots<std::int32_t, LayoutT> high{};
  Slots<std::int32_t, LayoutT> low{};
  int tokens = 0;

  MOEB_HOST_DEVICE void clear() {
    clear_slots(layout, high);
    clear_slots(layout, low);
    tokens = 0;
  }
  /// Slots come in order, so that the last one ends a token.
  MOEB_HOST_DEVICE void unit_probability(int slot, float probability) {
    const UnitFixed fixed = unit_to_fixed(probability);
    high[slot] += fixed.high;
    low[slot] += fixed.low;
    if (slot == LayoutT::capacity - 1 && ++tokens == most_unit_sums) flush();
  }
  MOEB_HOST_DEVICE void flush() {
    for_each_slot(layout, [&](int slot) { row[place_in_row(layout, slot)] += UnitFixed{high[slot], low[slot]}.value(); });
    clear();
  }
};

/// In the row itself, where they would not fit registers.
template <class LayoutT>
struct SharedSums {
  std::int64_t* row;
  LayoutT layout;

  MOEB_HOST_DEVICE void clear() {}
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) { row[place_in_row(layout, slot)] += fixed; }
  MOEB_HOST_DEVICE void unit_probability(int slot, float value) { probability(slot, unit_to_fixed(value).value()); }
  MOEB_HOST_DEVICE void flush() {}
};

/// A tier's constants, as kernel bodies take them.
template <int Tier>
struct KernelConfig {
  static constexpr CudaTier tier = cuda_tiers[Tier];
  static constexpr int max_experts = tier.max_experts;
  static constexpr bool private_rows = tier.private_rows;
  template <class LayoutT, class Scoring>
  using Sums =
      std::conditional_t<private_rows, SharedSums<LayoutT>,
                         std::conditional_t<is_non_negative<Scoring>, UnitRegisterSums<LayoutT>, RegisterSums<LayoutT>>>;
};

/// Calls f(std::integral_constant<int, Tier>) for the first tier that serves `experts`. The router has checked that one does.
template <int Tier = 0, class Function>
void with_tier(int experts, Function&& f) {
  if constexpr (Tier < cuda_tier_count) {
    if (experts <= cuda_tiers[Tier].max_experts) return f(std::integral_constant<int, Tier>{});
    with_tier<Tier + 1>(experts, f);
  }
}

/// A persistent grid: as many blocks as the device holds at once, fewer where the tokens need fewer. Columns of blocks share a segment's
/// tokens, rows share the segments.
struct GridShape {
  std::int64_t columns;
  std::int64_t rows;

  /// `resident`: blocks that the device holds at once.
  GridShape(const CudaTier& tier, const Segments& segments, std::int64_t resident) {
    const std::int64_t tiles_per_block = tier.threads / tier.width;
    rows = std::clamp<std::int64_t>(segments.count(), 1, std::min<std::int64_t>(resident, 65535));
    const std::int64_t tokens_per_row = (segments.tokens + rows - 1) / rows;
    const std::int64_t useful = (tokens_per_row + tiles_per_block - 1) / tiles_per_block;
    columns = std::clamp<std::int64_t>(useful, 1, (resident + rows - 1) / rows);
  }

  [[nodiscard]] std::int64_t blocks() const { return columns * rows; }
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

  [[nodiscard]] static constexpr std::size_t bytes(int tiles) {
    return rows_at + row_bytes * static_cast<std::size_t>(tiles);
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
};

template <class Balancer, int Tier>
[[nodiscard]] constexpr std::size_t forward_shared_bytes() {
  constexpr CudaTier tier = cuda_tiers[Tier];
  return ForwardShared<Balancer, tier.max_experts>::bytes(tier.threads / tier.width);
}

template <class BlockT, class SumsT, class Balancer>
struct KernelSink {
  using Traits = BalancerTraits<Balancer>;
  const BlockT& block;
  std::int32_t* counts;
  std::int32_t* loss_counts;
  SumsT& sums;
  TokenTotals<Traits::token_losses> tokens{};

  MOEB_HOST_DEVICE void token() { ++tokens.tokens; }
  MOEB_HOST_DEVICE void non_finite_token() { ++tokens.non_finite_tokens; }
  MOEB_HOST_DEVICE void invalid_expert() { ++tokens.invalid_experts; }
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
  using LayoutT = Layout<TileT, Config::max_experts>;
  using Sums = typename Config::template Sums<LayoutT, decltype(Problem::scoring)>;
  using Sink = KernelSink<BlockT, Sums, Balancer>;

  const BlockT& block;
  const TileT& tile;
  const Problem& problem;
  int experts;
  LayoutT layout;
  Shared shared;
  Sums sums;

  MOEB_HOST_DEVICE ForwardPass(const BlockT& own_block, const TileT& own_tile, const Problem& of)
      : block(own_block),
        tile(own_tile),
        problem(of),
        experts(static_cast<int>(of.logits.columns)),
        layout{experts, own_tile.lane()},
        shared{own_block.shared()},
        sums{shared.probabilities(own_block.thread() / TileT::width), layout} {
    for (int e = block.thread(); e < Config::max_experts; e += block.threads()) {
      shared.bias()[e] = problem.bias != nullptr && e < experts ? problem.bias[e] : 0.0f;
    }
  }

  /// Null where there is none.
  [[nodiscard]] MOEB_HOST_DEVICE const float* bias() const {
    return LayoutT::rereads_logits || problem.bias != nullptr ? shared.bias() : nullptr;
  }

  MOEB_HOST_DEVICE void start_segment() {
    for (int e = block.thread(); e < Config::max_experts; e += block.threads()) {
      shared.counts()[e] = 0;
      shared.loss_counts()[e] = 0;
      for (int tile_index = 0; tile_index < rows(); ++tile_index) shared.probabilities(tile_index)[place(e)] = 0;
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
    add_tokens_shared(block, shared.tokens(), sink.tokens, Shared::Traits::token_losses);
    block.barrier();
    if constexpr (ClusterBlock<BlockT>) {
      if (awaits_blocks) block.await_blocks();
    }

    const auto add = [&](std::int64_t* to, std::int64_t value) { block.add_global(to, value); };
    for (int e = block.thread(); e < experts; e += block.threads()) {
      std::int64_t probability = 0;
      for (int tile_index = 0; tile_index < rows(); ++tile_index) {
        probability += shared.probabilities(tile_index)[place(e)];
      }
      add_expert_totals<Balancer>(totals, segment, experts, e, shared.counts()[e], shared.loss_counts()[e], probability,
                                  add);
    }
    if (block.thread() == 0) add_token_totals<Balancer>(totals, segment, *shared.tokens(), add);
  }

 private:
  [[nodiscard]] MOEB_HOST_DEVICE int rows() const { return Shared::has_probabilities ? block.threads() / TileT::width : 0; }
  /// Where a row of probability sums has an expert's: place_in_row of its slot and lane.
  [[nodiscard]] static MOEB_HOST_DEVICE int place(int expert) {
    const int quad = expert / 4;
    const int slot = quad / TileT::width * 4 + expert % 4;
    return slot * TileT::width + quad % TileT::width;
  }
};

/// Clears what a call adds up in, where its own grid does that. A single block's barriers order this before its additions; several blocks must
/// run together: all say here that they have cleared their part, and wait for the others before they add.
template <ClusterBlock BlockT>
MOEB_HOST_DEVICE inline void clear_totals(const BlockT& block, const Totals& totals) {
  const std::int64_t first = (block.row() * block.blocks() + block.index()) * block.threads() + block.thread();
  const std::int64_t stride = block.rows() * block.blocks() * block.threads();
  for (std::int64_t i = first; i < totals.words_to_clear; i += stride) totals.saved_words[i] = 0;
  for (std::int64_t e = first; e < totals.counts_to_clear; e += stride) totals.counts[e] = 0;
  if (totals.clearing_blocks > 1) block.arrive();
}

/// Calls f(problem, row) for tokens first, first + stride, ... of a segment: row 0 of a problem whose views move on, or, where lanes have no registers
/// to spare for such views, a row of the problem itself. Asks for the next token's logits meanwhile, if they are read row by row.
template <class Step, class LayoutT, class Problem, class Function>
MOEB_HOST_DEVICE inline void for_each_token(const LayoutT& layout, const Problem& problem, std::int64_t segment,
                                            std::int64_t first, std::int64_t stride, bool reads_rows, const Function& f) {
  const Segments& segments = problem.segments;
  const std::int64_t size = segments.size(segment);
  constexpr bool lane_holds_many_chosen = decltype(problem.top_k)::k > 4 * LayoutT::width;
  if constexpr (LayoutT::rereads_logits || lane_holds_many_chosen) {
    for (std::int64_t i = first; i < size; i += stride) {
      if (reads_rows && i + stride < size) {
        prefetch_row<RowUse::read>(layout, problem.logits, segments.token(segment, i + stride));
      }
      f(problem, segments.token(segment, i));
    }
  } else if (first < size) {
    Problem own = problem;
    Step(problem, segments.token(segment, first)).advance(own);
    const Step step(problem, segments.token(segment, stride) - segments.token(segment, 0));
    for (std::int64_t left = size - first; left > 0; left -= stride) {
      if (reads_rows && left > stride) {
        const auto* next = static_cast<const std::byte*>(own.logits.data) + step.logits_bytes;
        prefetch_row_at<RowUse::read>(layout, own.logits.type, reinterpret_cast<std::uintptr_t>(next));
      }
      f(own, 0);
      step.advance(own);
    }
  }
}

/// Logits to ids, weights, counts, probability sums, token losses and status, in one pass. Blocks stride over the tokens of a segment, rows
/// of blocks over segments; sums meet in shared memory and go to global memory once per block and segment.
template <class Config, class BlockT, class TileT, class Problem>
MOEB_HOST_DEVICE inline void forward_kernel(const BlockT& block, const TileT& tile, const Problem& problem,
                                            const Totals& totals) {
  ForwardPass<Config, BlockT, TileT, Problem> pass(block, tile, problem);
  const int tiles = block.threads() / TileT::width;
  const std::int64_t first = block.index() * tiles + block.thread() / TileT::width;
  // The first row, too, is asked for ahead of what a block does before it reads: clearing, and saying so, take as long as the row does.
  if (block.row() < problem.segments.count() && first < problem.segments.size(block.row())) {
    prefetch_row<RowUse::read>(pass.layout, problem.logits, problem.segments.token(block.row(), first));
  }
  clear_totals(block, totals);
  for (std::int64_t segment = block.row(); segment < problem.segments.count(); segment += block.rows()) {
    pass.start_segment();
    auto sink = pass.sink();
    const std::int64_t stride = block.blocks() * tiles;
    for_each_token<ForwardStep>(pass.layout, problem, segment, first, stride, true,
                                [&](const Problem& own, std::int64_t row)
                                    MOEB_LAMBDA { forward_token<float>(own, tile, pass.layout, row, pass.bias(), sink); });
    pass.finish_segment(sink, totals, segment, totals.clearing_blocks > 1 && segment == block.row());
  }
}

/// Shared memory of the backward kernel: a row for each tile's Scatter, then the losses' slope of every expert.
template <class Balancer, int MaxExperts>
[[nodiscard]] constexpr std::size_t backward_shared_bytes(int tiles) {
  const int slopes = BalancerTraits<Balancer>::losses > 0 ? 1 : 0;
  return static_cast<std::size_t>(tiles + slopes) * MaxExperts * sizeof(float);
}

template <class Balancer, int Tier>
[[nodiscard]] constexpr std::size_t backward_shared_bytes() {
  constexpr CudaTier tier = cuda_tiers[Tier];
  return backward_shared_bytes<Balancer, tier.max_experts>(tier.threads / tier.width);
}

/// dL/dlogits of every row.
template <class Config, class BlockT, class TileT, class Problem>
MOEB_HOST_DEVICE inline void backward_kernel(const BlockT& block, const TileT& tile, const Problem& problem) {
  const Layout<TileT, Config::max_experts> layout{static_cast<int>(problem.logits.columns), tile.lane()};
  const int tiles = block.threads() / TileT::width;
  const std::int64_t first = block.index() * tiles + block.thread() / TileT::width;
  const std::int64_t stride = block.blocks() * tiles;
  constexpr bool reads_rows = !touches_only_chosen<decltype(problem.scoring), decltype(problem.balancer)>;
  auto* rows = reinterpret_cast<float*>(block.shared());
  float* slope = rows + tiles * Config::max_experts;
  const Scatter<float> scatter{rows + block.thread() / TileT::width * Config::max_experts};
  const LossSlopes<float> slopes{slope, token_loss_factor(problem)};
  for_each_slot(layout, [&](int slot) { scatter.row[layout.expert(slot)] = nothing_to_add<float>; });
  for (std::int64_t segment = block.row(); segment < problem.segments.count(); segment += block.rows()) {
    prepare_slopes(problem, tile, segment, block.thread(), block.threads(), Config::max_experts, slope);
    block.barrier();
    for_each_token<BackwardStep>(layout, problem, segment, first, stride, reads_rows,
                                 [&](const Problem& own, std::int64_t row)
                                     MOEB_LAMBDA { backward_token(own, tile, layout, row, slopes, scatter); });
    block.barrier();
  }
}

template <class BlockT>
MOEB_HOST_DEVICE inline void publish_kernel(const BlockT& block, std::int64_t* load, std::int64_t* counts, int experts,
                                            bool accumulate) {
  for (int e = block.thread(); e < experts; e += block.threads()) publish_expert(load, counts, e, accumulate);
}

MOEB_NAMESPACE_END
