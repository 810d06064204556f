// The K largest keys of a token whose lanes keep theirs in registers: a round takes the tile's largest key, then the smallest expert that has it.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/packed_selection.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/tile.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// A lane's best keys that are not taken, equal ones by their slots' order, and the offsets (Layout) of their slots. The second is excluded where
/// it is not known, or is none.
template <class K>
struct TwoBest {
  K first;
  K second;
  std::int32_t first_offset;
  std::int32_t second_offset;
};

/// Of two neighbours' slots. In pairs, a tournament: that takes fewer comparisons than offering each key to the best two so far.
template <class LayoutT, class K>
[[nodiscard]] MOEB_INLINE TwoBest<K> best_of_pair(const Slots<K, LayoutT>& keys, int slot) {
  const bool leads = keys[slot + 1] > keys[slot];
  TwoBest<K> best;
  best.first = leads ? keys[slot + 1] : keys[slot];
  best.second = leads ? keys[slot] : keys[slot + 1];
  best.first_offset = leads ? LayoutT::offset(slot + 1) : LayoutT::offset(slot);
  best.second_offset = leads ? LayoutT::offset(slot) : LayoutT::offset(slot + 1);
  return best;
}

/// `a` has the smaller slots.
template <class K>
[[nodiscard]] MOEB_INLINE TwoBest<K> best_of_both(const TwoBest<K>& a, const TwoBest<K>& b) {
  const bool leads = b.first > a.first;
  const K lower = leads ? a.first : a.second;
  const K upper = leads ? b.second : b.first;
  const bool upper_follows = upper > lower;
  TwoBest<K> best;
  best.first = leads ? b.first : a.first;
  best.first_offset = leads ? b.first_offset : a.first_offset;
  best.second = upper_follows ? upper : lower;
  const std::int32_t lower_offset = leads ? a.first_offset : a.second_offset;
  const std::int32_t upper_offset = leads ? b.second_offset : b.first_offset;
  best.second_offset = upper_follows ? upper_offset : lower_offset;
  return best;
}

/// Of `Count` slots from `First` on.
template <int First, int Count, class LayoutT, class K>
[[nodiscard]] MOEB_INLINE TwoBest<K> two_best(const Slots<K, LayoutT>& keys) {
  static_assert(Count >= 2 && (Count & (Count - 1)) == 0);
  if constexpr (Count == 2)
    return best_of_pair(keys, First);
  else
    return best_of_both(two_best<First, Count / 2>(keys), two_best<First + Count / 2, Count / 2>(keys));
}

/// The same by one key after the other, which takes more comparisons and fewer registers.
template <class LayoutT, class K>
[[nodiscard]] MOEB_INLINE TwoBest<K> two_best_in_turn(const Slots<K, LayoutT>& keys) {
  TwoBest<K> best{excluded_key<K>, excluded_key<K>, 0, 0};
  MOEB_UNROLL
  for (int i = 0; i < LayoutT::capacity; ++i) {
    const bool leads = keys[i] > best.first;
    const bool follows = keys[i] > best.second;
    best.second = leads ? best.first : follows ? keys[i] : best.second;
    best.second_offset = leads ? best.first_offset : follows ? LayoutT::offset(i) : best.second_offset;
    best.first = leads ? keys[i] : best.first;
    best.first_offset = leads ? LayoutT::offset(i) : best.first_offset;
  }
  return best;
}

/// A lane's two best. `Rare`: not what most tokens do.
template <bool Rare, class LayoutT, class K>
[[nodiscard]] MOEB_INLINE TwoBest<K> scanned(const Slots<K, LayoutT>& keys) {
  if constexpr (LayoutT::rereads_logits || Rare)
    return two_best_in_turn(keys);
  else
    return two_best<0, LayoutT::capacity>(keys);
}

/// The rounds of one token's selection.
template <bool Rare, class TileT, class LayoutT, class K>
struct RegisterSelection {
  const TileT& tile;
  const LayoutT& layout;
  const Slots<K, LayoutT>& keys;
  TwoBest<K> best;  ///< offsets with the lane's base added, so that they are experts

  MOEB_INLINE RegisterSelection(const TileT& own_tile, const LayoutT& own_layout, const Slots<K, LayoutT>& own_keys)
      : tile(own_tile), layout(own_layout), keys(own_keys), best(scanned<Rare>(own_keys)) {
    best.first_offset += layout.base();
    best.second_offset += layout.base();
  }

  /// What a round took, and whether from this lane.
  struct Taken {
    K key;
    std::int32_t expert;
    bool own;
  };

  [[nodiscard]] MOEB_INLINE Taken take() const {
    const K key = tile.maximum(best.first);
    const std::int32_t candidate = best.first == key ? best.first_offset : largest<std::int32_t>;
    const std::int32_t expert = tile.minimum(candidate);
    return {key, expert, candidate == expert};
  }

  /// The lane that `taken` came from goes on: to its second best, without a branch, because all lanes run every round; rarely, where that is not known,
  /// by another look at all keys.
  MOEB_INLINE void go_on(const Taken& taken) {
    const bool searches = taken.own && best.second == excluded_key<K>;
    best.first = taken.own ? best.second : best.first;
    best.first_offset = taken.own ? best.second_offset : best.first_offset;
    best.second = taken.own ? excluded_key<K> : best.second;
    if (searches) search(taken);
  }

 private:
  /// The best of those that rank behind the taken one: all before it were taken, too. Registers cannot be indexed: every slot asks.
  MOEB_INLINE void search(const Taken& taken) {
    const std::int32_t taken_offset = taken.expert - layout.base();
    K next = excluded_key<K>;
    std::int32_t next_offset = 0;
    MOEB_UNROLL
    for (int i = 0; i < LayoutT::capacity; ++i) {
      const bool ties = both(keys[i] == taken.key, LayoutT::offset(i) > taken_offset);
      const bool leads = both(static_cast<int>(keys[i] < taken.key) | static_cast<int>(ties), keys[i] > next);
      next = leads ? keys[i] : next;
      next_offset = leads ? LayoutT::offset(i) : next_offset;
    }
    best.first = next;
    best.first_offset = layout.base() + next_offset;
  }
};

/// Calls emit(k, expert, key) on the lane that has rank k of `Count`, k % width. At least `Count` keys must not be excluded.
template <int Count, bool Packs, bool HasPacked, class TileT, class LayoutT, class K, class Emit>
MOEB_INLINE void select_in_registers(const TileT& tile, const LayoutT& layout, const Slots<K, LayoutT>& keys,
                                     const Emit& emit) {
  if constexpr (Packs && selects_packed<Count, TileT, LayoutT, K>) {
    using Packed = PackedSelection<Count, TileT, LayoutT>;
    if (Packed::select(tile, keys, Packed::lowest_for(largest_key(tile, keys)), emit)) return;
  }
  constexpr bool is_rare = (Packs || HasPacked) && selects_packed<Count, TileT, LayoutT, K>;
  RegisterSelection<is_rare, TileT, LayoutT, K> selection(tile, layout, keys);
  const auto emit_own = [&](int k, const auto& taken) MOEB_LAMBDA {
    if (tile.lane() == k % TileT::width) emit(k, taken.expert, taken.key);
  };
  MOEB_NO_UNROLL
  for (int k = 0; k + 1 < Count; ++k) {
    const auto taken = selection.take();
    emit_own(k, taken);
    selection.go_on(taken);
  }
  emit_own(Count - 1, selection.take());
}

MOEB_NAMESPACE_END
