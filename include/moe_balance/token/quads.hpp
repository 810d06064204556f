// A row's quads, which a lane of registers moves whole (16 bytes of float32) where rows are aligned for it. In line where the element type is looked up
// once per row; for kernels that serve any call rows of 16 bits go through functions that are called.
#pragma once

#include <moe_balance/tile/constants.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/token/elements.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T value[4];
};

/// Whether every row of a matrix may be read in quads.
template <bool Const>
[[nodiscard]] inline bool rows_hold_quads(const BasicAnyMatrix<Const>& matrix) {
  const auto address = reinterpret_cast<std::uintptr_t>(matrix.data);
  return address % (4 * size_of(matrix.type)) == 0 && matrix.stride % 4 == 0;
}

template <class Real, class T, class LayoutT>
MOEB_INLINE void load_whole_quad(const LayoutT& layout, const T* row, int slot, Slots<Real, LayoutT>& slots) {
  const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(row + layout.base() + LayoutT::offset(slot));
  MOEB_UNROLL
  for (int i = 0; i < 4; ++i) slots[slot + i] = to_real(quad.value[i]);
}

/// The four slots from `slot` on; padding becomes -inf, which takes no part in anything.
template <class Real, class T, class LayoutT>
MOEB_INLINE void load_quad(const LayoutT& layout, const T* row, bool quads, int slot, Slots<Real, LayoutT>& slots) {
  const T* from = row + layout.base() + LayoutT::offset(slot);
  if (LayoutT::whole_quads ? layout.holds_expert(slot) : quads && layout.holds_expert(slot + 3)) {
    load_whole_quad(layout, row, slot, slots);
  } else if constexpr (LayoutT::whole_quads) {
    MOEB_UNROLL
    for (int i = 0; i < 4; ++i) slots[slot + i] = -infinity<Real>;
  } else {
    MOEB_UNROLL
    for (int i = 0; i < 4; ++i) slots[slot + i] = layout.holds_expert(slot + i) ? to_real(from[i]) : -infinity<Real>;
  }
}

template <class Real, class T, class LayoutT>
MOEB_INLINE void store_whole_quad(const LayoutT& layout, T* row, int slot, const Slots<Real, LayoutT>& slots) {
  Quad<T> quad;
  MOEB_UNROLL
  for (int i = 0; i < 4; ++i) quad.value[i] = from_real<T>(slots[slot + i]);
  *reinterpret_cast<Quad<T>*>(row + layout.base() + LayoutT::offset(slot)) = quad;
}

template <class Real, class T, class LayoutT>
MOEB_INLINE void store_quad(const LayoutT& layout, T* row, bool quads, int slot, const Slots<Real, LayoutT>& slots) {
  if (LayoutT::whole_quads ? layout.holds_expert(slot) : quads && layout.holds_expert(slot + 3)) {
    store_whole_quad(layout, row, slot, slots);
  } else if constexpr (!LayoutT::whole_quads) {
    T* to = row + layout.base() + LayoutT::offset(slot);
    MOEB_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (layout.holds_expert(slot + i)) to[i] = from_real<T>(slots[slot + i]);
    }
  }
}

/// Four elements of 16 bits, as they are in memory.
using NarrowQuad = Quad<std::uint16_t>;

/// The narrow quad of the slots from `slot` on; what is padding has any bits.
template <class LayoutT>
[[nodiscard]] MOEB_INLINE NarrowQuad load_narrow_quad(const LayoutT& layout, const void* row, bool quads, int slot) {
  const auto* const from = static_cast<const std::uint16_t*>(row) + layout.base() + LayoutT::offset(slot);
  if (quads && layout.holds_expert(slot + 3)) return *reinterpret_cast<const NarrowQuad*>(from);
  NarrowQuad narrow;
  MOEB_UNROLL
  for (int i = 0; i < 4; ++i) narrow.value[i] = layout.holds_expert(slot + i) ? from[i] : std::uint16_t{0};
  return narrow;
}

