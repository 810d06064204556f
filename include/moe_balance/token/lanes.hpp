// Some tokens side by side on a CPU thread: a vector has one expert's number, or one rank's, of each token. For few experts, whose numbers would fill a
// fraction of a vector. Everything between a token's numbers is between vectors then. All bits are those of the same steps on a row (scores.hpp,
// choice.hpp).
#pragma once

#include <moe_balance/numeric/instruction_sets.hpp>
#include <moe_balance/numeric/select_in_lanes.hpp>
#include <moe_balance/token/choice.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/token/row_io.hpp>
#include <moe_balance/token/scores.hpp>
#include <moe_balance/token/segments.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

using NumbersSideBySide = float[lane_count];  ///< one of each token; aligned to 64 bytes

/// to[j][i] = from[i][j] for four rows and columns.
__attribute__((always_inline)) inline void transpose_four(const float* const (&from)[4], float* const (&to)[4]) {
  using Four = float __attribute__((vector_size(16)));
  Four a, b, c, d;
  __builtin_memcpy(&a, from[0], sizeof(a));
  __builtin_memcpy(&b, from[1], sizeof(b));
  __builtin_memcpy(&c, from[2], sizeof(c));
  __builtin_memcpy(&d, from[3], sizeof(d));
  const Four ab_low = {a[0], b[0], a[1], b[1]};
  const Four ab_high = {a[2], b[2], a[3], b[3]};
  const Four cd_low = {c[0], d[0], c[1], d[1]};
  const Four cd_high = {c[2], d[2], c[3], d[3]};
  a = Four{ab_low[0], ab_low[1], cd_low[0], cd_low[1]};
  b = Four{ab_low[2], ab_low[3], cd_low[2], cd_low[3]};
  c = Four{ab_high[0], ab_high[1], cd_high[0], cd_high[1]};
  d = Four{ab_high[2], ab_high[3], cd_high[2], cd_high[3]};
  __builtin_memcpy(to[0], &a, sizeof(a));
  __builtin_memcpy(to[1], &b, sizeof(b));
  __builtin_memcpy(to[2], &c, sizeof(c));
  __builtin_memcpy(to[3], &d, sizeof(d));
}

/// to[e * lane_count + r] = element e of row[r], for four rows.
MOEB_NO_EXECUTION_CHECK
template <class T>
MOEB_INLINE void load_four_rows(const T* const (&row)[4], int columns, float* to) {
  int e = 0;
  if constexpr (std::is_same_v<T, float>) {
    for (; e + 4 <= columns; e += 4, to += 4 * lane_count)
      transpose_four({row[0] + e, row[1] + e, row[2] + e, row[3] + e},
                     {to, to + lane_count, to + 2 * lane_count, to + 3 * lane_count});
  }
  for (; e < columns; ++e, to += lane_count) {
    for (int r = 0; r < 4; ++r) to[r] = to_real(row[r][e]);
  }
}

/// The other way.
MOEB_NO_EXECUTION_CHECK
template <class T>
MOEB_INLINE void store_four_rows(T* const (&row)[4], int columns, const float* from) {
  int e = 0;
  if constexpr (std::is_same_v<T, float>) {
    for (; e + 4 <= columns; e += 4, from += 4 * lane_count)
      transpose_four({from, from + lane_count, from + 2 * lane_count, from + 3 * lane_count},
                     {row[0] + e, row[1] + e, row[2] + e, row[3] + e});
  }
  for (; e < columns; ++e, from += lane_count) {
    for (int r = 0; r < 4; ++r) row[r][e] = from_real<T>(from[r]);
  }
}

/// value[e][i] = element e of row rows[first + i], for all elements of a row.
MOEB_INLINE void load_side_by_side(const ConstAnyMatrix& matrix, const SegmentRows& rows, std::int64_t first,
                                   NumbersSideBySide* value) {
  run_apart_narrow([&]() MOEB_LAMBDA {
    with_element_type<float>(matrix.type, [&](auto* type) MOEB_LAMBDA {
      using T = std::remove_pointer_t<decltype(type)>;
      for (int i = 0; i < lane_count; i += 4) {
        const T* row[4];
        for (int r = 0; r < 4; ++r) row[r] = static_cast<const T*>(matrix.data) + rows[first + i + r] * matrix.stride;
        load_four_rows(row, static_cast<int>(matrix.columns), value[0] + i);
      }
    });
  });
}

