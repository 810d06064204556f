// Reading and writing a token's row, whatever its element type. Lanes whose slots are registers move whole quads (16 bytes of
// float32) where rows are aligned for it; a lane whose slots are memory copies the row as it is.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/convert.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/prefetch.hpp>
#include <moe_balance/views.hpp>

#include <cstddef>
#include <cstdint>

#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T value[4];
};

[[nodiscard]] MOEB_INLINE float to_real(float value) {
  return value;
}
[[nodiscard]] MOEB_INLINE double to_real(double value) {
  return value;
}
[[nodiscard]] MOEB_INLINE float to_real(bfloat16 value) {
  return to_float(value);
}
[[nodiscard]] MOEB_INLINE float to_real(float16 value) {
  return to_float(value);
}

template <class T, class Real>
[[nodiscard]] MOEB_INLINE T from_real(Real value) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return to_bfloat16(static_cast<float>(value));
  else if constexpr (std::is_same_v<T, float16>)
    return to_float16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

/// Calls f with a null pointer of the element type; Real = double means that only float64 is possible.
template <class Real, class Function>
MOEB_INLINE void with_element_type(DataType type, Function&& f) {
  if constexpr (std::is_same_v<Real, double>) {
    f(static_cast<double*>(nullptr));
  } else {
    switch (type) {
      case DataType::bfloat16:
        return f(static_cast<bfloat16*>(nullptr));
      case DataType::float16:
        return f(static_cast<float16*>(nullptr));
      default:
        return f(static_cast<float*>(nullptr));
    }
  }
}

/// Whether every row of a matrix may be read in quads.
template <bool Const>
[[nodiscard]] inline bool rows_hold_quads(const BasicAnyMatrix<Const>& matrix) {
  const auto address = reinterpret_cast<std::uintptr_t>(matrix.data);
  return address % (4 * size_of(matrix.type)) == 0 && matrix.stride % 4 == 0;
}

template <bool Const>
[[nodiscard]] MOEB_INLINE std::int64_t row_bytes(const BasicAnyMatrix<Const>& matrix) {
  return matrix.stride * static_cast<std::int64_t>(size_of(matrix.type));
}

/// One element, as a real number.
template <class Real>
[[nodiscard]] MOEB_INLINE Real load_element(const ConstAnyMatrix& matrix, std::int64_t row, std::int64_t column) {
  Real result{};
  with_element_type<Real>(matrix.type, [&](auto* type) MOEB_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    result = to_real(static_cast<const T*>(matrix.data)[row * matrix.stride + column]);
  });
  return result;
}