/// As real numbers, those from `experts` on -inf. Called, not inlined: code of its own for each quad of each type is a quarter of what a file with a router
/// takes to compile.
MOEB_NOINLINE inline Quad<float> widened(NarrowQuad narrow, int experts, bool is_bfloat16) {
  Quad<float> result;
  if (is_bfloat16) {
    MOEB_UNROLL
    for (int i = 0; i < 4; ++i) result.value[i] = to_float(bfloat16{narrow.value[i]});
  } else {
    MOEB_UNROLL
    for (int i = 0; i < 4; ++i) result.value[i] = to_float(float16{narrow.value[i]});
  }
  MOEB_UNROLL
  for (int i = 0; i < 4; ++i) result.value[i] = i < experts ? result.value[i] : -infinity<float>;
  return result;
}
template <class Real, class LayoutT>
MOEB_INLINE void widen_quad(const LayoutT& layout, DataType type, const NarrowQuad& narrow, int slot,
                            Slots<Real, LayoutT>& slots) {
  const int experts = layout.experts - layout.base() - LayoutT::offset(slot);
  const Quad<float> quad = widened(narrow, experts, type == DataType::bfloat16);
  MOEB_UNROLL
  for (int i = 0; i < 4; ++i) slots[slot + i] = quad.value[i];
}

MOEB_NOINLINE inline void store_narrow_quad(std::uint16_t* to, Quad<float> values, int experts, bool quads,
                                            bool is_bfloat16) {
  NarrowQuad narrow;
  if (is_bfloat16) {
    MOEB_UNROLL
    for (int i = 0; i < 4; ++i) narrow.value[i] = to_bfloat16(values.value[i]).bits;
  } else {
    MOEB_UNROLL
    for (int i = 0; i < 4; ++i) narrow.value[i] = to_float16(values.value[i]).bits;
  }
  if (quads && experts >= 4) {
    *reinterpret_cast<NarrowQuad*>(to) = narrow;
  } else {
    MOEB_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (i < experts) to[i] = narrow.value[i];
    }
  }
}

/// load_quad of a row of any type, asked for every quad.
template <class Real, class LayoutT>
MOEB_INLINE void load_quad_of_type(const LayoutT& layout, DataType type, const void* row, bool quads, int slot,
                                   Slots<Real, LayoutT>& slots) {
  if constexpr (std::is_same_v<Real, double>) {
    load_quad(layout, static_cast<const double*>(row), quads, slot, slots);
  } else if (type == DataType::float32) {
    load_quad(layout, static_cast<const float*>(row), quads, slot, slots);
  } else {
    widen_quad(layout, type, load_narrow_quad(layout, row, quads, slot), slot, slots);
  }
}

/// The same of all quads, which are on their way together.
template <class Real, class LayoutT>
MOEB_INLINE void load_quads_of_type(const LayoutT& layout, DataType type, const void* row, bool quads,
                                    Slots<Real, LayoutT>& slots) {
  if (type == DataType::float32 || std::is_same_v<Real, double>) {
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4)
      load_quad_of_type(layout, DataType::float32, row, quads, slot, slots);
  } else {
    NarrowQuad narrow[LayoutT::capacity / 4];
    MOEB_UNROLL
    for (int i = 0; i < LayoutT::capacity / 4; ++i) narrow[i] = load_narrow_quad(layout, row, quads, 4 * i);
    MOEB_UNROLL
    for (int i = 0; i < LayoutT::capacity / 4; ++i) widen_quad(layout, type, narrow[i], 4 * i, slots);
  }
}
template <class Real, class LayoutT>
MOEB_INLINE void store_quad_of_type(const LayoutT& layout, DataType type, void* row, bool quads, int slot,
                                    const Slots<Real, LayoutT>& slots) {
  if constexpr (std::is_same_v<Real, double>) {
    store_quad(layout, static_cast<double*>(row), quads, slot, slots);
  } else if (type == DataType::float32) {
    store_quad(layout, static_cast<float*>(row), quads, slot, slots);
  } else {
    const int first = layout.base() + LayoutT::offset(slot);
    const Quad<float> quad{{slots[slot], slots[slot + 1], slots[slot + 2], slots[slot + 3]}};
    store_narrow_quad(static_cast<std::uint16_t*>(row) + first, quad, layout.experts - first, quads,
                      type == DataType::bfloat16);
  }
}

/// Calls f(row, slot) for every whole quad of a lane's registers. `row` is the row's address with its element type, which is looked up once per row.
template <class Real, class LayoutT, class Function>
MOEB_INLINE void for_each_quad_of_row(DataType type, void* data, std::int64_t offset, const Function& f) {
  with_element_type<Real>(type, [&](auto* tag) MOEB_LAMBDA {
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4) f(static_cast<decltype(tag)>(data) + offset, slot);
  });
}

MOEB_NAMESPACE_END
