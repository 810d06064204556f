// The kernel of Sinkhorn's iterations, in log space. u = log d1, and what a token adds to the sums needs no d0:
//   m_t = max_j(x_tj + u_j)      p_tj = exp(x_tj + u_j - m_t) / (sum_j exp(x_tj + u_j - m_t) + 1e-8 exp(-m_t))
//   P_j = sum_t p_tj / T         u_j <- u_j - log(E (P_j + 1e-8 exp(u_j)))
// A launch first finds the scales from the sums that the one before it left, then adds up those for the next. All its blocks
// do the first by themselves, because they cannot wait for each other; they find the same bits.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/numeric/canonical_sum.hpp>
#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/token/elements.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Binary digits of p_tj behind the point: 2^22 tokens fit 64 bits. What is rounded off P_j is at most 2^-41, a
/// twenty-thousandth of the 1e-8 that stands beside it where d1 is 1; where it is smaller P_j is larger.
inline constexpr int sinkhorn_fraction_bits = 40;
inline constexpr std::int64_t most_sinkhorn_tokens = std::int64_t{1} << 22;

/// Iteration 0 finds no scales, the last adds up no sums.
struct SinkhornProblem {
  ConstAnyMatrix logits;
  const std::uint8_t* active;            ///< may be null
  const std::int64_t* tokens_on_device;  ///< may be null
  float tolerance;
  int iteration;
  int last_iteration;
  float* log_scale;
  std::int32_t* iterations;  ///< may be null
  // No block reads what another one of its launch writes.
  std::int64_t* sums;    ///< [3, E]: of the iteration before, of this one, and those that it clears for the next
  float* scales;         ///< [2, E]: of the iteration before and of this one
  std::int64_t* done;    ///< [2]: the same
  std::int64_t* tokens;  ///< how many take part, from iteration 1 on

  [[nodiscard]] MOEB_INLINE std::int64_t* sums_of(int iteration_number) const {
    return sums + iteration_number % 3 * logits.columns;
  }
  [[nodiscard]] MOEB_INLINE float* scales_of(int iteration_number) const {
    return scales + iteration_number % 2 * logits.columns;
  }
  [[nodiscard]] MOEB_INLINE std::int64_t* done_of(int iteration_number) const { return done + iteration_number % 2; }
  [[nodiscard]] MOEB_INLINE bool is_active(std::int64_t row) const {
    return (active == nullptr || active[row] != 0) && (tokens_on_device == nullptr || row < *tokens_on_device);
  }
};

/// A tile has a token. `Real`: double for float64 logits, which become float32.
template <class Real>
struct IterateSinkhorn {
  static constexpr bool uses_shared = true;
  static constexpr float epsilon = 1e-8f;

