// Which kernel serves a call, with how many blocks, and how its blocks share the tokens.
#pragma once

#include <moe_balance/engine/block.hpp>
#include <moe_balance/engine/engine.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/engine/usual_call.hpp>
#include <moe_balance/scoring/sqrt_softplus.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// A tier's constants, as kernel bodies take them.
template <int Tier, bool Usual = false>
struct KernelConfig {
  static constexpr int index = Tier;
  static constexpr CudaTier tier = cuda_tiers[Tier];
  static constexpr bool usual = Usual;  ///< see engine/usual_call.hpp
  static constexpr KernelKind forward = Usual ? KernelKind::usual_forward : KernelKind::any_call;
  static constexpr KernelKind backward = Usual ? KernelKind::usual_backward : KernelKind::any_call;
  static constexpr int max_experts = tier.max_experts;
  static constexpr bool private_rows = tier.private_rows;
};

/// The first tier that serves so many.
[[nodiscard]] constexpr int tier_of(int experts) {
  int tier = 0;
  while (cuda_tiers[tier].max_experts < experts) ++tier;
  return tier;
}

/// Tiers that kernels are compiled for.
struct TierRange {
  int first = 0;
  int last = cuda_tier_count - 1;
};

/// Calls f(std::integral_constant<int, Tier>) for the first of the tiers that serves `experts`. The router has checked that one does.
template <TierRange Tiers = TierRange{}, class Function>
void with_tier(int experts, Function&& f) {
  if constexpr (Tiers.first <= Tiers.last) {
    if (experts <= cuda_tiers[Tiers.first].max_experts) return f(std::integral_constant<int, Tiers.first>{});
    with_tier<TierRange{Tiers.first + 1, Tiers.last}>(experts, f);
  }
}

/// Whether a policy, or the one that it wraps, selects by groups of experts.
template <class TopKT>
inline constexpr bool selects_groups = requires(TopKT policy) {
  policy.groups_kept;
}
|| requires(TopKT policy) {
  policy.selection.groups_kept;
};

template <class Problem>
inline constexpr bool is_backward = requires(Problem problem) {
  problem.grad_logits;
};

/// Scores that are computed with more registers than others.
template <class Scoring>
inline constexpr bool is_costly_score = std::is_same_v<Scoring, SqrtSoftplus>;

/// Whether a tier has a kernel of its own for a problem's usual calls. Not where a lane's registers are too few for what is read ahead: for the state
/// of groups, a second selection, arrivals, fewer than K experts, a token's entropy, replayed ids beside a loss, or a softmax beside other scores, in tiles narrower than a warp; for more than eight scores,
/// but for a softmax that nothing is replayed or selected beside; and backward, for entropies, for arrivals beside costly scores, for several of the chosen experts, and for a softmax beside costly
/// scores, or beside other scores and their loss.
template <int Tier, class Problem>
inline constexpr bool has_usual_kernel = [] {
  using Traits = BalancerTraits<decltype(Problem::balancer)>;
  using TopKT = decltype(Problem::top_k);
  constexpr CudaTier tier = cuda_tiers[Tier];
  constexpr int scores = tier.max_experts / tier.width;
  constexpr bool is_softmax = has_softmax_scores<decltype(Problem::scoring)>;
  if (Tier >= usual_tier_count) return false;
  if (is_backward<Problem>) {
    const bool is_costly = is_costly_score<decltype(Problem::scoring)>;
    if (Traits::entropy_losses > 0 || (is_costly && Traits::arrival_losses > 0)) return false;
    const bool has_softmax_beside = !is_softmax && Traits::token_losses > 0;
    const bool has_room =
        tier.width == 32 && !is_costly && (Traits::losses == 0 || is_over_selected<decltype(Problem::scoring)>);
    return TopKT::k <= tier.width && (!has_softmax_beside || has_room);
  }
  const bool counts_more = Traits::plain_losses + Traits::arrival_losses > 0;
  const bool has_much_state = selects_groups<TopKT> || counts_more || (is_replaying<TopKT> && Traits::losses > 0) ||
                              keeps_fewer<TopKT> || (!is_softmax && Traits::token_losses > 0) || Traits::entropy_losses > 0;
  if (has_much_state && tier.width < 32 && scores > 4) return false;
  return scores <= 8 ||
         (is_softmax && !counts_more && !is_replaying<TopKT> && !keeps_fewer<TopKT> && Traits::entropy_losses == 0);
}();

