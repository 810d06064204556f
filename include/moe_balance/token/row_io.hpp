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
  if (quads && layout.holds_expert(slot + 3)) {
    load_whole_quad(layout, row, slot, slots);
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
  if (quads && layout.holds_expert(slot + 3)) {
    store_whole_quad(layout, row, slot, slots);
  } else {
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

/// Calls f(element type tag, first slot) for every quad of a lane's registers. The type is looked up once per row; once per quad where a
/// lane holds so many that one unrolled row per type would not leave it enough registers.
template <class Real, class LayoutT, class Function>
MOEB_INLINE void for_each_typed_quad(DataType type, Function&& f) {
  if constexpr (LayoutT::rereads_logits) {
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4)
      with_element_type<Real>(type, [&](auto* tag) MOEB_LAMBDA { f(tag, slot); });
  } else {
    with_element_type<Real>(type, [&](auto* tag) MOEB_LAMBDA {
      MOEB_UNROLL
      for (int slot = 0; slot < LayoutT::capacity; slot += 4) f(tag, slot);
    });
  }
}

/// Calls whole(row, slot) for every quad of a lane's registers if the tier is full of experts, so that all quads are whole; else any(layout, row,
/// slot). `row` is the row's address with its element type.
template <class Real, class LayoutT, class Whole, class Any>
MOEB_INLINE void for_each_quad_of_row(const LayoutT& layout, DataType type, void* data, std::int64_t offset, bool quads,
                                      const Whole& whole, const Any& any) {
  const auto visit = [&](const auto& one) MOEB_LAMBDA {
    for_each_typed_quad<Real, LayoutT>(
        type, [&](auto* tag, int slot) MOEB_LAMBDA { one(static_cast<decltype(tag)>(data) + offset, slot); });
  };
  if (!LayoutT::rereads_logits && quads && !layout.has_padding()) {
    visit(whole);
  } else {
    const LayoutT own{LayoutT::rereads_logits ? layout.experts : opaque(layout.experts), layout.lane};
    visit([&](auto* row, int slot) MOEB_LAMBDA { any(own, row, slot); });
  }
}

template <class Real, class LayoutT>
MOEB_INLINE void load_row(const LayoutT& layout, const ConstAnyMatrix& matrix, std::int64_t row, bool quads,
                          Slots<Real, LayoutT>& slots) {
  const std::int64_t offset = row * matrix.stride;
  if constexpr (LayoutT::in_registers) {
    for_each_quad_of_row<Real>(
        layout, matrix.type, const_cast<void*>(matrix.data), offset, quads,
        [&](const auto* from, int slot) MOEB_LAMBDA { load_whole_quad(layout, from, slot, slots); },
        [&](const LayoutT& own, const auto* from, int slot) MOEB_LAMBDA { load_quad(own, from, quads, slot, slots); });
  } else {
    pad_last_block(layout, slots);
    with_element_type<Real>(matrix.type, [&](auto* tag) MOEB_LAMBDA {
      load_blocks(layout, static_cast<decltype(tag)>(const_cast<void*>(matrix.data)) + offset, slots);
    });
  }
}

/// Calls f(slot, logit) for every slot. A layout that does not keep logits reads them again here, a quad at a time: the barrier keeps the
/// compiler from having them all at once.
template <class Real, class TileT, class LayoutT, class Function>
MOEB_INLINE void for_each_logit(const TileT& tile, const LayoutT& layout, const ConstAnyMatrix& matrix, std::int64_t row,
                                bool quads, const Slots<Real, LayoutT>& logits, Function&& f) {
  if constexpr (LayoutT::rereads_logits) {
    const std::int64_t offset = row * matrix.stride;
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4) {
      Slots<Real, LayoutT> again;  // of which only this quad is ever used
      tile.barrier();
      with_element_type<Real>(matrix.type, [&](auto* tag) MOEB_LAMBDA {
        load_quad(layout, static_cast<decltype(tag)>(const_cast<void*>(matrix.data)) + offset, quads, slot, again);
      });
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
  if constexpr (LayoutT::in_registers) {
    for_each_quad_of_row<Real>(
        layout, matrix.type, matrix.data, offset, quads,
        [&](auto* to, int slot) MOEB_LAMBDA { store_whole_quad(layout, to, slot, slots); },
        [&](const LayoutT& own, auto* to, int slot) MOEB_LAMBDA { store_quad(own, to, quads, slot, slots); });
  } else {
    with_element_type<Real>(matrix.type, [&](auto* tag) MOEB_LAMBDA {
      store_blocks(layout, static_cast<decltype(tag)>(matrix.data) + offset, slots);
    });
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