/// The other way.
MOEB_INLINE void store_side_by_side(const AnyMatrix& matrix, const SegmentRows& rows, std::int64_t first,
                                    const NumbersSideBySide* value) {
  run_apart_narrow([&]() MOEB_LAMBDA {
    with_element_type<float>(matrix.type, [&](auto* type) MOEB_LAMBDA {
      using T = std::remove_pointer_t<decltype(type)>;
      for (int i = 0; i < lane_count; i += 4) {
        T* row[4];
        for (int r = 0; r < 4; ++r) row[r] = static_cast<T*>(matrix.data) + rows[first + i + r] * matrix.stride;
        store_four_rows(row, static_cast<int>(matrix.columns), value[0] + i);
      }
    });
  });
}

/// Folds `count` vectors, a power of two, by halves into the first.
template <class Function>
MOEB_INLINE void fold_side_by_side(int count, NumbersSideBySide* value, const Function& f) {
  for (int half = count / 2; half >= 1; half /= 2) {
    for (int v = 0; v < half; ++v) {
      NumbersSideBySide folded;  // a compiler cannot tell that the two are not one
      for (int i = 0; i < lane_count; ++i) folded[i] = f(value[v][i], value[v + half][i]);
      for (int i = 0; i < lane_count; ++i) value[v][i] = folded[i];
    }
  }
}

/// A bit, the highest, that shows whether a number is not finite: an exponent of ones carries into it.
[[nodiscard]] MOEB_INLINE std::uint32_t fault_of(float value) {
  constexpr std::uint32_t magnitude = 0x7fffffff;
  constexpr std::uint32_t to_sign = 0x00800000;
  return (static_cast<std::uint32_t>(bits_of(value)) & magnitude) + to_sign;
}
[[nodiscard]] MOEB_INLINE bool has_fault(const std::uint32_t (&faults)[lane_count]) {
  std::uint32_t any = 0;
  for (int i = 0; i < lane_count; ++i) any |= faults[i];
  return any >> 31 != 0;
}

/// Numbers of tokens with up to most_experts experts, and their softmax. Experts are one to a column of a canonical_sum then.
struct NumbersOfExperts {
  static constexpr int most_experts = 64;

  int experts;
  alignas(64) NumbersSideBySide logit[most_experts];
  alignas(64) NumbersSideBySide score[most_experts];
  alignas(64) NumbersSideBySide maximum;  ///< with `sum`, of the exponentials, what a softmax is made of
  alignas(64) NumbersSideBySide sum;

  /// result[i]: canonical_sum of the terms (e, i), whose padding has terms of its own, padding(i): a zero, which is seen where all else is -0.
  template <class Term, class Padding>
  MOEB_INLINE void add_up(const Term& term, const Padding& padding, NumbersSideBySide& result) const {
    alignas(64) NumbersSideBySide partial[most_experts / 4];
    int quads = 0;
    for (; 4 * quads + 4 <= experts; ++quads) {
      const int e = 4 * quads;
      for (int i = 0; i < lane_count; ++i)
        partial[quads][i] = add(add(term(e, i), term(e + 1, i)), add(term(e + 2, i), term(e + 3, i)));
    }
    if (4 * quads < experts) {
      alignas(64) NumbersSideBySide rest[4];
      for (int r = 0; r < 4; ++r) {
        for (int i = 0; i < lane_count; ++i) rest[r][i] = padding(i);
      }
      for (int e = 4 * quads; e < experts; ++e) {
        for (int i = 0; i < lane_count; ++i) rest[e % 4][i] = term(e, i);
      }
      for (int i = 0; i < lane_count; ++i) partial[quads][i] = add(add(rest[0][i], rest[1][i]), add(rest[2][i], rest[3][i]));
      ++quads;
    }
    int all = 1;
    while (all < quads) all *= 2;
    for (; quads < all; ++quads) {
      for (int i = 0; i < lane_count; ++i) partial[quads][i] = padding(i);
    }
    fold_side_by_side(all, partial, [](float a, float b) MOEB_LAMBDA { return add(a, b); });
    for (int i = 0; i < lane_count; ++i) result[i] = partial[0][i];
    if (experts % Layout<SerialTile, most_experts>::block_size != 0) {
      for (int i = 0; i < lane_count; ++i) result[i] = add(result[i], padding(i));
    }
  }
  /// The same where padding's terms are +0.
  template <class Term>
  MOEB_INLINE void add_up(const Term& term, NumbersSideBySide& result) const {
    add_up(
        term, [](int /*i*/) MOEB_LAMBDA { return 0.0f; }, result);
  }

