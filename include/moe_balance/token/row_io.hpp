// Reading and writing a token's row, whatever its element type. Lanes whose slots are registers move quads; a lane whose slots are memory copies the row
// as it is.
#pragma once

#include <moe_balance/tile/constants.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/opaque.hpp>
#include <moe_balance/tile/prefetch.hpp>
#include <moe_balance/token/elements.hpp>
#include <moe_balance/token/elements_apart.hpp>
#include <moe_balance/token/quads.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// A lane that keeps its slots in memory, and elements as they are: whole blocks, then the experts left.
template <class Real, class LayoutT>
MOEB_INLINE void load_blocks(const LayoutT& layout, const Real* row, Slots<Real, LayoutT>& slots) {
  constexpr int block = LayoutT::block_size;
  if (layout.experts < 1) __builtin_unreachable();  // the router has checked; without this g++ warns of slots never set
  int first = 0;
  for (; first + block <= layout.experts; first += block)
    __builtin_memcpy(&slots[first], row + first, block * sizeof(Real));  // g++ may copy a loop's numbers one by one
  for (; first < layout.experts; ++first) slots[first] = row[first];
}

/// The last block, where experts fill only a part of it.
template <class Real, class LayoutT>
MOEB_INLINE void pad_last_block(const LayoutT& layout, Slots<Real, LayoutT>& slots) {
  constexpr int block = LayoutT::block_size;
  const int first = layout.experts / block * block;
  if (first == layout.experts) return;
  for (int i = 0; i < block; ++i) slots[first + i] = quiet_nan<Real>;
}

template <class Real, class LayoutT>
MOEB_INLINE void store_blocks(const LayoutT& layout, Real* row, const Slots<Real, LayoutT>& slots) {
  constexpr int block = LayoutT::block_size;
  int first = 0;
  for (; first + block <= layout.experts; first += block) __builtin_memcpy(row + first, &slots[first], block * sizeof(Real));
  for (; first < layout.experts; ++first) row[first] = slots[first];
}

template <class Real, class TileT, class LayoutT>
MOEB_INLINE void load_row([[maybe_unused]] const TileT& tile, const LayoutT& layout, const ConstAnyMatrix& matrix,
                          std::int64_t row, bool quads, Slots<Real, LayoutT>& slots) {
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
      const auto* const from = static_cast<decltype(tag)>(const_cast<void*>(matrix.data)) + offset;
      if constexpr (std::is_same_v<decltype(tag), Real*>)
        load_blocks(layout, from, slots);
      else
        load_elements_apart(tile.instructions, from, layout.experts, &slots[0]);
    });
  }
}

/// Whether rows are what most are, float32 that fills a layout of whole quads: asked once, in a kernel's register, it saves each row several questions.
template <class LayoutT>
[[nodiscard]] MOEB_INLINE std::int32_t are_plain_rows(const LayoutT& layout, DataType type) {
  return opaque(LayoutT::whole_quads && type == DataType::float32 && !layout.has_padding() ? 1 : 0);
}

/// load_row of the first row, `plain` if are_plain_rows says so.
template <class TileT, class LayoutT>
MOEB_INLINE void load_first_row(const TileT& tile, const LayoutT& layout, const ConstAnyMatrix& matrix, std::int32_t plain,
                                Slots<float, LayoutT>& slots) {
  if (plain != 0) {
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4)
      load_whole_quad(layout, static_cast<const float*>(matrix.data), slot, slots);
  } else {
    load_row(tile, layout, matrix, 0, true, slots);
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

template <class Real, class TileT, class LayoutT>
MOEB_INLINE void store_row([[maybe_unused]] const TileT& tile, const LayoutT& layout, const AnyMatrix& matrix,
                           std::int64_t row, bool quads, const Slots<Real, LayoutT>& slots) {
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
      auto* const to = static_cast<decltype(tag)>(matrix.data) + offset;
      if constexpr (std::is_same_v<decltype(tag), Real*>)
        store_blocks(layout, to, slots);
      else
        store_elements_apart(tile.instructions, &slots[0], layout.experts, to);
    });
  }
}

/// store_row of the first row, `plain` if are_plain_rows says so.
template <class TileT, class LayoutT>
MOEB_INLINE void store_first_row(const TileT& tile, const LayoutT& layout, const AnyMatrix& matrix, std::int32_t plain,
                                 const Slots<float, LayoutT>& slots) {
  if (plain != 0) {
    MOEB_UNROLL
    for (int slot = 0; slot < LayoutT::capacity; slot += 4)
      store_whole_quad(layout, static_cast<float*>(matrix.data), slot, slots);
  } else {
    store_row(tile, layout, matrix, 0, true, slots);
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
    load_row(tile, layout, matrix, row, quads, slots);
  }
}

MOEB_NAMESPACE_END
