// A token of noisy top-k gating: whom its experts have to surpass, and each one's chance to.
//   p_te = Phi((logits_te - w_te) / sigma_te)      d p_te / d logits_te = phi(...) / sigma_te = -d p_te / d w_te
// w_te is one of two noisy logits of the token: of the expert that was chosen last, or, for the chosen, of the first that was not.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/numeric/canonical_sum.hpp>
#include <moe_balance/numeric/math.hpp>
#include <moe_balance/numeric/normal.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/tile.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/token/row_io.hpp>

#include <cstdint>

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
  /// An expert and what it was ranked by.
  struct Ranked {
    Real value;  ///< the noisy logit
    int expert;  ///< its id
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

MOEB_NAMESPACE_END
