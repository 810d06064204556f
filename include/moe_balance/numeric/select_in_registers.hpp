// The K largest keys of a token whose lanes keep theirs in registers: a round takes the tile's largest key, then the smallest expert that has it.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/tile/layout.hpp>

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

/// A lane's two best.
template <class LayoutT, class K>
[[nodiscard]] MOEB_INLINE TwoBest<K> scanned(const Slots<K, LayoutT>& keys) {
  if constexpr (LayoutT::rereads_logits)
    return two_best_in_turn(keys);
  else
    return two_best<0, LayoutT::capacity>(keys);
}

/// The rounds of one token's selection.
template <class TileT, class LayoutT, class K>
struct RegisterSelection {
  const TileT& tile;
  const LayoutT& layout;
  Slots<K, LayoutT>& keys;
  TwoBest<K> best;
  std::int32_t left_behind = -1;  ///< the offset of the first that the second followed

  MOEB_INLINE RegisterSelection(const TileT& own_tile, const LayoutT& own_layout, Slots<K, LayoutT>& own_keys)
      : tile(own_tile), layout(own_layout), keys(own_keys), best(scanned(own_keys)) {}

  /// Calls emit(k, expert, key); returns whether this lane has the expert.
  template <class Emit>
  [[nodiscard]] MOEB_INLINE bool take(int k, const Emit& emit) {
    const K key = tile.maximum(best.first);
    const std::int32_t candidate = best.first == key ? layout.base() + best.first_offset : largest<std::int32_t>;
    const std::int32_t expert = tile.minimum(candidate);
    emit(k, expert, key);
    return candidate == expert;
  }

  /// The lane that `wins` goes on: to its second best, without a branch, because all lanes run every round; rarely, where that is not known, by
  /// another look at all keys.
  MOEB_INLINE void go_on(bool wins) {
    const bool searches = wins && best.second == excluded_key<K>;
    const bool moves = wins && best.second != excluded_key<K>;
    left_behind = moves ? best.first_offset : left_behind;
    best.first = moves ? best.second : best.first;
    best.first_offset = moves ? best.second_offset : best.first_offset;
    best.second = moves ? excluded_key<K> : best.second;
    if (searches) {
      search();
    }
  }

 private:
  /// Without its first and the one left behind before. Registers cannot be indexed: every slot asks whether it is the one.
  MOEB_INLINE void search() {
    K next = excluded_key<K>;
    std::int32_t next_offset = 0;
    MOEB_UNROLL
    for (int i = 0; i < LayoutT::capacity; ++i) {
      const bool is_taken = LayoutT::offset(i) == best.first_offset || LayoutT::offset(i) == left_behind;
      keys[i] = is_taken ? excluded_key<K> : keys[i];
      const bool leads = keys[i] > next;
      next = leads ? keys[i] : next;
      next_offset = leads ? LayoutT::offset(i) : next_offset;
    }
    best.first = next;
    best.first_offset = next_offset;
  }
};

/// Calls emit(k, expert, key) for k = 0 to count - 1 on every lane. At least `count` keys must not be excluded. Overwrites the keys.
template <class TileT, class LayoutT, class K, class Emit>
MOEB_INLINE void select_in_registers(const TileT& tile, const LayoutT& layout, Slots<K, LayoutT>& keys, int count,
                                     const Emit& emit) {
  RegisterSelection<TileT, LayoutT, K> selection(tile, layout, keys);
  MOEB_NO_UNROLL
  for (int k = 0; k + 1 < count; ++k) selection.go_on(selection.take(k, emit));
  (void)selection.take(count - 1, emit);
}

MOEB_NAMESPACE_END