  /// Whether all logits are finite. Fills the last quad of experts, so that it may be read whole.
  [[nodiscard]] MOEB_INLINE bool check_logits() {
    bool result = false;
    run_apart_narrow([&]() MOEB_LAMBDA {
      for (int e = experts; e % 4 != 0; ++e) __builtin_memcpy(logit[e], logit[0], sizeof(NumbersSideBySide));
      std::uint32_t faults[lane_count] = {};
      for (int e = 0; e < experts; e += 4) {
        for (int i = 0; i < lane_count; ++i)
          faults[i] |=
              fault_of(logit[e][i]) | fault_of(logit[e + 1][i]) | fault_of(logit[e + 2][i]) | fault_of(logit[e + 3][i]);
      }
      result = !has_fault(faults);
    });
    return result;
  }

  /// The softmax of logits that are finite.
  MOEB_INLINE void find_softmax() {
    alignas(64) NumbersSideBySide largest;
    for (int i = 0; i < lane_count; ++i) largest[i] = logit[0][i];
    for (int e = 0; e < experts; e += 4) {  // one at a time would wait for the one before, whose result is in memory
      for (int i = 0; i < lane_count; ++i) {
        const float upper = larger_of(logit[e][i], logit[e + 1][i]);
        const float lower = larger_of(logit[e + 2][i], logit[e + 3][i]);
        largest[i] = larger_of(larger_of(upper, lower), largest[i]);
      }
    }
    for (int i = 0; i < lane_count; ++i) largest[i] = add(largest[i], 0.0f);
    for (int i = 0; i < lane_count; ++i) maximum[i] = largest[i];
    for (int e = 0; e < experts; ++e) {
      for (int i = 0; i < lane_count; ++i) score[e][i] = exp_of_difference_or_zero(sub(logit[e][i], largest[i]));
    }
    add_up([&](int e, int i) MOEB_LAMBDA { return score[e][i]; }, sum);
    alignas(64) NumbersSideBySide inverse;
    for (int i = 0; i < lane_count; ++i) inverse[i] = reciprocal_in_range(sum[i]);
    for (int e = 0; e < experts; ++e) {
      for (int i = 0; i < lane_count; ++i) score[e][i] = mul(score[e][i], inverse[i]);
    }
  }
};

/// The logits and scores of tokens, for a scoring that is elementwise, or whose scores are softmax.
template <class Scoring>
class ScoresSideBySide : public NumbersOfExperts {
 public:
  static constexpr bool is_softmax = has_softmax_scores<Scoring>;
  static constexpr bool serves = is_softmax || !RowScoring<Scoring>;

  /// `set`: of the loop.
  MOEB_INLINE ScoresSideBySide(InstructionSet set, int expert_count) : instructions_(set) { experts = expert_count; }

  /// Reads rows; false if a logit is not finite.
  [[nodiscard]] MOEB_INLINE bool load(const ConstAnyMatrix& logits, const SegmentRows& rows, std::int64_t first) {
    load_side_by_side(logits, rows, first, logit);
    return check_logits();
  }

