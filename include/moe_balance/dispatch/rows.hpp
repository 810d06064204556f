// A tile's way over rows of hidden states: 16 bytes a lane where rows are aligned for them; copying, scaling and clearing a row.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/past_cache.hpp>
#include <moe_balance/token/elements.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Sixteen bytes of a row.
template <class T>
struct alignas(16) Pack {
  static constexpr int size = 16 / static_cast<int>(sizeof(T));
  T value[size];
};

/// Whether every row of a matrix may be read in packs.
template <bool Const>
[[nodiscard]] inline bool rows_hold_packs(const BasicAnyMatrix<Const>& matrix) {
  const auto row_bytes = static_cast<std::uintptr_t>(matrix.stride) * size_of(matrix.type);
  return reinterpret_cast<std::uintptr_t>(matrix.data) % 16 == 0 && row_bytes % 16 == 0;
}

/// Columns that a lane takes at once: 16 bytes in a GPU's lane, 32 in a CPU's, which vectorises over them.
template <class TileT, class T>
inline constexpr int columns_at_once = TileT::slots_in_registers ? Pack<T>::size : 32;

/// N neighbouring elements as real numbers; aligned to 16 bytes where they are a pack.
template <int N, class Real, class T>
MOEB_INLINE void load_columns(const T* from, Real (&values)[N]) {
  if constexpr (N == Pack<T>::size) {
    const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from);
    MOEB_UNROLL
    for (int i = 0; i < N; ++i) values[i] = to_real(pack.value[i]);
  } else {
    for (int i = 0; i < N; ++i) values[i] = to_real(from[i]);
  }
}

template <int N, class Real, class T>
MOEB_INLINE void store_columns(T* to, const Real (&values)[N]) {
  if constexpr (N == Pack<T>::size) {
    Pack<T> pack;
    MOEB_UNROLL
    for (int i = 0; i < N; ++i) pack.value[i] = from_real<T>(values[i]);
    *reinterpret_cast<Pack<T>*>(to) = pack;
  } else {
    for (int i = 0; i < N; ++i) to[i] = from_real<T>(values[i]);
  }
}

template <int N>
using Columns = std::integral_constant<int, N>;

/// Calls f(first column, Columns<n>) for this lane's share of the columns: N at a time while there are N, then one by one.
template <int N, class TileT, class Function>
MOEB_INLINE void for_each_columns_of(const TileT& tile, std::int64_t columns, Function&& f) {
  const std::int64_t full = columns / N * N;
  for (std::int64_t c = std::int64_t{N} * tile.lane(); c < full; c += N * TileT::width) f(c, Columns<N>{});
  for (std::int64_t c = full + tile.lane(); c < columns; c += TileT::width) f(c, Columns<1>{});
}

/// Writes a pack that this call does not read again. On a GPU it leaves the cache first: rows are written once, and tokens read several times.
template <class T>
MOEB_INLINE void store_past_cache(T* to, const Pack<T>& pack) {
#if defined(__CUDA_ARCH__)
  uint4 bits;
  __builtin_memcpy(&bits, &pack, sizeof(bits));
  __stcs(reinterpret_cast<uint4*>(to), bits);
#else
  *reinterpret_cast<Pack<T>*>(to) = pack;
#endif
}

/// to[c] = change(from[c]) for a row of packs, of which a lane asks for several before it writes the first: memory is far away.
template <class T, class TileT, class Function>
MOEB_INLINE void move_packs(const TileT& tile, const T* from, T* to, std::int64_t columns, const Function& change) {
  constexpr std::int64_t stride = std::int64_t{Pack<T>::size} * TileT::width;
  const std::int64_t full = columns / Pack<T>::size * Pack<T>::size;
  for (std::int64_t c = std::int64_t{Pack<T>::size} * tile.lane(); c < full; c += dispatch_tuning.packs_at_once * stride) {
    Pack<T> packs[dispatch_tuning.packs_at_once] = {};
    MOEB_UNROLL
    for (int i = 0; i < dispatch_tuning.packs_at_once; ++i) {
      if (c + i * stride < full) packs[i] = *reinterpret_cast<const Pack<T>*>(from + c + i * stride);
    }
    MOEB_UNROLL
    for (int i = 0; i < dispatch_tuning.packs_at_once; ++i) {
      MOEB_UNROLL
      for (T& value : packs[i].value) value = change(value);
      if (c + i * stride < full) store_past_cache(to + c + i * stride, packs[i]);
    }
  }
  for (std::int64_t c = full + tile.lane(); c < columns; c += TileT::width) to[c] = change(from[c]);
}