  struct Shared {
    std::int64_t* sums;  ///< [E], of the block's tokens; before, bits of a double each
    float* scales;       ///< [E]
    MOEB_INLINE Shared(std::byte* memory, int experts)
        : sums(reinterpret_cast<std::int64_t*>(memory)), scales(reinterpret_cast<float*>(sums + experts)) {}
  };
  [[nodiscard]] static constexpr std::size_t shared_bytes(std::int64_t experts) {
    return static_cast<std::size_t>(experts) * (sizeof(std::int64_t) + sizeof(float));
  }

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const SinkhornProblem& problem) const {
    const bool writes = block.index() == 0;
    if (problem.iteration > 0 && *problem.done_of(problem.iteration + 1) != 0) {
      if (writes && block.thread() == 0) *problem.done_of(problem.iteration) = 1;
      return;
    }
    const int experts = static_cast<int>(problem.logits.columns);
    const Shared shared(block.shared(), experts);
    // Iteration 0 counts them.
    const std::int64_t tokens = problem.iteration == 0 ? 0 : *problem.tokens;
    find_scales(block, problem, tokens, experts, shared);
    block.barrier();
    const bool is_settled = problem.iteration > 0 && (tokens == 0 || has_converged(tile, problem, experts, shared));
    const bool is_last = is_settled || problem.iteration == problem.last_iteration;
    if (writes) {
      store(block, problem, experts, shared, is_last);
      if (block.thread() == 0) {
        *problem.done_of(problem.iteration) = is_last ? 1 : 0;
        if (is_last && problem.iterations != nullptr) *problem.iterations = tokens == 0 ? 0 : problem.iteration;
      }
    }
    if (!is_last) add_tokens(block, tile, problem, experts, shared);
  }

 private:
  /// The scales after this iteration, and bits of |change of d1| where the sums will be; 0 where the scale moved by its last bits only, as one of a large d1
  /// does for ever.
  template <class BlockT>
  MOEB_INLINE static void find_scales(const BlockT& block, const SinkhornProblem& problem, std::int64_t tokens, int experts,
                                      const Shared& shared) {
    const float* const before = problem.scales_of(problem.iteration + 1);
    const std::int64_t* const sums = problem.sums_of(problem.iteration + 2);
    for (int e = block.thread(); e < experts; e += block.threads()) {
      const float old_scale = before[e];
      const float scale = tokens == 0 ? old_scale : scale_after(old_scale, sums[e], tokens, experts);
      const double change = sub(static_cast<double>(exp(scale)), static_cast<double>(exp(old_scale)));
      const float step = sub(scale, old_scale);
      const bool is_rounding = larger_of(step, -step) <= mul(0x1p-22f, larger_of(scale, -scale));
      shared.scales[e] = scale;
      shared.sums[e] = is_rounding ? 0 : bits_of(change < 0.0 ? -change : change);
    }
  }

  /// exp(scale) is at most 1e8 / E, and the logarithm's argument 1 + 1e-8 E or less.
  [[nodiscard]] MOEB_INLINE static float scale_after(float scale, std::int64_t sum, std::int64_t tokens, int experts) {
    constexpr float smallest = 1.17549435e-38f;  // that has a logarithm
    const double mean = div(from_fixed<sinkhorn_fraction_bits>(sum), static_cast<double>(tokens));
    const double column = fma(static_cast<double>(epsilon), static_cast<double>(exp(scale)), mean);
    return sub(scale, log(larger_of(static_cast<float>(mul(static_cast<double>(experts), column)), smallest)));
  }

  template <class TileT>
  [[nodiscard]] MOEB_INLINE static bool has_converged(const TileT& tile, const SinkhornProblem& problem, int experts,
                                                      const Shared& shared) {
    const double change = strided_sum(tile, experts, [&](std::int64_t e) MOEB_LAMBDA { return double_of(shared.sums[e]); });
    return problem.tolerance > 0.0f && div(change, static_cast<double>(experts)) <= static_cast<double>(problem.tolerance);
  }

  template <class BlockT>
  MOEB_INLINE static void store(const BlockT& block, const SinkhornProblem& problem, int experts, const Shared& shared,
                                bool is_last) {
    float* const scales = is_last ? problem.log_scale : problem.scales_of(problem.iteration);
    std::int64_t* const next_sums = problem.sums_of(problem.iteration + 1);
    for (int e = block.thread(); e < experts; e += block.threads()) {
      scales[e] = shared.scales[e];
      next_sums[e] = 0;
    }
  }

  template <class BlockT, class TileT>
  MOEB_INLINE static void add_tokens(const BlockT& block, const TileT& tile, const SinkhornProblem& problem, int experts,
                                     const Shared& shared) {
    block.barrier();
    for (int e = block.thread(); e < experts; e += block.threads()) shared.sums[e] = 0;
    block.barrier();
    std::int64_t tokens = 0;
    with_element_type<Real>(problem.logits.type, [&](auto* type) MOEB_LAMBDA {
      using T = std::remove_pointer_t<decltype(type)>;
      for_each_item_of_tile(block, tile, problem.logits.rows, [&](std::int64_t row) MOEB_LAMBDA {
        if (!problem.is_active(row)) return;
        const T* const logits = static_cast<const T*>(problem.logits.data) + row * problem.logits.stride;
        tokens += add_token(block, tile, logits, experts, shared) ? 1 : 0;
      });
    });
    if (problem.iteration == 0 && tile.lane() == 0) block.add_global(problem.tokens, tokens);
    block.barrier();
    std::int64_t* const sums = problem.sums_of(problem.iteration);
    for (int e = block.thread(); e < experts; e += block.threads()) block.add_global(sums + e, shared.sums[e]);
  }

  /// Whether it takes part. A CPU keeps a token's values; a GPU, which has no registers for them, finds them again.
  template <class BlockT, class TileT, class T>
  MOEB_INLINE static bool add_token(const BlockT& block, const TileT& tile, const T* logits, int experts,
                                    const Shared& shared) {
    constexpr bool keeps = !TileT::slots_in_registers;
    float kept[keeps ? max_experts : 1];
    const auto scaled = [&](int e) MOEB_LAMBDA {
      const float x = static_cast<float>(to_real(logits[e]));
      return choose(is_finite(x), add(x, shared.scales[e]), -infinity<float>);
    };
    const float largest = strided_fold(
        tile, experts, -infinity<float>,
        [&](int e) MOEB_LAMBDA {
          const float value = scaled(e);
          if constexpr (keeps) kept[e] = value;
          return value;
        },
        [](float a, float b) MOEB_LAMBDA { return larger_of(a, b); });
    if (largest == -infinity<float>) return false;
    const auto exponential = [&](int e) MOEB_LAMBDA {
      if constexpr (keeps)
        return exp_of_difference(sub(kept[e], largest));
      else
        return exp_of_difference(sub(scaled(e), largest));
    };
    const float sum = strided_fold(
        tile, experts, 0.0f,
        [&](int e) MOEB_LAMBDA {
          const float value = exponential(e);
          if constexpr (keeps) kept[e] = value;
          return value;
        },
        [](float a, float b) MOEB_LAMBDA { return add(a, b); });
    const float factor = div(1.0f, add(sum, mul(epsilon, exp(-largest))));
    constexpr auto one = static_cast<float>(std::int64_t{1} << sinkhorn_fraction_bits);
    for (int e = tile.lane(); e < experts; e += TileT::width) {
      float share = 0;
      if constexpr (keeps)
        share = mul(kept[e], factor);
      else
        share = mul(exponential(e), factor);
      block.add_shared(shared.sums + e, round_to_int64(mul(share, one)));
    }
    return true;
  }
};

MOEB_NAMESPACE_END