  MOEB_INLINE void find(const Scoring& scoring) {
    if constexpr (is_softmax) {
      run_apart(instructions_, [this]() MOEB_LAMBDA { find_softmax(); });
    } else {
      for (int e = 0; e < experts; ++e) {
        for (int i = 0; i < lane_count; ++i) score[e][i] = elementwise_score(scoring, logit[e][i]);
      }
    }
  }

  /// silence_non_finite.
  MOEB_INLINE void silence() {
    for (int e = 0; e < experts; ++e) {
      for (int i = 0; i < lane_count; ++i) score[e][i] = choose(is_finite(score[e][i]), score[e][i], 0.0f);
    }
  }

 private:
  InstructionSet instructions_;
};

/// The chosen experts of tokens, and how their scores become weights. `OverSelected`: weights are a softmax over the chosen logits, which `score` has first.
template <bool OverSelected, int K>
struct ChosenSideBySide {
  alignas(64) KeysSideBySide expert[K];    ///< of rank k; -1 for an empty slot
  alignas(64) NumbersSideBySide score[K];  ///< 0 for an empty slot
  alignas(64) NumbersSideBySide factor;    ///< a weight is score * factor * scaling_factor

  [[nodiscard]] MOEB_INLINE bool is_used(int k, int i) const { return expert[k][i] >= 0; }

  [[nodiscard]] MOEB_INLINE float weight(int k, int i, float scaling_factor) const {
    return mul(mul(score[k][i], factor[i]), scaling_factor);
  }

  /// Finds factors, as weigh_scores; false if a token's weights are not finite.
  [[nodiscard]] MOEB_INLINE bool weigh(const Weighting& weighting) {
    bool result = false;
    run_apart_narrow([&]() MOEB_LAMBDA {
      const float scaling = weighting.scaling_factor;  // a loop that wrote floats would not know that it stays
      if constexpr (OverSelected) find_softmax();
      alignas(64) NumbersSideBySide sum;
      add_up([&](int k, int i) MOEB_LAMBDA { return score[k][i]; }, sum);
      std::uint32_t faults[lane_count];
      for (int i = 0; i < lane_count; ++i) faults[i] = fault_of(sum[i]);
      for (int i = 0; i < lane_count; ++i) factor[i] = 1.0f;
      if (is_divided(weighting)) {
        for (int i = 0; i < lane_count; ++i) factor[i] = reciprocal_or_nan(add(sum[i], 1e-20f));
      }
      for (int k = 0; k < K; ++k) {
        for (int i = 0; i < lane_count; ++i) faults[i] |= fault_of(weight(k, i, scaling));
      }
      result = !has_fault(faults);
    });
    return result;
  }

  /// weight_gradient: from dL/dweight to dL/dscore, or to dL/dlogit if OverSelected.
  MOEB_INLINE void find_gradient(const Weighting& weighting, NumbersSideBySide (&grad)[K]) const {
    run_apart_narrow([&]() MOEB_LAMBDA {
      const float scaling = weighting.scaling_factor;
      alignas(64) NumbersSideBySide mean = {};
      if (is_divided(weighting))
        add_up([&](int k, int i) MOEB_LAMBDA { return mul(grad[k][i], mul(score[k][i], factor[i])); }, mean);
      for (int k = 0; k < K; ++k) {
        NumbersSideBySide result;
        for (int i = 0; i < lane_count; ++i) {
          const float centred = mul(mul(scaling, factor[i]), sub(grad[k][i], mean[i]));
          result[i] = choose(is_used(k, i), OverSelected ? mul(score[k][i], centred) : centred, 0.0f);
        }
        for (int i = 0; i < lane_count; ++i) grad[k][i] = result[i];
      }
    });
  }

