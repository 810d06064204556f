// The K largest keys of a token, in order: larger key first, equal keys by smaller expert id.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/tile/layout.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The running maxima of one lane: column c has the largest key of slots c, c + columns, c + 2 columns, ... and its first slot.
/// With one column it is simply the lane's best; a pick rescans only the column that lost its maximum.
template <class TileT, class LayoutT, class K>
struct LaneMaxima {
  static constexpr int columns = TileT::columns;
  K best[columns];
  std::int32_t slot[columns];

  MOEB_INLINE void scan(const LayoutT& layout, const Slots<K, LayoutT>& keys) {
    MOEB_UNROLL
    for (int c = 0; c < columns; ++c) {
      best[c] = excluded_key<K>;
      slot[c] = 0;
    }
    const int blocks = layout.blocks();
    for (int block = 0; block < blocks; ++block) {
      const int first = block * LayoutT::block_size;
      MOEB_UNROLL
      for (int i = 0; i < LayoutT::block_size; ++i) {
        const int c = i % columns;
        const K key = keys[first + i];
        const bool larger = key > best[c];
        best[c] = larger ? key : best[c];
        slot[c] = larger ? first + i : slot[c];
      }
    }
  }

  [[nodiscard]] MOEB_INLINE K maximum() const {
    K result = excluded_key<K>;
    MOEB_UNROLL
    for (int c = 0; c < columns; ++c) result = best[c] > result ? best[c] : result;
    return result;
  }

  /// The smallest slot whose key is `key`; the largest int where there is none. Slots ascend with expert ids.
  [[nodiscard]] MOEB_INLINE std::int32_t first_slot_with(K key) const {
    std::int32_t result = largest<std::int32_t>;
    MOEB_UNROLL
    for (int c = 0; c < columns; ++c) {
      // slot | (all bits but the sign) is the largest int: no conditional, so that the loop vectorises.
      const std::int32_t candidate = slot[c] | (best[c] == key ? 0 : largest<std::int32_t>);
      result = candidate < result ? candidate : result;
    }
    return result;
  }

  /// Excludes `taken` and finds its column's next best.
  MOEB_INLINE void remove(const LayoutT& layout, Slots<K, LayoutT>& keys, std::int32_t taken) {
    exclude(keys, taken);
    const int c = taken % columns;
    K next = excluded_key<K>;
    std::int32_t next_slot = 0;
    const int rows = LayoutT::in_registers ? LayoutT::capacity / columns : layout.blocks() * LayoutT::block_size / columns;
    MOEB_UNROLL
    for (int row = 0; row < rows; ++row) {
      const int i = row * columns + c;
      const bool larger = keys[i] > next;
      next = larger ? keys[i] : next;
      next_slot = larger ? i : next_slot;
    }
    best[c] = next;
    slot[c] = next_slot;
  }

 private:
  /// Registers cannot be indexed: every slot asks whether it is the one.
  MOEB_INLINE static void exclude(Slots<K, LayoutT>& keys, std::int32_t taken) {
    if constexpr (LayoutT::in_registers) {
      MOEB_UNROLL
      for (int i = 0; i < LayoutT::capacity; ++i) keys[i] = i == taken ? excluded_key<K> : keys[i];
    } else {
      keys[taken] = excluded_key<K>;
    }
  }
};

/// Calls emit(k, expert) for k = 0 to count - 1 on every lane. At least `count` keys must not be excluded. Overwrites the keys.
template <class TileT, class LayoutT, class K, class Emit>
MOEB_INLINE void select_k(const TileT& tile, const LayoutT& layout, Slots<K, LayoutT>& keys, int count, Emit&& emit) {
  constexpr std::int32_t none = largest<std::int32_t>;
  LaneMaxima<TileT, LayoutT, K> maxima;
  maxima.scan(layout, keys);
  MOEB_NO_UNROLL
  for (int k = 0; k < count; ++k) {
    const K best = tile.maximum(maxima.maximum());
    const std::int32_t slot = maxima.first_slot_with(best);
    const std::int32_t candidate = slot == none ? none : layout.expert(slot);
    const std::int32_t expert = tile.minimum(candidate);
    emit(k, expert);
    if (candidate == expert) maxima.remove(layout, keys, slot);
  }
}

MOEB_NAMESPACE_END
