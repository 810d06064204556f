// The CPU engine: the per-token algorithm with one lane per token, over tokens on all cores.
// Each loop over tokens is compiled up to three times, for baseline x86-64 and its levels v3 and v4, and chosen at run time, so that a program
// built with plain -O2 is fast; all versions give the same bits.
#pragma once

#include <moe_balance/engine/engine.hpp>
#include <moe_balance/engine/host_margins.hpp>
#include <moe_balance/engine/host_sink.hpp>
#include <moe_balance/engine/threads.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/instruction_sets.hpp>
#include <moe_balance/tile/tile.hpp>
#include <moe_balance/token/backward_lanes.hpp>
#include <moe_balance/token/forward_lanes.hpp>
#include <moe_balance/token/forward_rows.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

[[nodiscard]] inline int thread_count(const Host& host, std::int64_t tokens, int experts) {
  const std::int64_t wanted = host.threads > 0 ? host.threads : usable_cores();
  const std::int64_t each =
      host.executor.run != nullptr ? host_tuning.logits_per_executor_part : host_tuning.logits_per_thread;
  const std::int64_t useful = tokens * experts / each + 1;
  return static_cast<int>(std::min({wanted, useful, std::max<std::int64_t>(tokens, 1)}));
}

/// Every call runs to its end before it returns.
template <>
struct Engine<Host> {
  static constexpr bool serves_float64 = true;
  static constexpr int most_experts = max_experts;
  using HostLayout = Layout<SerialTile, max_experts>;

  static void check(const char* call, const Host& host) {
    MOEB_EXPECTS(host.threads >= 0, call, "host.threads", host.threads,
                 "0 (all cores that the calling thread may run on) or more");
    MOEB_EXPECTS(host.threads > 0 || host.executor.run == nullptr, call, "host.threads", host.threads,
                 "1 or more, as many as host.executor has");
    MOEB_EXPECTS(host.instructions <= InstructionSet::x86_64_v4, call, "host.instructions",
                 static_cast<int>(host.instructions), "automatic, baseline, x86_64_v3, x86_64_v4");
  }

  static void clear(void* data, std::size_t bytes, const Host& /*host*/) {
    if (bytes != 0) std::memset(data, 0, bytes);
  }

  static void copy(void* to, const void* from, std::size_t bytes, const Host& /*host*/) {
    if (bytes != 0) std::memcpy(to, from, bytes);
  }

  template <class Real, class Problem>
  static void forward(const Problem& problem, const Totals& totals, const Host& host) {
    const int experts = static_cast<int>(problem.logits.columns);
    const int threads = thread_count(host, problem.segments.tokens, experts);
    run_parallel(host, threads, [&](int part, int parts) {
      run_loop<Real>(host, [&](auto set) MOEB_LAMBDA { forward_part<Real>(problem, totals, set, experts, part, parts); });
    });
  }

  template <class Real, class Problem>
  static void backward(const Problem& problem, const Host& host) {
    const int experts = static_cast<int>(problem.logits.columns);
    const int threads = thread_count(host, problem.segments.tokens, experts);
    run_parallel(host, threads, [&](int part, int parts) {
      run_loop<Real, is_narrow_backward<Problem>>(
          host, [&](auto set) MOEB_LAMBDA { backward_part<Real>(problem, set, experts, part, parts); });
    });
  }

  template <class Real, class Problem>
  static void count_margins(const Problem& problem, const Host& host) {
    const int experts = static_cast<int>(problem.logits.columns);
    const int threads = thread_count(host, problem.logits.rows, experts);
    run_parallel(host, threads, [&](int part, int parts) {
      const std::int64_t first = problem.logits.rows * part / parts;
      const std::int64_t last = problem.logits.rows * (part + 1) / parts;
      OwnMargins own(problem.histogram, experts, bins_of(problem.balancer), last - first, SharedAdd{parts > 1});
      run_loop<Real>(host, [&](auto set) MOEB_LAMBDA { margins_part<Real>(problem, set, experts, first, last, own); });
      own.flush();
    });
  }

  template <class Problem>
  static void loss(const Problem& problem, const Host& /*host*/) {
    evaluate_losses(problem, SerialTile{});
  }

  template <class Problem>
  static void update(const Problem& problem, const Host& /*host*/) {
    for (std::int64_t layer = 0; layer < problem.load.layers; ++layer) update_layer(problem, SerialTile{}, layer);
  }

  static void publish(std::int64_t* load, std::int64_t* counts, int experts, bool accumulate, const Host& /*host*/) {
    for (int e = 0; e < experts; ++e) publish_expert(load, counts, e, accumulate);
  }

 private:
  static_assert(host_tuning.experts_side_by_side <= NumbersOfExperts::capacity);

