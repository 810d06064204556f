// The kernels of the smooth load: its sums over tokens, the loss of those, and the gradients.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/noisy_token.hpp>
#include <moe_balance/numeric/canonical_sum.hpp>
#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/token/row_io.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

[[nodiscard]] MOEB_INLINE bool is_active_row(const NoisyChoice& choice, std::int64_t row) {
  return (choice.active == nullptr || choice.active[row] != 0) &&
         (choice.tokens_on_device == nullptr || row < *choice.tokens_on_device);
}

struct SmoothLoadProblem {
  NoisyChoice choice;
  std::int64_t* load;  ///< [E], cleared before
};

/// A tile has a token; a block adds up its tokens' probabilities before it adds those to the load.
template <class Real>
struct AddSmoothLoad {
  static constexpr bool uses_shared = true;

  [[nodiscard]] static constexpr std::size_t shared_bytes(std::int64_t experts) {
    return static_cast<std::size_t>(experts) * sizeof(std::int64_t);
  }

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const SmoothLoadProblem& problem) const {
    const int experts = static_cast<int>(problem.choice.logits.columns);
    auto* const sums = reinterpret_cast<std::int64_t*>(block.shared());
    for (int e = block.thread(); e < with_padding(tile, experts); e += block.threads()) sums[e] = 0;
    block.barrier();
    for_each_item_of_tile(block, tile, problem.choice.logits.rows, [&](std::int64_t row) MOEB_LAMBDA {
      if (!is_active_row(problem.choice, row)) return;
      NoisyToken<Real, TileT> token(problem.choice);
      token.read(tile, row);
      for_each_expert(tile, experts, [&](int e) MOEB_LAMBDA {
        constexpr auto unit = static_cast<Real>(smooth_load_unit);
        block.add_shared(sums + e, round_to_int64(mul(token.chance(e).probability, unit)));
      });
    });
    block.barrier();
    for (int e = block.thread(); e < experts; e += block.threads()) block.add_global(problem.load + e, sums[e]);
  }
};

struct LoadLossProblem {
  VectorView<const std::int64_t> load;
  float* grad_load;  ///< [E]
  float coefficient;
  float* loss;  ///< may be null
};

/// One tile.
struct FindLoadLoss {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const LoadLossProblem& problem) const {
    if (block.index() != 0 || block.thread() >= TileT::width) return;
    const auto experts = static_cast<double>(problem.load.size);
    const auto load = [&](std::int64_t e)
                          MOEB_LAMBDA { return from_fixed<probability_fraction_bits>(problem.load.data[e]); };
    const double sum = strided_sum(tile, problem.load.size, load);
    const double mean = div(sum, experts);
    const auto error = [&](std::int64_t e) MOEB_LAMBDA { return sub(load(e), mean); };
    const double squares =
        strided_sum(tile, problem.load.size, [&](std::int64_t e) MOEB_LAMBDA { return mul(error(e), error(e)); });
    const bool has_load = sum > 0.0;
    // coefficient / (E mean^2), which the sum of squares and twice the errors have in common
    const double factor = has_load ? div(static_cast<double>(problem.coefficient), mul(mul(experts, mean), mean)) : 0.0;
    if (problem.loss != nullptr && tile.lane() == 0) *problem.loss = static_cast<float>(mul(factor, squares));
    const double common = has_load ? div(squares, sum) : 0.0;
    for (std::int64_t e = tile.lane(); e < problem.load.size; e += TileT::width) {
      problem.grad_load[e] = static_cast<float>(mul(mul(2.0, factor), sub(error(e), common)));
    }
  }
};
static_assert(smooth_load_unit == std::int64_t{1} << probability_fraction_bits);

struct SmoothLoadBackwardProblem {
  NoisyChoice choice;
  const float* grad_load;  ///< [E]
  AnyMatrix grad_logits;
  AnyMatrix grad_noisy;
  AnyMatrix grad_scales;
  const float* grad_loss;  ///< may be null
  float loss_scale;
};

/// The derivative of the upstream loss by an expert's load.
template <class Real, class TileT>
class LoadSlopes {
 public:
  MOEB_INLINE void find(const SmoothLoadBackwardProblem& problem, Real upstream) {
    grad_load_ = problem.grad_load;
    upstream_ = upstream;
  }
  [[nodiscard]] MOEB_INLINE Real operator[](int expert) const {
    return mul(upstream_, static_cast<Real>(grad_load_[expert]));
  }

 private:
  const float* grad_load_ = nullptr;
  Real upstream_{};
};
/// A CPU keeps it; 0 behind the last expert.
template <class Real>
class LoadSlopes<Real, SerialTile> {
 public:
  MOEB_INLINE void find(const SmoothLoadBackwardProblem& problem, Real upstream) {
    const ExpertsOfRow layout{static_cast<int>(problem.choice.logits.columns), 0};
    clear_slots(layout, slopes_);
    for (int e = 0; e < layout.experts; ++e) slopes_[e] = mul(upstream, static_cast<Real>(problem.grad_load[e]));
  }
  [[nodiscard]] MOEB_INLINE Real operator[](int expert) const { return slopes_[expert]; }

