// The K largest keys of a token, in order: larger key first, equal keys by smaller expert id.
#pragma once

#include <moe_balance/numeric/select_from_memory.hpp>
#include <moe_balance/numeric/select_in_registers.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Calls emit(k, expert, key) for k = 0 to Count - 1 on the lane that has rank k. At least Count keys must not be excluded. Overwrites the keys.
/// `Packs`: by PackedSelection first, where that serves. `HasPacked`: that has failed already, so that this is rare.
template <int Count, bool Packs, bool HasPacked = false, class TileT, class LayoutT, class K, class Emit>
MOEB_INLINE void select_k(const TileT& tile, const LayoutT& layout, Slots<K, LayoutT>& keys, const Emit& emit) {
  if constexpr (LayoutT::in_registers) {
    select_in_registers<Count, Packs, HasPacked>(tile, layout, keys, emit);
  } else {
    MemorySelection<LayoutT, K, Count, 1> selection(InstructionSet::baseline);
    selection.look(layout, 0, keys);
    selection.find_thresholds();
    selection.collect(0, keys);
    selection.rank();
    selection.finish(0, keys);
    for (int k = 0; k < Count; ++k) emit(k, selection.slot(0, k), keys[selection.slot(0, k)]);
  }
}

MOEB_NAMESPACE_END
