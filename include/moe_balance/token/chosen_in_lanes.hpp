// The chosen experts of tokens side by side: the bits of the same steps on a token (weigh_scores, weight_gradient).
#pragma once

#include <moe_balance/token/lanes.hpp>
#include <moe_balance/token/row_io.hpp>
#include <moe_balance/token/scores.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

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

  /// As empty_unkept. `logit`: if OverSelected, what `score` was before weigh, and is again. `Ranking`: RankingKeys of what ranks.
  template <class Ranking, class TopKT>
  MOEB_INLINE void empty_unkept(const TopKT& top_k, const float* bias, const NumbersSideBySide* logit) {
    run_apart_narrow([&]() MOEB_LAMBDA {
      NumbersSideBySide before = {};
      NumbersSideBySide best;
      for (int i = 0; i < lane_count; ++i) best[i] = share(0, i);
      for (int k = 0; k < K; ++k) {
        for (int i = 0; i < lane_count; ++i) {
          const float value = share(k, i);
          const float ranked = OverSelected ? logit[k][i] : value;
          const float ranking = Ranking::with_bias(ranked, bias == nullptr ? 0.0f : bias[expert[k][i]]);
          const bool kept = is_kept(top_k, RankedExpert<float>{value, ranking, before[i], best[i], k});
          before[i] = add(before[i], value);
          expert[k][i] = kept ? expert[k][i] : -1;
          score[k][i] = kept ? ranked : 0.0f;
        }
      }
    });
  }

  /// arrived[k][i] = 1 where no earlier slot of the token has an expert of the same device, else 0, as for an empty slot. For up to 64 experts.
  MOEB_INLINE void find_arrivals(int experts_of_device, KeysSideBySide (&arrived)[K]) const {
    run_apart_narrow([&]() MOEB_LAMBDA {
      const std::int32_t reciprocal =
          65536 / experts_of_device + 1;  // above it by 1 at most: too little for 64 experts to see
      alignas(64) KeysSideBySide device[K];
      for (int k = 0; k < K; ++k) {
        for (int i = 0; i < lane_count; ++i) device[k][i] = expert[k][i] * reciprocal >> 16;
      }
      for (int k = 0; k < K; ++k) {
        KeysSideBySide is_first;
        for (int i = 0; i < lane_count; ++i) is_first[i] = is_used(k, i) ? 1 : 0;
        for (int other = 0; other < k; ++other) {
          for (int i = 0; i < lane_count; ++i) is_first[i] = device[k][i] == device[other][i] ? 0 : is_first[i];
        }
        for (int i = 0; i < lane_count; ++i) arrived[k][i] = is_first[i];
      }
    });
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

  /// Writes rows of zeros and value[k][i] for the chosen experts, added up where one was chosen twice. `zeros`: a row of the matrix's type, of zeros.
  template <class LayoutT>
  MOEB_INLINE void scatter(const AnyMatrix& matrix, const LayoutT& layout, const SegmentRows& rows, std::int64_t first,
                           const NumbersSideBySide (&value)[K], std::byte* zeros) const {
    run_apart_narrow([&]() MOEB_LAMBDA {
      if (chose_twice()) return scatter_sums(matrix, layout, rows, first, value);
      if (matrix.type == DataType::float32) {
        alignas(64) float element[K][lane_count];
        for (int k = 0; k < K; ++k) {
          for (int i = 0; i < lane_count; ++i) element[k][i] = add(0.0f, value[k][i]);
        }
        scatter_elements(matrix, layout, rows, first, element, zeros);
      } else {
        alignas(64) std::uint16_t element[K][lane_count];
        with_element_type<float>(matrix.type, [&](auto* type) MOEB_LAMBDA {
          using T = std::remove_pointer_t<decltype(type)>;
          if constexpr (sizeof(T) == sizeof(element[0][0])) {
            for (int k = 0; k < K; ++k) {
              for (int i = 0; i < lane_count; ++i) element[k][i] = from_real<T>(add(0.0f, value[k][i])).bits;
            }
          }
        });
        scatter_elements(matrix, layout, rows, first, element, zeros);
      }
    });
  }

 private:
  /// Of a token whose factor was found: the score, or the exponential's part of their sum.
  [[nodiscard]] MOEB_INLINE float share(int k, int i) const {
    return OverSelected ? mul(score[k][i], factor[i]) : score[k][i];
  }
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
    add_by_halves(all, partial);
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

  /// Whether a row has an expert twice.
  [[nodiscard]] MOEB_INLINE bool chose_twice() const {
    std::uint32_t twice[lane_count] = {};  // by their signs
    for (int k = 1; k < K; ++k) {
      for (int other = 0; other < k; ++other) {
        for (int i = 0; i < lane_count; ++i)
          twice[i] |= static_cast<std::uint32_t>(choose(expert[k][i] == expert[other][i], ~expert[k][i], 0));
      }
    }
    return has_fault(twice);
  }

  /// Rows of `zeros` with the elements, as bits, for the chosen experts.
  template <class LayoutT, class T>
  MOEB_INLINE void scatter_elements(const AnyMatrix& matrix, const LayoutT& layout, const SegmentRows& rows,
                                    std::int64_t first, const T (&element)[K][lane_count], std::byte* zeros) const {
    T* const built = reinterpret_cast<T*>(zeros);
    for (int i = 0; i < lane_count; ++i) {
      for (int k = 0; k < K; ++k) {
        if (is_used(k, i)) built[expert[k][i]] = element[k][i];
      }
      prefetch_row<RowUse::write>(layout, matrix, rows[first + i + 1]);
      copy_row(layout, built, static_cast<std::byte*>(matrix.data) + rows[first + i] * row_bytes(matrix));
      for (int k = 0; k < K; ++k) built[is_used(k, i) ? expert[k][i] : 0] = T{};
    }
  }

  /// scatter, with sums.
  template <class LayoutT>
  MOEB_INLINE void scatter_sums(const AnyMatrix& matrix, const LayoutT& layout, const SegmentRows& rows, std::int64_t first,
                                const NumbersSideBySide (&value)[K]) const {
    for (int i = 0; i < lane_count; ++i) {
      Slots<float, LayoutT> sum;
      clear_slots(layout, sum);
      for (int k = 0; k < K; ++k) {
        if (is_used(k, i)) sum[expert[k][i]] = add(sum[expert[k][i]], value[k][i]);
      }
      store_row(SerialTile{narrow_set}, layout, matrix, rows[first + i], false, sum);
    }
  }

  template <class LayoutT, class T>
  MOEB_INLINE static void copy_row(const LayoutT& layout, const T* from, std::byte* to) {
    constexpr int size = sizeof(T);
    constexpr int block = LayoutT::block_size * size;
    constexpr int part = 4 * size;
    const auto* const bytes = reinterpret_cast<const std::byte*>(from);
    const int end = layout.experts * size;
    int first = 0;
    for (; first + block <= end; first += block) __builtin_memcpy(to + first, bytes + first, block);
    for (; first + part <= end; first += part) __builtin_memcpy(to + first, bytes + first, part);
    for (; first < end; first += size) __builtin_memcpy(to + first, bytes + first, size);
  }
};

MOEB_NAMESPACE_END
