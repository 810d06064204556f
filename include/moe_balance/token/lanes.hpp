// Some tokens side by side on a CPU thread: a vector has one expert's number, or one rank's, of each token. For few experts, whose numbers would fill a
// fraction of a vector. Everything between a token's numbers is between vectors then. This file has the vectors, and how rows become them.
#pragma once

#include <moe_balance/numeric/instruction_sets.hpp>
#include <moe_balance/numeric/select_in_lanes.hpp>
#include <moe_balance/numeric/transpose.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/token/segments.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

using NumbersSideBySide = float[lane_count];  ///< one of each token; aligned to 64 bytes

/// to[j][i] = from[i][j] for four rows and columns.
__attribute__((always_inline)) inline void transpose_block(const float* const (&from)[4], float* const (&to)[4]) {
  using Four = float __attribute__((vector_size(16)));
  Four a, b, c, d;  // a loop over an array of them would go through memory
  __builtin_memcpy(&a, from[0], sizeof(a));
  __builtin_memcpy(&b, from[1], sizeof(b));
  __builtin_memcpy(&c, from[2], sizeof(c));
  __builtin_memcpy(&d, from[3], sizeof(d));
  transpose_four(a, b, c, d);
  __builtin_memcpy(to[0], &a, sizeof(a));
  __builtin_memcpy(to[1], &b, sizeof(b));
  __builtin_memcpy(to[2], &c, sizeof(c));
  __builtin_memcpy(to[3], &d, sizeof(d));
}

/// Elements of two bytes that are converted together.
inline constexpr int converted_together = 8;

/// to[e * lane_count + r] = element e of row[r], for four rows.
MOEB_NO_EXECUTION_CHECK
template <class T>
MOEB_INLINE void load_four_rows(const T* const (&row)[4], int columns, float* to) {
  int e = 0;
  if constexpr (std::is_same_v<T, float>) {
    for (; e + 4 <= columns; e += 4, to += 4 * lane_count)
      transpose_block({row[0] + e, row[1] + e, row[2] + e, row[3] + e},
                      {to, to + lane_count, to + 2 * lane_count, to + 3 * lane_count});
  } else {
    for (; e + converted_together <= columns; e += converted_together, to += converted_together * lane_count) {
      float some[4][converted_together];
      for (int r = 0; r < 4; ++r) {
        for (int i = 0; i < converted_together; ++i) some[r][i] = to_real(row[r][e + i]);
      }
      load_four_rows<float>({some[0], some[1], some[2], some[3]}, converted_together, to);
    }
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
      transpose_block({from, from + lane_count, from + 2 * lane_count, from + 3 * lane_count},
                      {row[0] + e, row[1] + e, row[2] + e, row[3] + e});
  } else {
    for (; e + converted_together <= columns; e += converted_together, from += converted_together * lane_count) {
      float some[4][converted_together];
      store_four_rows<float>({some[0], some[1], some[2], some[3]}, converted_together, from);
      for (int r = 0; r < 4; ++r) {
        for (int i = 0; i < converted_together; ++i) row[r][e + i] = from_real<T>(some[r][i]);
      }
    }
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

/// Adds `count` vectors, a power of two, by halves into the first.
MOEB_INLINE void add_by_halves(int count, NumbersSideBySide* value) {
  for (int half = count / 2; half >= 1; half /= 2) {
    for (int v = 0; v < half; ++v) {
      NumbersSideBySide sum;  // a compiler cannot tell that the two are not one
      for (int i = 0; i < lane_count; ++i) sum[i] = add(value[v][i], value[v + half][i]);
      for (int i = 0; i < lane_count; ++i) value[v][i] = sum[i];
    }
  }
}

/// Whether one of some or-ed fault_of's shows a fault.
[[nodiscard]] MOEB_INLINE bool has_fault(const std::uint32_t (&faults)[lane_count]) {
  std::uint32_t any = 0;
  for (int i = 0; i < lane_count; ++i) any |= faults[i];
  return any >> 31 != 0;
}

MOEB_NAMESPACE_END
