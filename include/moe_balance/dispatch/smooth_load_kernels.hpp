// The kernels of the smooth load: its sums over tokens, the loss of those, and the gradients.
//   p_te = Phi((logits_te - w_te) / sigma_te)      d p_te / d logits_te = phi(...) / sigma_te = -d p_te / d w_te
// w_te is one of two noisy logits of the token: of the expert that was chosen last, or, for the chosen, of the first that was not.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/numeric/canonical_sum.hpp>
#include <moe_balance/numeric/fixed_point.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/numeric/normal.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/token/row_io.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// A token's experts on a CPU.
using ExpertsOfRow = Layout<SerialTile, max_experts>;

/// The experts to go through: on a CPU whole blocks of them, of which those behind the last take no part.
template <class TileT>
[[nodiscard]] MOEB_INLINE int with_padding(const TileT& /*tile*/, int experts) {
  if constexpr (TileT::slots_in_registers)
    return experts;
  else
    return ExpertsOfRow{experts, 0}.blocks() * ExpertsOfRow::block_size;
}

/// Calls f(expert) for each expert of the lane, padding included.
template <class TileT, class Function>
MOEB_INLINE void for_each_expert(const TileT& tile, int experts, const Function& f) {
  if constexpr (TileT::slots_in_registers) {
    for (int e = tile.lane(); e < experts; e += TileT::width) f(e);
  } else {
    for_each_slot(ExpertsOfRow{experts, 0}, f);
  }
}

/// What a token has of each of its experts. A GPU, which has no registers for it, reads it again each time.
template <class Real, class TileT>
class NoisyRow {
 public:
  MOEB_INLINE explicit NoisyRow(const NoisyChoice& choice) : choice_(choice) {}

  MOEB_INLINE void read(const TileT& /*tile*/, std::int64_t token) { token_ = token; }
  [[nodiscard]] MOEB_INLINE Real logit(int expert) const { return load_element<Real>(choice_.logits, token_, expert); }
  /// What the expert was ranked by; -infinity where it takes no part.
  [[nodiscard]] MOEB_INLINE Real ranking(int expert) const {
    const Real noisy = load_element<Real>(choice_.noisy, token_, expert);
    return choose(both(is_finite(noisy), is_finite(logit(expert))), noisy, -infinity<Real>);
  }
  [[nodiscard]] MOEB_INLINE Real sigma(int expert) const {
    const auto scale = static_cast<Real>(choice_.scale);
    return choice_.scales.data == nullptr ? scale : mul(scale, load_element<Real>(choice_.scales, token_, expert));
  }

 private:
  const NoisyChoice& choice_;
  std::int64_t token_ = 0;
};

/// A CPU keeps it, and goes through it in vectors: experts behind the last take no part.
template <class Real>
class NoisyRow<Real, SerialTile> {
 public:
  MOEB_INLINE explicit NoisyRow(const NoisyChoice& choice) : choice_(choice) {}

  MOEB_INLINE void read(const SerialTile& tile, std::int64_t token) {
    const ExpertsOfRow layout{static_cast<int>(choice_.logits.columns), 0};
    load_row(tile, layout, choice_.logits, token, false, logits_);
    load_row(tile, layout, choice_.noisy, token, false, rankings_);
    for_each_slot(layout, [&](int e) MOEB_LAMBDA {
      const Real noisy = rankings_[e];
      rankings_[e] = choose(both(is_finite(noisy), is_finite(logits_[e])), noisy, -infinity<Real>);
    });
    const auto scale = static_cast<Real>(choice_.scale);
    if (choice_.scales.data == nullptr) {
      for_each_slot(layout, [&](int e) MOEB_LAMBDA { sigmas_[e] = scale; });
    } else {
      load_row(tile, layout, choice_.scales, token, false, sigmas_);
      for_each_slot(layout, [&](int e) MOEB_LAMBDA { sigmas_[e] = mul(scale, sigmas_[e]); });
    }
  }

  [[nodiscard]] MOEB_INLINE Real logit(int expert) const { return logits_[expert]; }
  [[nodiscard]] MOEB_INLINE Real ranking(int expert) const { return rankings_[expert]; }
  [[nodiscard]] MOEB_INLINE Real sigma(int expert) const { return sigmas_[expert]; }

 private:
  const NoisyChoice& choice_;
  Slots<Real, ExpertsOfRow> logits_;
  Slots<Real, ExpertsOfRow> rankings_;
  Slots<Real, ExpertsOfRow> sigmas_;
};