  /// value[k][i] = the chosen expert's element of row rows[first + i], 0 for an empty slot; false if one is not finite.
  [[nodiscard]] MOEB_INLINE bool gather(const ConstAnyMatrix& matrix, const SegmentRows& rows, std::int64_t first,
                                        NumbersSideBySide (&value)[K]) const {
    bool result = false;
    run_apart_narrow([&]() MOEB_LAMBDA {
      with_element_type<float>(matrix.type, [&](auto* type) MOEB_LAMBDA {
        using T = std::remove_pointer_t<decltype(type)>;
        for (int i = 0; i < lane_count; ++i) {
          const T* const row = static_cast<const T*>(matrix.data) + rows[first + i] * matrix.stride;
          for (int k = 0; k < K; ++k) value[k][i] = is_used(k, i) ? to_real(row[expert[k][i]]) : 0.0f;
        }
      });
      std::uint32_t faults[lane_count] = {};
      for (int k = 0; k < K; ++k) {
        for (int i = 0; i < lane_count; ++i) faults[i] |= fault_of(value[k][i]);
      }
      result = !has_fault(faults);
    });
    return result;
  }

  /// Writes rows of zeros and value[k][i] for the chosen experts, added up where one was chosen twice. `empty` is a row of zeros.
  template <class LayoutT>
  MOEB_INLINE void scatter(const AnyMatrix& matrix, const LayoutT& layout, const SegmentRows& rows, std::int64_t first,
                           const NumbersSideBySide (&value)[K], Slots<float, LayoutT>& empty) const {
    run_apart_narrow([&]() MOEB_LAMBDA {
      for (int i = 0; i < lane_count; ++i) {
        // Floats go where they belong: vectors that read a row which numbers have just been written to would wait for those.
        const bool is_float = matrix.type == DataType::float32;
        float* const row = is_float ? static_cast<float*>(matrix.data) + rows[first + i] * matrix.stride : &empty[0];
        if (is_float) clear_row(layout, row);
        for (int k = 0; k < K; ++k) {
          if (is_used(k, i)) row[expert[k][i]] = add(row[expert[k][i]], value[k][i]);
        }
        if (is_float) continue;
        store_row(layout, matrix, rows[first + i], false, empty);
        for (int k = 0; k < K; ++k) empty[is_used(k, i) ? expert[k][i] : 0] = 0.0f;
      }
    });
  }

 private:
  [[nodiscard]] MOEB_INLINE static bool is_divided(const Weighting& weighting) {
    return OverSelected || (weighting.renormalise && K > 1);
  }

  /// sum_over_chosen of the terms (k, i).
  template <class Term>
  MOEB_INLINE void add_up(const Term& term, NumbersSideBySide& result) const {
    constexpr int all = K > 16 ? 32 : K > 8 ? 16 : K > 4 ? 8 : K > 2 ? 4 : K;
    alignas(64) NumbersSideBySide partial[all];
    for (int k = 0; k < K; ++k) {
      for (int i = 0; i < lane_count; ++i) partial[k][i] = add(0.0f, term(k, i));
    }
    for (int k = K; k < all; ++k) {
      for (int i = 0; i < lane_count; ++i) partial[k][i] = 0.0f;
    }
    fold_side_by_side(all, partial, [](float a, float b) MOEB_LAMBDA { return add(a, b); });
    for (int i = 0; i < lane_count; ++i) result[i] = partial[0][i];
  }

  /// Exponentials in the place of logits.
  MOEB_INLINE void find_softmax() {
    alignas(64) NumbersSideBySide largest;
    for (int i = 0; i < lane_count; ++i) largest[i] = -infinity<float>;
    for (int k = 0; k < K; ++k) {
      for (int i = 0; i < lane_count; ++i)
        largest[i] = larger_of(choose(is_used(k, i), score[k][i], -infinity<float>), largest[i]);
    }
    for (int i = 0; i < lane_count; ++i) largest[i] = add(largest[i], 0.0f);
    for (int k = 0; k < K; ++k) {
      for (int i = 0; i < lane_count; ++i)
        score[k][i] = choose(is_used(k, i), exp_of_difference(sub(score[k][i], largest[i])), 0.0f);
    }
  }

  template <class LayoutT>
  MOEB_INLINE static void clear_row(const LayoutT& layout, float* row) {
    constexpr int block = LayoutT::block_size;
    int first = 0;
    for (; first + block <= layout.experts; first += block) __builtin_memset(row + first, 0, block * sizeof(float));
    for (; first < layout.experts; ++first) row[first] = 0.0f;
  }
};

MOEB_NAMESPACE_END
