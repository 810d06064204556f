// Rows of elements of two bytes as real numbers, and back, on a CPU. Functions of their own, because in each loop that reads or writes rows they would be
// much of what a router takes to compile.
#pragma once

#include <moe_balance/numeric/instruction_sets.hpp>
#include <moe_balance/token/elements.hpp>

MOEB_NAMESPACE_BEGIN

/// to[i] = from[i] for i < count, `Together` at a time for as long as there are so many.
MOEB_NO_EXECUTION_CHECK
template <int Together, class T>
MOEB_INLINE void load_elements(const T* from, int count, float* to) {
  int first = 0;
  for (; first + Together <= count; first += Together) {
    T own[Together];  // a compiler cannot tell that `from` and `to` are not one
    float result[Together];
    __builtin_memcpy(own, from + first, sizeof(own));
    for (int i = 0; i < Together; ++i) result[i] = to_real(own[i]);
    __builtin_memcpy(to + first, result, sizeof(result));
  }
  for (; first < count; ++first) to[first] = to_real(from[first]);
}
/// The other way.
MOEB_NO_EXECUTION_CHECK
template <int Together, class T>
MOEB_INLINE void store_elements(const float* from, int count, T* to) {
  int first = 0;
  for (; first + Together <= count; first += Together) {
    float own[Together];
    T result[Together];
    __builtin_memcpy(own, from + first, sizeof(own));
    for (int i = 0; i < Together; ++i) result[i] = from_real<T>(own[i]);
    __builtin_memcpy(to + first, result, sizeof(result));
  }
  for (; first < count; ++first) to[first] = from_real<T>(from[first]);
}

/// Elements of a long row that are converted together: fewer are no loop to g++, which then finds no vectors.
inline constexpr int converted_together = 32;

/// load_elements of a long row, as a function of its own. `set`: of the loop that asks.
MOEB_NO_EXECUTION_CHECK
template <class T>
MOEB_EARLY_INLINE void load_elements_apart(InstructionSet set, const T* from, int count, float* to) {
  const auto load = [](const T* source, int columns, float* result)
                        MOEB_LAMBDA { load_elements<converted_together>(source, columns, result); };
  run_apart_for(set, load, from, count, to);
}
/// The other way.
MOEB_NO_EXECUTION_CHECK
template <class T>
MOEB_EARLY_INLINE void store_elements_apart(InstructionSet set, const float* from, int count, T* to) {
  const auto store = [](const float* source, int columns, T* result)
                         MOEB_LAMBDA { store_elements<converted_together>(source, columns, result); };
  run_apart_for(set, store, from, count, to);
}

MOEB_NAMESPACE_END