/// One expert's probability to be chosen, and what its gradients are made of.
template <class Real>
struct Chance {
  Real probability;
  Real slope;     ///< its derivative by the expert's logit
  Real distance;  ///< of the logit from the one to surpass, in sigmas
};

/// An active token: which experts' logits the others have to surpass, and each expert's chance to do so.
template <class Real, class TileT>
class NoisyToken {
 public:
  struct Ranked {
    Real value;
    int expert;
  };

  MOEB_INLINE explicit NoisyToken(const NoisyChoice& choice) : choice_(choice), row_(choice) {}

  /// Before anything is asked: reads a token, and finds whom its experts have to surpass.
  MOEB_INLINE void read(const TileT& tile, std::int64_t token) {
    row_.read(tile, token);
    MOEB_NO_UNROLL
    for (int k = 0; k < choice_.top_k; ++k) last_ = best_behind(tile, last_);
    if (judges_chosen_apart()) next_ = best_behind(tile, last_);
  }

  /// Where no expert is at this rank the value is -infinity, and the expert none.
  [[nodiscard]] MOEB_INLINE Ranked last_chosen() const { return last_; }
  [[nodiscard]] MOEB_INLINE Ranked first_left() const { return next_; }
  /// Whether chosen experts have another logit to surpass than the rest.
  [[nodiscard]] MOEB_INLINE bool judges_chosen_apart() const { return choice_.winning == WinningLogit::best_of_others; }
  [[nodiscard]] MOEB_INLINE bool is_chosen(int expert) const {
    const Real value = row_.ranking(expert);
    const bool ties = both(value == last_.value, expert <= last_.expert);
    return both(value > -infinity<Real>, (static_cast<int>(value > last_.value) | static_cast<int>(ties)) != 0);
  }
  [[nodiscard]] MOEB_INLINE bool surpasses_first_left(int expert) const {
    return both(judges_chosen_apart(), is_chosen(expert));
  }

  [[nodiscard]] MOEB_INLINE Chance<Real> chance(int expert) const {
    constexpr Real farthest = 64;  // density and tail are 0 there
    const Real to_surpass = choose(surpasses_first_left(expert), next_.value, last_.value);
    const Real sigma = row_.sigma(expert);
    const bool has_noise = both(sigma > Real(0), sigma < infinity<Real>);
    const bool is_open = both(both(row_.ranking(expert) > -infinity<Real>, to_surpass > -infinity<Real>), has_noise);
    const Real divisor = choose(is_open, sigma, Real(1));
    const Real distance = div(sub(row_.logit(expert), to_surpass), divisor);
    const Real bounded = choose(is_open, larger_of(smaller_of(distance, farthest), -farthest), Real(0));
    const NormalAt<Real> at = normal_at(bounded);
    const Real certain = choose(is_chosen(expert), Real(1), Real(0));
    return {choose(is_open, at.below, certain), choose(is_open, div(at.density, divisor), Real(0)), bounded};
  }

 private:
  [[nodiscard]] MOEB_INLINE Ranked best_behind(const TileT& tile, Ranked before) const {
    const auto is_behind = [&](int e, Real value) MOEB_LAMBDA {
      const bool ties = both(value == before.value, e > before.expert);
      return (static_cast<int>(value < before.value) | static_cast<int>(ties)) != 0;
    };
    const int experts = with_padding(tile, static_cast<int>(choice_.logits.columns));
    const Real best = strided_fold(
        tile, experts, -infinity<Real>,
        [&](int e) MOEB_LAMBDA {
          const Real value = row_.ranking(e);
          return choose(is_behind(e, value), value, -infinity<Real>);
        },
        [](Real a, Real b) MOEB_LAMBDA { return larger_of(a, b); });
    const std::int32_t expert = strided_fold(
        tile, experts, std::int32_t{max_experts},
        [&](int e) MOEB_LAMBDA {
          const Real value = row_.ranking(e);
          return choose(both(value == best, is_behind(e, value)), std::int32_t{e}, std::int32_t{max_experts});
        },
        [](std::int32_t a, std::int32_t b) MOEB_LAMBDA { return a < b ? a : b; });
    return {best, best > -infinity<Real> ? expert : max_experts};
  }

  const NoisyChoice& choice_;
  NoisyRow<Real, TileT> row_;
  Ranked last_{infinity<Real>, -1};
  Ranked next_{-infinity<Real>, max_experts};
};

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