/// Whether a token's state in forward is so small that a warp's thread needs no more than 80 registers for it, in the tier of 256 experts.
template <class Problem>
inline constexpr bool is_light = [] {
  using Traits = BalancerTraits<decltype(Problem::balancer)>;
  constexpr bool is_softmax = has_softmax_scores<decltype(Problem::scoring)>;
  using TopKT = decltype(Problem::top_k);
  if (Traits::token_losses > 0 || Traits::plain_losses + Traits::arrival_losses > 0) return false;
  if (is_replaying<TopKT> || keeps_fewer<TopKT>) return false;
  return Traits::losses == 0 || (is_softmax && Traits::biases == 0 && !selects_groups<TopKT>);
}();

/// Whether a tier's usual kernel looks at masks: not where a lane has no register left for that, which is forward with much state a token in tiles narrower
/// than a warp; and backward of costly scores with a loss of the global batch, on a whole warp whose lanes have 64.
template <int Tier, class Problem>
inline constexpr bool usual_kernel_masks = [] {
  constexpr CudaTier tier = cuda_tiers[Tier];
  if (!is_backward<Problem>) return tier.width == 32 || is_light<Problem>;
  using Traits = BalancerTraits<decltype(Problem::balancer)>;
  constexpr bool has_few_registers = tier.width == 32 && tier.usual_backward_blocks > 2;
  return !(is_costly_score<decltype(Problem::scoring)> && has_few_registers && Traits::reads_global_batch);
}();

/// Whether a tier's usual forward kernel reads the next token's logits ahead: not where the registers of a lane, of which sm_80 needs most, are too few for
/// them. With 16 scores a lane that is a loss beside groups, beside a bias and a token loss, or whose scores are not those that rank; with eight in tiles
/// narrower than a warp a loss of costly scores.
template <int Tier, class Problem>
inline constexpr bool usual_kernel_reads_ahead = [] {
  using Traits = BalancerTraits<decltype(Problem::balancer)>;
  using Scoring = decltype(Problem::scoring);
  constexpr CudaTier tier = cuda_tiers[Tier];
  constexpr int scores = tier.max_experts / tier.width;
  if (Traits::losses == 0 || scores <= 4) return true;
  if (scores > 8) {
    const bool has_much_state = selects_groups<decltype(Problem::top_k)> || (Traits::biases > 0 && Traits::token_losses > 0);
    return !has_much_state && !is_over_selected<Scoring>;
  }
  return tier.width == 32 || !is_costly_score<Scoring>;
}();

/// Whether a tier's usual kernel serves a problem.
template <int Tier, class Problem>
[[nodiscard]] bool serves_as_usual(const Problem& problem) {
  if constexpr (has_usual_kernel<Tier, Problem>)
    return is_usual(problem) && (usual_kernel_masks<Tier, Problem> || !has_masks(problem));
  else
    return false;
}

/// What a kernel of this configuration takes its problem for.
template <class Config, class Problem>
[[nodiscard]] MOEB_HOST_DEVICE inline decltype(auto) specialised(const Problem& problem) {
  if constexpr (Config::usual && usual_kernel_masks<Config::index, Problem>)
    return as_usual(problem);
  else if constexpr (Config::usual)
    return without_masks(as_usual(problem));
  else
    return (problem);
}

template <class Config, class Problem>
inline constexpr KernelKind forward_kind = !Config::usual      ? KernelKind::any_call
                                           : is_light<Problem> ? KernelKind::light_forward
                                                               : KernelKind::usual_forward;