  /// Whether a loop has one token at a time, and the simplest selection, because less to compile is worth more than its speed: float64's, which is for checks,
  /// and baseline x86-64's, for processors without AVX2 (and FMA, each of which is a call of the C library then).
  template <class Real, InstructionSet Set>
  static constexpr bool is_small = std::is_same_v<Real, double> || !is_for_vectors(Set);

  /// Whether a backward pass gains little or nothing by the widest vectors: one that reads single logits (docs/design.md, "Compile time").
  template <class Problem>
  static constexpr bool is_narrow_backward = touches_only_chosen<decltype(Problem::scoring), decltype(Problem::balancer)>;

  /// In the place of ForwardLanes and BackwardLanes, where policies are not for them.
  struct NoLanes {
    MOEB_INLINE NoLanes(InstructionSet /*set*/, const HostLayout& /*layout*/) {}
  };

  /// Most experts whose tokens' forward passes go side by side.
  [[nodiscard]] MOEB_INLINE static constexpr int most_side_by_side(int plain_picks) {
    return plain_picks > host_tuning.few_picks ? host_tuning.experts_selected_twice : host_tuning.experts_side_by_side;
  }

  /// loop(set), compiled for that set of instructions. float64 is for checks: its loops are compiled once, for the program's own.
  template <class Real, bool Narrow = false, class Loop>
  static void run_loop(const Host& host, const Loop& loop) {
    if constexpr (std::is_same_v<Real, double>)
      run_baseline([&]() MOEB_LAMBDA { loop(InstructionSetConstant<InstructionSet::baseline>{}); });
    else if constexpr (Narrow)
      run_loop_for<true>(host.instructions, loop);
    else
      run_loop_for<false>(host.instructions, loop);
  }

  // What begins and ends a segment: functions of their own, which the loops for all instruction sets share.
  template <class Sink>
  MOEB_INLINE static void clear_apart(InstructionSet set, Sink& sink) {
    run_apart_narrow_for(
        set, [](Sink* its) MOEB_LAMBDA { its->clear(); }, &sink);
  }
  template <class Sink>
  MOEB_INLINE static void flush_apart(InstructionSet set, Sink& sink, const Totals& totals, std::int64_t segment,
                                      int experts) {
    const auto flush = [](Sink* its, const Totals* to, std::int64_t of, int count)
                           MOEB_LAMBDA { its->flush(*to, of, count); };
    run_apart_narrow_for(set, flush, &sink, &totals, segment, experts);
  }
  template <class Problem>
  MOEB_INLINE static void prepare_slopes_apart(InstructionSet set, const Problem& problem, std::int64_t segment,
                                               int capacity, float* slope) {
    const auto prepare = [](const Problem* its, std::int64_t of, int count, float* to)
                             MOEB_LAMBDA { prepare_slopes(*its, SerialTile{}, of, 0, 1, count, to); };
    run_apart_narrow_for(set, prepare, &problem, segment, capacity, slope);
  }

  template <class Real, class Problem, InstructionSet Set>
  MOEB_INLINE static void forward_part(const Problem& problem, const Totals& totals, InstructionSetConstant<Set> set,
                                       int experts, int part, int parts) {
    const SerialTile tile{set};
    const HostLayout layout{experts, 0};
    alignas(64) float padded_bias[max_experts];
    constexpr bool has_bias = BalancerTraits<decltype(problem.balancer)>::biases > 0;  // of 0 where inference leaves it out
    const float* const bias = has_bias || problem.bias != nullptr ? padded_bias : nullptr;
    if (bias != nullptr) {
      const int given = problem.bias == nullptr ? 0 : experts;
      for (int e = 0; e < max_experts; ++e) padded_bias[e] = e < given ? problem.bias[e] : 0.0f;
    }
    constexpr bool sums_units = std::is_same_v<Real, float> && is_non_negative<decltype(problem.scoring)> &&
                                BalancerTraits<decltype(problem.balancer)>::losses > 0;
    HostSink<decltype(problem.balancer), sums_units> sink(layout);
    constexpr int most = is_small<Real, Set> ? 1 : host_tuning.tokens_together;
    ForwardRows<Real, Problem, SerialTile, HostLayout, most, !is_small<Real, Set>> together(set);
    using SideBySide = ForwardLanes<Problem, SerialTile>;
    constexpr bool has_lanes = !is_small<Real, Set> && SideBySide::serves;
    const bool goes_side_by_side = has_lanes && experts <= most_side_by_side(SideBySide::plain_picks);
    std::conditional_t<has_lanes, SideBySide, NoLanes> side_by_side(set, layout);
    for (std::int64_t segment = 0; segment < problem.segments.count(); ++segment) {
      const std::int64_t size = problem.segments.size(segment);
      const SegmentRows rows = problem.segments.rows(segment);
      clear_apart(set, sink);
      const std::int64_t last = size * (part + 1) / parts;
      int count = 0;
      std::int64_t unusual_end = 0;  // of the tokens that do not go side by side
      for (std::int64_t first = size * part / parts; first < last; first += count) {
        if constexpr (has_lanes) {
          if (goes_side_by_side && first >= unusual_end && last - first >= lane_count) {
            count = lane_count;
            if (side_by_side.forward(problem, tile, rows, first, bias, sink)) continue;
            unusual_end = first + count;
          }
        }
        count = last - first < most ? static_cast<int>(last - first) : most;
        together.forward(problem, tile, layout, rows, first, count, host_tuning.rows_ahead, bias, sink);
      }
      if constexpr (has_lanes) {
        if (goes_side_by_side) side_by_side.carry(sink);
      }
      flush_apart(set, sink, totals, segment, experts);
    }
  }