 private:
  Slots<Real, ExpertsOfRow> slopes_;
};

/// A tile has a token.
template <class Real>
struct SmoothLoadGradients {
  static constexpr bool uses_shared = false;

  template <class BlockT, class TileT>
  MOEB_INLINE void operator()(const BlockT& block, const TileT& tile, const SmoothLoadBackwardProblem& problem) const {
    const Real upstream = problem.grad_loss == nullptr
                              ? static_cast<Real>(problem.loss_scale)
                              : mul(static_cast<Real>(problem.loss_scale), static_cast<Real>(*problem.grad_loss));
    LoadSlopes<Real, TileT> slopes;
    slopes.find(problem, upstream);
    for_each_item_of_tile(block, tile, problem.choice.logits.rows, [&](std::int64_t row) MOEB_LAMBDA {
      if (is_active_row(problem.choice, row))
        write_gradients(tile, problem, row, slopes);
      else
        write_zeros(tile, problem, row);
    });
  }

 private:
  /// matrix[row, e] = value(e), where there is a matrix.
  template <class TileT, class Value>
  MOEB_INLINE static void write_row(const TileT& tile, const AnyMatrix& matrix, std::int64_t row, const Value& value) {
    if (matrix.data == nullptr) return;
    const int experts = static_cast<int>(matrix.columns);
    if constexpr (TileT::slots_in_registers) {
      for (int e = tile.lane(); e < experts; e += TileT::width) store_element(matrix, row, e, value(e));
    } else {
      Slots<Real, ExpertsOfRow> values;
      for_each_expert(tile, experts, [&](int e) MOEB_LAMBDA { values[e] = value(e); });
      store_row(tile, ExpertsOfRow{experts, 0}, matrix, row, false, values);
    }
  }

  template <class TileT>
  MOEB_INLINE static void write_zeros(const TileT& tile, const SmoothLoadBackwardProblem& problem, std::int64_t row) {
    const auto zero = [](int) MOEB_LAMBDA { return Real(0); };
    write_row(tile, problem.grad_logits, row, zero);
    write_row(tile, problem.grad_noisy, row, zero);
    write_row(tile, problem.grad_scales, row, zero);
  }

  /// A CPU keeps what it has found of each expert; a GPU, which has no registers for it, finds it again.
  template <class TileT>
  MOEB_INLINE static void write_gradients(const TileT& tile, const SmoothLoadBackwardProblem& problem, std::int64_t row,
                                          const LoadSlopes<Real, TileT>& slopes) {
    constexpr bool keeps = !TileT::slots_in_registers;
    const int experts = static_cast<int>(problem.choice.logits.columns);
    NoisyToken<Real, TileT> token(problem.choice);
    token.read(tile, row);
    struct Gradient {
      Real logit;
      Real sigma;
    };
    const auto find = [&](int e) MOEB_LAMBDA {
      const Chance<Real> chance = token.chance(e);
      const Real logit = mul(slopes[e], chance.slope);
      return Gradient{logit, mul(-logit, chance.distance)};
    };
    Real logit_gradients[keeps ? max_experts : 1];
    Real sigma_gradients[keeps ? max_experts : 1];
    if constexpr (keeps) {
      for_each_expert(tile, experts, [&](int e) MOEB_LAMBDA {
        const Gradient gradient = find(e);
        logit_gradients[e] = gradient.logit;
        sigma_gradients[e] = gradient.sigma;
      });
    }
    const auto of_logit = [&](int e) MOEB_LAMBDA {
      if constexpr (keeps)
        return logit_gradients[e];
      else
        return find(e).logit;
    };
    const auto of_scale = [&](int e) MOEB_LAMBDA {
      const auto scale = static_cast<Real>(problem.choice.scale);
      if constexpr (keeps)
        return mul(scale, sigma_gradients[e]);
      else
        return mul(scale, find(e).sigma);
    };
    write_row(tile, problem.grad_logits, row, of_logit);
    write_row(tile, problem.grad_scales, row, of_scale);
    if (problem.grad_noisy.data == nullptr) return;
    const auto sum_where = [&](bool surpasses_first_left) MOEB_LAMBDA {
      return strided_fold(
          tile, with_padding(tile, experts), Real(0),
          [&](int e)
              MOEB_LAMBDA { return choose(token.surpasses_first_left(e) == surpasses_first_left, of_logit(e), Real(0)); },
          [](Real a, Real b) MOEB_LAMBDA { return add(a, b); });
    };
    const Real of_last = sub(Real(0), sum_where(false));
    const Real of_next = token.judges_chosen_apart() ? sub(Real(0), sum_where(true)) : Real(0);
    const int last = token.last_chosen().expert;
    const int next = token.first_left().expert;
    write_row(tile, problem.grad_noisy, row,
              [&](int e) MOEB_LAMBDA { return choose(e == last, of_last, choose(e == next, of_next, Real(0))); });
  }
};

MOEB_NAMESPACE_END