/// Threads of forward's largest block.
template <class Config, class Problem>
inline constexpr int most_forward_threads = Config::tier.threads*(
    Config::usual&& Config::tier.merges_blocks ? blocks_per_sm(Config::tier, forward_kind<Config, Problem>) : 1);

/// Calls f(KernelConfig) for the kernel that serves a problem.
template <TierRange Tiers = TierRange{}, class Problem, class Function>
void with_config(const Problem& problem, const Function& f) {
  with_tier<Tiers>(static_cast<int>(problem.logits.columns), [&](auto tier) {
    constexpr int index = decltype(tier)::value;
    if constexpr (has_usual_kernel<index, Problem>) {
      if (serves_as_usual<index>(problem)) return f(KernelConfig<index, true>{});
    }
    f(KernelConfig<index, false>{});
  });
}

/// A persistent grid: as many blocks as the device holds at once, fewer where the tokens need fewer. Columns of blocks share a segment's
/// tokens, rows share the segments.
struct GridShape {
  std::int64_t columns;
  std::int64_t rows;

  /// `resident`: blocks that the device holds at once.
  GridShape(const CudaTier& tier, const Segments& segments, std::int64_t resident)
      : GridShape(tier.threads / tier.width, segments, resident) {}
  GridShape(int tiles_per_block, const Segments& segments, std::int64_t resident) {
    rows = std::clamp<std::int64_t>(segments.count(), 1, std::min<std::int64_t>(resident, 65535));
    const std::int64_t tokens_per_row = (segments.tokens + rows - 1) / rows;
    const std::int64_t useful = (tokens_per_row + tiles_per_block - 1) / tiles_per_block;
    columns = std::clamp<std::int64_t>(useful, 1, (resident + rows - 1) / rows);
  }

  [[nodiscard]] std::int64_t blocks() const { return columns * rows; }
};

/// Calls f(problem, row) for tokens first, first + stride, ... below `last` of a segment: row 0 of a problem whose views move on, or, where lanes have no registers
/// to spare for such views, a row of the problem itself. Asks for the next token's logits meanwhile, if they are read row by row.
template <class Step, class LayoutT, class Problem, class Function>
MOEB_HOST_DEVICE inline void for_each_token(const LayoutT& layout, const Problem& problem, std::int64_t segment,
                                            std::int64_t first, std::int64_t last, std::int64_t stride, bool reads_rows,
                                            const Function& f) {
  const Segments& segments = problem.segments;
  constexpr bool lane_holds_many_chosen = decltype(problem.top_k)::k > 4 * LayoutT::width;
  if constexpr (LayoutT::rereads_logits || lane_holds_many_chosen) {
    for (std::int64_t i = first; i < last; i += stride) {
      if (reads_rows && i + stride < last) {
        prefetch_row<RowUse::read>(layout, problem.logits, segments.token(segment, i + stride));
      }
      f(problem, segments.token(segment, i));
    }
  } else if (first < last) {
    Problem own = problem;
    Step(problem, segments.token(segment, first)).advance(own);
    const Step step(problem, segments.token(segment, stride) - segments.token(segment, 0));
    for (std::int64_t left = last - first; left > 0; left -= stride) {
      if (reads_rows && left > stride) {
        const auto* next = static_cast<const std::byte*>(own.logits.data) + step.logits_bytes;
        prefetch_row_at<RowUse::read>(layout, own.logits.type, reinterpret_cast<std::uintptr_t>(next));
      }
      f(own, 0);
      step.advance(own);
    }
  }
}

/// Bytes of a dense row of logits, kept in a register.
[[nodiscard]] MOEB_HOST_DEVICE inline std::uint32_t bytes_of_dense_row(const ConstAnyMatrix& logits) {
  return static_cast<std::uint32_t>(
      opaque(static_cast<std::int32_t>(logits.columns) * static_cast<std::int32_t>(size_of(logits.type))));
}

MOEB_NAMESPACE_END