template <class Real>
MOEB_INLINE void store_element(const AnyMatrix& matrix, std::int64_t row, std::int64_t column, Real value) {
  with_element_type<Real>(matrix.type, [&](auto* type) MOEB_LAMBDA {
    using T = std::remove_pointer_t<decltype(type)>;
    static_cast<T*>(matrix.data)[row * matrix.stride + column] = from_real<T>(value);
  });
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

/// A lane that keeps its slots in memory: whole blocks, then the experts left.
template <class Real, class T, class LayoutT>
MOEB_INLINE void load_blocks(const LayoutT& layout, const T* row, Slots<Real, LayoutT>& slots) {
  constexpr int block = LayoutT::block_size;
  if (layout.experts < 1) __builtin_unreachable();  // the router has checked; without this g++ warns of slots never set
  int first = 0;
  for (; first + block <= layout.experts; first += block) {
    for (int i = 0; i < block; ++i) slots[first + i] = to_real(row[first + i]);
  }
  for (; first < layout.experts; ++first) slots[first] = to_real(row[first]);
}

/// The last block, where experts fill only a part of it.
template <class Real, class LayoutT>
MOEB_INLINE void pad_last_block(const LayoutT& layout, Slots<Real, LayoutT>& slots) {
  constexpr int block = LayoutT::block_size;
  const int first = layout.experts / block * block;
  if (first == layout.experts) return;
  for (int i = 0; i < block; ++i) slots[first + i] = quiet_nan<Real>;
}

template <class Real, class T, class LayoutT>
MOEB_INLINE void store_blocks(const LayoutT& layout, T* row, const Slots<Real, LayoutT>& slots) {
  constexpr int block = LayoutT::block_size;
  int first = 0;
  for (; first + block <= layout.experts; first += block) {
    for (int i = 0; i < block; ++i) row[first + i] = from_real<T>(slots[first + i]);
  }
  for (; first < layout.experts; ++first) row[first] = from_real<T>(slots[first]);
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

template <class Real, class LayoutT>
MOEB_INLINE void load_row(const LayoutT& layout, const ConstAnyMatrix& matrix, std::int64_t row, bool quads,
                          Slots<Real, LayoutT>& slots) {
  const std::int64_t offset = row * matrix.stride;
  if constexpr (LayoutT::whole_quads) {
    for_each_quad_of_row<Real, LayoutT>(matrix.type, const_cast<void*>(matrix.data), offset,
                                        [&](const auto* from, int slot)
                                            MOEB_LAMBDA { load_quad(layout, from, true, slot, slots); });
  } else if constexpr (LayoutT::in_registers) {
    const void* const from = static_cast<const std::byte*>(matrix.data) + row * row_bytes(matrix);
    load_quads_of_type(layout, matrix.type, from, quads, slots);
  } else {
    pad_last_block(layout, slots);
    with_element_type<Real>(matrix.type, [&](auto* tag) MOEB_LAMBDA {
      load_blocks(layout, static_cast<decltype(tag)>(const_cast<void*>(matrix.data)) + offset, slots);
    });
  }
}

/// Whether rows are what most are, float32 that fills a layout of whole quads: asked once, in a kernel's register, it saves each row several questions.
template <class LayoutT>
[[nodiscard]] MOEB_INLINE std::int32_t are_plain_rows(const LayoutT& layout, DataType type) {
  return opaque(LayoutT::whole_quads && type == DataType::float32 && !layout.has_padding() ? 1 : 0);
}

/// load_row of the first row, `plain` if are_plain_rows says so.
template <class LayoutT>
MOEB_INLINE void load_first_row(const LayoutT& layout, const ConstAnyMatrix& matrix, std::int32_t plain,
                                Slots<float, LayoutT>& slots) {
  if (plain != 0) {
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4)
      load_whole_quad(layout, static_cast<const float*>(matrix.data), slot, slots);
  } else {
    load_row(layout, matrix, 0, true, slots);
  }
}

/// Calls f(slot, logit) for every slot. A layout that does not keep logits reads them again here, a quad at a time: the barrier keeps the
/// compiler from having them all at once.
template <class Real, class TileT, class LayoutT, class Function>
MOEB_INLINE void for_each_logit(const TileT& tile, const LayoutT& layout, const ConstAnyMatrix& matrix, std::int64_t row,
                                bool quads, const Slots<Real, LayoutT>& logits, Function&& f) {
  if constexpr (LayoutT::rereads_logits) {
    const void* const from = static_cast<const std::byte*>(matrix.data) + row * row_bytes(matrix);
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4) {
      Slots<Real, LayoutT> again;  // of which only this quad is ever used
      tile.barrier();
      load_quad_of_type(layout, matrix.type, from, quads, slot, again);
      MOEB_UNROLL
      for (int i = 0; i < 4; ++i) f(slot + i, again[slot + i]);
    }
  } else {
    for_each_slot(layout, [&](int slot) MOEB_LAMBDA { f(slot, logits[slot]); });
  }
}

