// From the lanes that hold a token's chosen experts to the lanes that hold their slots.
#pragma once

#include <moe_balance/numeric/math.hpp>
#include <moe_balance/tile/layout.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// What a row of a Scatter holds between uses: the number whose addition changes nothing, not even -0.
template <class Real>
inline constexpr Real nothing_to_add = -Real(0);

/// A tile's way from the lanes that hold chosen experts to the lanes that hold their slots: a row of memory that the tile's lanes share, one value
/// for each expert up to the layout's capacity. Without one (null) every lane looks at every choice.
template <class Real>
struct Scatter {
  Real* row = nullptr;

  /// Adds each chosen expert's value to the slot that holds it; false, and nothing is added, where an expert was chosen twice.
  template <class TileT, class LayoutT, class ChosenT, int PerLane>
  [[nodiscard]] MOEB_INLINE bool add_to(const TileT& tile, const LayoutT& layout, const ChosenT& chosen,
                                        const Real (&value)[PerLane], Slots<Real, LayoutT>& slots) const {
    for_each_chosen(chosen, [&](int r) MOEB_LAMBDA { row[chosen.expert[r]] = mark(tile, r); });
    tile.barrier();
    int overwritten = 0;
    for_each_chosen(chosen,
                    [&](int r) MOEB_LAMBDA { overwritten |= static_cast<int>(row[chosen.expert[r]] != mark(tile, r)); });
    const bool distinct = !tile.any(overwritten != 0);
    if (distinct) {
      for_each_chosen(chosen, [&](int r) MOEB_LAMBDA { row[chosen.expert[r]] = value[r]; });
      tile.barrier();
      for_each_slot(layout, [&](int slot) MOEB_LAMBDA { slots[slot] = add(slots[slot], row[layout.expert(slot)]); });
      tile.barrier();
    }
    for_each_chosen(chosen, [&](int r) MOEB_LAMBDA { row[chosen.expert[r]] = nothing_to_add<Real>; });
    tile.barrier();
    return distinct;
  }

 private:
  template <class ChosenT, class Function>
  MOEB_INLINE static void for_each_chosen(const ChosenT& chosen, Function&& f) {
    MOEB_UNROLL
    for (int r = 0; r < ChosenT::per_lane; ++r) {
      if (chosen.expert[r] >= 0) f(r);
    }
  }
  /// A number that no other choice of the token has.
  template <class TileT>
  [[nodiscard]] MOEB_INLINE static Real mark(const TileT& tile, int r) {
    return static_cast<Real>(tile.lane() + TileT::width * r);
  }
};

/// Adds value k of the chosen experts to the slots that hold them. Empty slots hold expert -1, which no slot has.
template <int K, class TileT, class LayoutT, class ChosenT, class Real, int PerLane>
MOEB_INLINE void scatter_add(const TileT& tile, const LayoutT& layout, const ChosenT& chosen, const Real (&value)[PerLane],
                             const Scatter<Real>& scatter, Slots<Real, LayoutT>& slots) {
  if constexpr (LayoutT::in_registers) {
    if (scatter.row != nullptr && scatter.add_to(tile, layout, chosen, value, slots)) return;
  }
  MOEB_UNROLL
  for (int r = 0; r < PerLane; ++r) {
    const int sources = K - TileT::width * r < TileT::width ? K - TileT::width * r : TileT::width;
    MOEB_NO_UNROLL
    for (int source = 0; source < sources; ++source) {
      const std::int32_t expert = tile.shuffle(chosen.expert[r], source);
      const Real addend = tile.shuffle(value[r], source);
      if constexpr (LayoutT::in_registers) {
        MOEB_UNROLL
        for (int slot = 0; slot < LayoutT::capacity; ++slot) {
          slots[slot] = layout.is_expert(slot, expert) ? add(slots[slot], addend) : slots[slot];
        }
      } else if (expert >= 0) {
        slots[expert] = add(slots[expert], addend);
      }
    }
  }
}

MOEB_NAMESPACE_END
