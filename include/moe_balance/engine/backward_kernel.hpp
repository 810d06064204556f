// The body of the backward kernel.
#pragma once

#include <moe_balance/engine/kernel_config.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

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

/// The tokens of a usual call, of which what the next one needs is read ahead. Where whole rows are read the chosen logits are not: the row's
/// cache lines are then near. (On an H100, to read them ahead, too, which takes their ids two tokens ahead, was 5% slower.)
template <class LayoutT, class TileT, class Problem>
MOEB_HOST_DEVICE inline void backward_usual_tokens(const LayoutT& layout, const TileT& tile, const Problem& problem,
                                                   std::uint32_t token, std::uint32_t end, std::uint32_t step,
                                                   const LossSlopes<float>& slopes, const Scatter<float>& scatter) {
  using Token = BackwardToken<float, Problem, TileT, LayoutT>;
  constexpr bool reads_rows = !touches_only_chosen<decltype(problem.scoring), decltype(problem.balancer)>;
  if (token >= end) return;
  const std::uint32_t row_bytes = bytes_of_dense_row(problem.logits);
  const std::int32_t masked = opaque(has_masks(problem) ? 1 : 0);
  const std::int32_t plain = are_plain_rows(layout, problem.logits.type);
  Problem own = problem;
  const auto place = [&](std::uint32_t row) MOEB_LAMBDA { BackwardStep::place(problem, row, row_bytes, own); };
  Token next;
  Token after_next;  // whose ids alone are known
  bool next_has_gradient = true;
  const auto read_row = [&](std::uint32_t row) MOEB_LAMBDA {
    place(row);
    if constexpr (reads_rows) {
      load_chosen(own, tile, 0, next);
      load_first_row(tile, layout, own.logits, plain, next.logits);
    } else {
      next_has_gradient = check_chosen(tile, layout.experts, next);
      read_chosen_logits(own.logits, 0, next.chosen);
    }
  };
  const auto read_ids = [&](std::uint32_t row, Token& state) MOEB_LAMBDA {
    place(row);
    load_chosen(own, tile, 0, state);
  };
  if constexpr (!reads_rows) {
    read_ids(token, next);
    if (step < end - token) read_ids(token + step, after_next);
  }
  read_row(token);
  for (;;) {
    Token state = next;
    bool has_gradient = next_has_gradient;
    const std::uint32_t left = end - token;
    if (step < left) {
      if constexpr (!reads_rows) {
        next = after_next;
        if (2 * step < left) read_ids(token + 2 * step, after_next);
      }
      read_row(token + step);
    }
    place(token);
    if constexpr (reads_rows) {
      has_gradient = check_chosen(tile, layout.experts, state);
      read_chosen_logits(own.logits, 0, state.chosen);
    }
    if (masked != 0) {
      has_gradient = has_gradient && is_active(problem, token);
    }
    backward_read_token(own, tile, layout, has_gradient, state, slopes, scatter, plain);
    if (left <= step) return;
    token += step;
  }
}

/// dL/dlogits of every row.
template <class Config, class BlockT, class TileT, class Problem>
MOEB_HOST_DEVICE inline void backward_kernel(const BlockT& block, const TileT& tile, const Problem& given) {
  const auto& problem = specialised<Config>(given);
  using LayoutT = Layout<TileT, Config::max_experts, Config::usual>;
  const LayoutT layout{static_cast<int>(problem.logits.columns), tile.lane()};
  const int tiles = block.threads() / TileT::width;
  const std::int64_t first = block.index() * tiles + tile_in_block(block, tile);
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
    if constexpr (Config::usual) {
      const auto begin = static_cast<std::uint32_t>(segment * problem.segments.length);
      const auto end = static_cast<std::uint32_t>(begin + problem.segments.length);
      backward_usual_tokens(layout, tile, problem, begin + static_cast<std::uint32_t>(first), end,
                            static_cast<std::uint32_t>(stride), slopes, scatter);
    } else {
      for_each_token<BackwardStep>(layout, problem, segment, first, problem.segments.size(segment), stride, reads_rows,
                                   [&](const Problem& own, std::int64_t row)
                                       MOEB_LAMBDA { backward_token(own, tile, layout, row, slopes, scatter); });
    }
    block.barrier();
  }
}

MOEB_NAMESPACE_END