template <class Real, class LayoutT>
MOEB_INLINE void store_row(const LayoutT& layout, const AnyMatrix& matrix, std::int64_t row, bool quads,
                           const Slots<Real, LayoutT>& slots) {
  const std::int64_t offset = row * matrix.stride;
  if constexpr (LayoutT::whole_quads) {
    for_each_quad_of_row<Real, LayoutT>(matrix.type, matrix.data, offset,
                                        [&](auto* to, int slot) MOEB_LAMBDA { store_quad(layout, to, true, slot, slots); });
  } else if constexpr (LayoutT::in_registers) {
    void* const to = static_cast<std::byte*>(matrix.data) + row * row_bytes(matrix);
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4) store_quad_of_type(layout, matrix.type, to, quads, slot, slots);
  } else {
    with_element_type<Real>(matrix.type, [&](auto* tag) MOEB_LAMBDA {
      store_blocks(layout, static_cast<decltype(tag)>(matrix.data) + offset, slots);
    });
  }
}

/// store_row of the first row, `plain` if are_plain_rows says so.
template <class LayoutT>
MOEB_INLINE void store_first_row(const LayoutT& layout, const AnyMatrix& matrix, std::int32_t plain,
                                 const Slots<float, LayoutT>& slots) {
  if (plain != 0) {
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4)
      store_whole_quad(layout, static_cast<float*>(matrix.data), slot, slots);
  } else {
    store_row(layout, matrix, 0, true, slots);
  }
}

/// Asks for a row of so many bytes at an address, lanes of a GPU for a sector each.
template <RowUse use, class LayoutT>
MOEB_EARLY_INLINE void prefetch_bytes(const LayoutT& layout, unsigned bytes, std::uintptr_t address) {
  if constexpr (LayoutT::in_registers) {
    constexpr unsigned sector = 32;
    constexpr unsigned most_bytes = LayoutT::capacity * LayoutT::width * sizeof(float);
    MOEB_UNROLL
    for (unsigned i = 0; i < most_bytes; i += sector * LayoutT::width) {
      const unsigned own = i + sector * static_cast<unsigned>(layout.lane);
      if (own < bytes) prefetch<use>(address + own);
    }
  } else {
    constexpr unsigned cache_line = 64;
    for (unsigned i = 0; i < bytes; i += cache_line) prefetch<use>(address + i);
  }
}

/// Asks for a row of elements of a type at an address.
template <RowUse use, class LayoutT>
MOEB_EARLY_INLINE void prefetch_row_at(const LayoutT& layout, DataType type, std::uintptr_t address) {
  prefetch_bytes<use>(layout, static_cast<unsigned>(layout.experts * static_cast<int>(size_of(type))), address);
}

/// Asks for a row ahead of its use; does nothing else, and no harm past the last row.
template <RowUse use, class LayoutT, bool Const>
MOEB_EARLY_INLINE void prefetch_row(const LayoutT& layout, const BasicAnyMatrix<Const>& matrix, std::int64_t row) {
  const auto first = reinterpret_cast<std::uintptr_t>(matrix.data);
  prefetch_row_at<use>(layout, matrix.type, first + static_cast<std::uintptr_t>(row * row_bytes(matrix)));
}

/// Asks for the logits of a token's K chosen experts, wherever an empty slot's -1 leads.
template <int K>
MOEB_EARLY_INLINE void prefetch_chosen(const ConstAnyMatrix& logits, const MatrixView<const std::int32_t>& experts,
                                       std::int64_t token) {
  const auto element = static_cast<std::int64_t>(size_of(logits.type));
  const auto first = reinterpret_cast<std::uintptr_t>(logits.data);
  for (int k = 0; k < K; ++k) {
    const std::int64_t expert = experts.data[token * experts.stride + k];
    prefetch<RowUse::read>(first + static_cast<std::uintptr_t>((token * logits.stride + expert) * element));
  }
}

/// Loads the row again where the layout does not keep it in registers meanwhile.
template <class Real, class TileT, class LayoutT>
MOEB_INLINE void reload_row(const TileT& tile, const LayoutT& layout, const ConstAnyMatrix& matrix, std::int64_t row,
                            bool quads, Slots<Real, LayoutT>& slots) {
  if constexpr (LayoutT::rereads_logits) {
    tile.barrier();  // also keeps the compiler from merging this load with the first
    load_row(layout, matrix, row, quads, slots);
  }
}

MOEB_NAMESPACE_END
