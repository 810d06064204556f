// Some tokens side by side on a CPU thread: a vector has one expert's number, or one rank's, of each token. For few experts, whose numbers would fill a
// fraction of a vector. Everything between a token's numbers is between vectors then. This file has the vectors, and how rows become them.
#pragma once

#include <moe_balance/numeric/instruction_sets.hpp>
#include <moe_balance/numeric/select_in_lanes.hpp>
#include <moe_balance/numeric/transpose.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/token/elements_apart.hpp>
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

/// to[e * lane_count + r] = element e of row[r], for four rows.
MOEB_NO_EXECUTION_CHECK
MOEB_INLINE void load_four_rows(const float* const (&row)[4], int columns, float* to) {
  int e = 0;
  for (; e + 4 <= columns; e += 4, to += 4 * lane_count)
    transpose_block({row[0] + e, row[1] + e, row[2] + e, row[3] + e},
                    {to, to + lane_count, to + 2 * lane_count, to + 3 * lane_count});
  for (; e < columns; ++e, to += lane_count) {
    for (int r = 0; r < 4; ++r) to[r] = row[r][e];
  }
}

/// The other way.
MOEB_NO_EXECUTION_CHECK
MOEB_INLINE void store_four_rows(float* const (&row)[4], int columns, const float* from) {
  int e = 0;
  for (; e + 4 <= columns; e += 4, from += 4 * lane_count)
    transpose_block({from, from + lane_count, from + 2 * lane_count, from + 3 * lane_count},
                    {row[0] + e, row[1] + e, row[2] + e, row[3] + e});
  for (; e < columns; ++e, from += lane_count) {
    for (int r = 0; r < 4; ++r) row[r][e] = from[r];
  }
}

/// Calls f(row, i) with the rows rows[first + i], of elements of the matrix's type.
template <bool Const, class Function>
MOEB_INLINE void for_each_row_of(const BasicAnyMatrix<Const>& matrix, const SegmentRows& rows, std::int64_t first,
                                 const Function& f) {
  with_element_type<float>(matrix.type, [&](auto* type) MOEB_LAMBDA {
    using T = std::conditional_t<Const, const std::remove_pointer_t<decltype(type)>, std::remove_pointer_t<decltype(type)>>;
    for (int i = 0; i < lane_count; ++i) f(static_cast<T*>(matrix.data) + rows[first + i] * matrix.stride, i);
  });
}

/// Most elements of rows that lie side by side.
inline constexpr int most_columns_side_by_side = 64;
/// Elements of two bytes of such a row that are converted together: a vector of x86-64-v3.
inline constexpr int columns_together = 8;

/// value[e][i] = element e of row rows[first + i], for all elements of a row, most_columns_side_by_side or fewer.
MOEB_INLINE void load_side_by_side(const ConstAnyMatrix& matrix, const SegmentRows& rows, std::int64_t first,
                                   NumbersSideBySide* value) {
  run_apart_narrow([&]() MOEB_LAMBDA {
    const int columns = static_cast<int>(matrix.columns);
    float converted[lane_count][most_columns_side_by_side];
    const float* row[lane_count];
    for_each_row_of(matrix, rows, first, [&](auto* from, int i) MOEB_LAMBDA {
      if constexpr (std::is_same_v<decltype(from), const float*>) {
        row[i] = from;
      } else {
        load_elements<columns_together>(from, columns, converted[i]);
        row[i] = converted[i];
      }
    });
    for (int i = 0; i < lane_count; i += 4)
      load_four_rows({row[i], row[i + 1], row[i + 2], row[i + 3]}, columns, value[0] + i);
  });
}

/// The other way.
MOEB_INLINE void store_side_by_side(const AnyMatrix& matrix, const SegmentRows& rows, std::int64_t first,
                                    const NumbersSideBySide* value) {
  run_apart_narrow([&]() MOEB_LAMBDA {
    const int columns = static_cast<int>(matrix.columns);
    float real[lane_count][most_columns_side_by_side];
    float* row[lane_count];
    for_each_row_of(matrix, rows, first, [&](auto* to, int i) MOEB_LAMBDA {
      if constexpr (std::is_same_v<decltype(to), float*>)
        row[i] = to;
      else
        row[i] = real[i];
    });
    for (int i = 0; i < lane_count; i += 4)
      store_four_rows({row[i], row[i + 1], row[i + 2], row[i + 3]}, columns, value[0] + i);
    for_each_row_of(matrix, rows, first, [&](auto* to, int i) MOEB_LAMBDA {
      if constexpr (!std::is_same_v<decltype(to), float*>) store_elements<columns_together>(real[i], columns, to);
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