/// for_each_columns_of, in packs where `packs` says that rows are aligned for them. A lane of the CPU needs no alignment.
template <class T, class TileT, class Function>
MOEB_INLINE void for_each_columns(const TileT& tile, std::int64_t columns, bool packs, Function&& f) {
  if constexpr (!TileT::slots_in_registers) {
    for_each_columns_of<columns_at_once<TileT, T>>(tile, columns, f);
  } else {
    if (packs)
      for_each_columns_of<columns_at_once<TileT, T>>(tile, columns, f);
    else
      for_each_columns_of<1>(tile, columns, f);
  }
}

/// Whether a CPU's lane writes rows of so many slots past its cache: they are more than stay there, and a line that is written in the cache is
/// read from memory first. `packs`: rows are aligned for that. Short rows have too many lines that are written in part.
template <class TileT>
[[nodiscard]] MOEB_INLINE bool writes_past_cache(const AnyMatrix& rows, std::int64_t slots, bool packs) {
  if constexpr (TileT::slots_in_registers || !cpu_stores_past_cache) {
    return false;
  } else {
    const std::int64_t row_bytes = rows.columns * static_cast<std::int64_t>(size_of(rows.type));
    const std::int64_t written = rows.rows < slots ? rows.rows : slots;  // the others are padding
    return packs && row_bytes >= dispatch_tuning.least_row_bytes_past_cache &&
           written > dispatch_tuning.bytes_in_cache / row_bytes;
  }
}

/// to[c] = change(from[c]) past the cache, for a CPU's lane and rows that are aligned for packs.
template <class T, class Function>
MOEB_INLINE void move_past_cache(const T* from, T* to, std::int64_t columns, const Function& change) {
  constexpr int count = 2 * Pack<T>::size;  // compilers keep so many in registers
  std::int64_t c = 0;
  for (; c + count <= columns; c += count) {
    alignas(16) T changed[count];
    for (int i = 0; i < count; ++i) changed[i] = change(from[c + i]);
    store_16_bytes_past_cache(to + c, changed);
    store_16_bytes_past_cache(to + c + Pack<T>::size, changed + Pack<T>::size);
  }
  for (; c < columns; ++c) to[c] = change(from[c]);
}

/// Rows of hidden states by index, as a typed pointer.
template <class T, bool Const>
[[nodiscard]] MOEB_INLINE auto row_pointer(const BasicAnyMatrix<Const>& matrix, std::int64_t row) {
  using Element = std::conditional_t<Const, const T, T>;
  return static_cast<Element*>(matrix.data) + row * matrix.stride;
}

/// Bits as they are: NaN payloads survive. `past_cache`, here and below: what writes_past_cache says.
template <class T, class TileT>
MOEB_INLINE void copy_row(const TileT& tile, T* to, const T* from, std::int64_t columns, bool packs,
                          bool past_cache = false) {
  const auto same = [](T value) MOEB_LAMBDA { return value; };
  if constexpr (TileT::slots_in_registers) {
    if (packs) return move_packs(tile, from, to, columns, same);
  } else {
    if (past_cache) return move_past_cache(from, to, columns, same);
  }
  for_each_columns<T>(tile, columns, packs, [&](std::int64_t c, auto n) MOEB_LAMBDA {
    constexpr int count = decltype(n)::value;
    if constexpr (count == 1)
      to[c] = from[c];
    else
      __builtin_memcpy(to + c, from + c, count * sizeof(T));
  });
}

template <class Real, class T, class TileT>
MOEB_INLINE void scale_row(const TileT& tile, T* to, const T* from, Real factor, std::int64_t columns, bool packs,
                           bool past_cache = false) {
  const auto scaled = [&](T value) MOEB_LAMBDA { return from_real<T>(mul(to_real(value), factor)); };
  if constexpr (TileT::slots_in_registers) {
    if (packs) return move_packs(tile, from, to, columns, scaled);
  } else {
    if (past_cache) return move_past_cache(from, to, columns, scaled);
  }
  for_each_columns<T>(tile, columns, packs, [&](std::int64_t c, auto n) MOEB_LAMBDA {
    Real values[decltype(n)::value];
    load_columns(from + c, values);
    MOEB_UNROLL
    for (int i = 0; i < decltype(n)::value; ++i) values[i] = mul(values[i], factor);
    store_columns(to + c, values);
  });
}

template <class Real, class T, class TileT>
MOEB_INLINE void clear_row(const TileT& tile, T* to, std::int64_t columns, bool packs) {
  for_each_columns<T>(tile, columns, packs, [&](std::int64_t c, auto n) MOEB_LAMBDA {
    const Real zeros[decltype(n)::value] = {};
    store_columns(to + c, zeros);
  });
}

MOEB_NAMESPACE_END