  template <class Real, class Problem, class Own>
  MOEB_INLINE static void margins_part(const Problem& problem, InstructionSet set, int experts, std::int64_t first,
                                       std::int64_t last, Own& own) {
    const SerialTile tile{set};
    const HostLayout layout{experts, 0};
    alignas(64) float bias[max_experts];
    for (int e = 0; e < max_experts; ++e) bias[e] = problem.bias != nullptr && e < experts ? problem.bias[e] : 0.0f;
    for (std::int64_t token = first; token < last; ++token) {
      Slots<Real, HostLayout> logits;
      Slots<Real, HostLayout> scores;
      const auto threshold = find_threshold<Real>(problem, tile, layout, token, bias, logits, scores);
      if (!threshold.has_margins()) continue;
      own.start_token();
      add_margins<Real>(problem, tile, layout, token, threshold, logits, scores,
                        [&](std::int64_t cell) MOEB_LAMBDA { own.count(cell); });
    }
  }

  /// Whether a backward pass that touches only the chosen goes side by side whatever the experts.
  template <class Problem>
  [[nodiscard]] MOEB_INLINE static bool gains_by_lanes(const Problem& problem) {
    const std::size_t element = size_of(problem.logits.type) + size_of(problem.grad_logits.type);
    const std::int64_t bytes = problem.segments.tokens * problem.logits.columns * static_cast<std::int64_t>(element);
    return problem.grad_logits.type != DataType::float32 || bytes <= host_tuning.bytes_side_by_side;
  }

  template <class Real, class Problem, InstructionSet Set>
  MOEB_INLINE static void backward_part(const Problem& problem, InstructionSetConstant<Set> set, int experts, int part,
                                        int parts) {
    const SerialTile tile{set};
    const HostLayout layout{experts, 0};
    alignas(64) float slope[max_experts];
    const LossSlopes<Real> slopes{slope, static_cast<Real>(token_loss_factor(problem))};
    using SideBySide = BackwardLanes<Problem, HostLayout>;
    constexpr bool has_lanes = !is_small<Real, Set> && SideBySide::serves;
    constexpr bool reads_rows = !touches_only_chosen<decltype(problem.scoring), decltype(problem.balancer)>;
    const bool goes_side_by_side =
        has_lanes && (experts <= host_tuning.experts_side_by_side || (!reads_rows && gains_by_lanes(problem)));
    std::conditional_t<has_lanes, SideBySide, NoLanes> side_by_side(set, layout);
    for (std::int64_t segment = 0; segment < problem.segments.count(); ++segment) {
      prepare_slopes_apart(set, problem, segment, layout.blocks() * HostLayout::block_size, slope);
      const std::int64_t size = problem.segments.size(segment);
      const SegmentRows rows = problem.segments.rows(segment);
      const std::int64_t last = size * (part + 1) / parts;
      std::int64_t unusual_end = 0;  // of the tokens that do not go side by side
      for (std::int64_t i = size * part / parts; i < last; ++i) {
        if constexpr (has_lanes) {
          if (goes_side_by_side && i >= unusual_end && last - i >= lane_count) {
            const LossSlopes<Real> shown = slopes;  // a compiler then knows that the loop's own lead to `slope` for ever
            if (side_by_side.backward(problem, layout, rows, i, last, shown)) {
              i += lane_count - 1;
              continue;
            }
            unusual_end = i + lane_count;
          }
        }
        if constexpr (reads_rows)
          prefetch_row<RowUse::read>(layout, problem.logits, rows[i + 1]);
        else if (i + host_tuning.tokens_ahead < last)
          prefetch_chosen<decltype(problem.top_k)::k>(problem.logits, problem.experts, rows[i + host_tuning.tokens_ahead]);
        prefetch_row<RowUse::write>(layout, problem.grad_logits, rows[i + 1]);
        backward_token<Real>(problem, tile, layout, rows[i], slopes);
      }
    }
  }
};

MOEB_NAMESPACE_END
