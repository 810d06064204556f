// How one token's E values lie on the lanes of a tile.
// Experts come in quads of four neighbours (one 16-byte load); quad q belongs to lane q % width. Lane-local slot i of lane l is
// therefore expert 4 * (l + width * (i / 4)) + i % 4. For width 1 a slot is simply an expert.
#pragma once

#include <moe_balance/config.hpp>
#include <moe_balance/tile/opaque.hpp>

MOEB_NAMESPACE_BEGIN

/// `MaxExperts` bounds the experts; slots past the last expert are padding that every reader must skip or neutralise. `WholeQuads`: quads are experts or
/// padding, not both.
/// A tile whose lanes are GPU threads keeps slots in registers: all loops have constant bounds. A tile whose lane is a whole CPU
/// thread keeps them in memory and runs over blocks of `Tile::block_size` slots, as many as the experts need.
template <class Tile, int MaxExperts, bool WholeQuads = false>
struct Layout {
  static constexpr int width = Tile::width;
  static constexpr bool whole_quads = WholeQuads;  ///< see above
  static constexpr int capacity = MaxExperts / width;
  static constexpr bool in_registers = Tile::slots_in_registers;
  static constexpr int block_size = in_registers ? capacity : 32;
  /// Three rows of more than 32 values (logits, scores, keys or gradients) do not fit a GPU thread's 255 registers: logits are then read
  /// again, from cache, when they are needed again.
  static constexpr bool rereads_logits = in_registers && capacity > 32;
  static_assert(MaxExperts % (4 * width) == 0, "every lane holds whole quads");
  static_assert(capacity % block_size == 0, "the storage holds whole blocks");

  int experts;
  int lane;

  [[nodiscard]] MOEB_INLINE constexpr int blocks() const {
    return in_registers ? 1 : (experts + block_size - 1) / block_size;
  }
  /// Slot i is expert base() + offset(i). Offsets are constants wherever a slot is: questions about a slot are asked relative to base(), so
  /// that no lane keeps a register per slot for the expert it stands for.
  [[nodiscard]] MOEB_INLINE constexpr int base() const { return 4 * lane; }
  [[nodiscard]] MOEB_INLINE static constexpr int offset(int slot) {
    return width == 1 ? slot : 4 * width * (slot / 4) + slot % 4;
  }
  /// Whether any lane may have slots that stand for no expert.
  [[nodiscard]] MOEB_INLINE constexpr bool has_padding() const { return experts < MaxExperts; }
  [[nodiscard]] MOEB_INLINE constexpr int expert(int slot) const { return base() + offset(slot); }
  [[nodiscard]] MOEB_INLINE constexpr bool holds_expert(int slot) const { return offset(slot) < experts - base(); }
  [[nodiscard]] MOEB_INLINE constexpr bool is_expert(int slot, int expert) const { return offset(slot) == expert - base(); }
};

/// Bytes behind the slots of a lane that has them in memory: capacities are powers of two, and rows that lie whole pages apart share a few sets of
/// the first-level cache, which holds eight lines each. 17 lines put the next row behind this one's 256 values.
inline constexpr int bytes_between_rows = 17 * 64;

/// One value of type T for each slot of a lane.
template <class T, class Layout>
struct Slots {
  /// Values behind the capacity.
  static constexpr int spare = Layout::in_registers ? 0 : bytes_between_rows / static_cast<int>(sizeof(T));
  alignas(Layout::in_registers ? alignof(T) : 64) T values[Layout::capacity + spare];
  MOEB_INLINE constexpr T& operator[](int slot) MOEB_LAMBDA { return values[slot]; }
  MOEB_INLINE constexpr const T& operator[](int slot) const { return values[slot]; }
};

/// Calls f(slot) for every slot of the lane, padding included.
template <class Layout, class Function>
MOEB_INLINE void for_each_slot(const Layout& layout, Function&& f) {
  const int blocks = layout.blocks();
  for (int block = 0; block < blocks; ++block) {
    const int first = block * Layout::block_size;
    MOEB_UNROLL
    for (int i = 0; i < Layout::block_size; ++i) f(first + i);
  }
}

/// Sets every slot of the lane to 0.
template <class T, class Layout>
MOEB_INLINE void clear_slots(const Layout& layout, Slots<T, Layout>& slots) {
  if (layout.experts < 1) __builtin_unreachable();  // the router has checked; without this g++ warns of slots never set
  for_each_slot(layout, [&](int slot) MOEB_LAMBDA { slots[slot] = T(0); });
}

/// Calls f(slot) for every slot that stands for no expert.
template <class Layout, class Function>
MOEB_INLINE void for_each_padding_slot(const Layout& layout, Function&& f) {
  if constexpr (Layout::in_registers) {
    const Layout own{opaque(layout.experts), layout.lane};  // tiers full of experts need none of the comparisons
    constexpr int step = Layout::whole_quads ? 4 : 1;
    MOEB_UNROLL
    for (int first = 0; first < Layout::capacity; first += step) {
      const bool is_padding = !own.holds_expert(first);
      MOEB_UNROLL
      for (int slot = first; slot < first + step; ++slot) {
        if (is_padding) f(slot);
      }
    }
  } else {
    for (int slot = layout.experts; slot < layout.blocks() * Layout::block_size; ++slot) f(slot);
  }
}

MOEB_NAMESPACE_END
