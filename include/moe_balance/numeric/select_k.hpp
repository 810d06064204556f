// The K largest keys of a token, in order: larger key first, equal keys by smaller expert id.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/tile/layout.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The best of one lane's columns: leaf c has the largest key of slots c, c + Columns, c + 2 Columns, ... and its first slot; equal keys go
/// to the smaller slot. Key and slot are one integer, so that a comparison ranks both and a changed leaf is replayed in log2(Columns)
/// steps that need no branch.
template <class K, int Columns>
struct Tournament {
  using Pair = typename PairOf<K>::type;
  static constexpr int key_shift = 8 * sizeof(K);
  Pair node[2 * Columns];  ///< node[1] is the best; the children of node i are 2 i and 2 i + 1; leaf c is node[Columns + c]

  [[nodiscard]] MOEB_INLINE static constexpr Pair pair(K key, std::int32_t slot) {
    return (static_cast<Pair>(key) << key_shift) | static_cast<Pair>(static_cast<std::uint32_t>(~slot));
  }
  [[nodiscard]] MOEB_INLINE static constexpr Pair better(Pair a, Pair b) { return b > a ? b : a; }

  MOEB_INLINE void start(const K (&key)[Columns], const std::int32_t (&slot)[Columns]) {
    for (int c = 0; c < Columns; ++c) node[Columns + c] = pair(key[c], slot[c]);
    play<Columns / 2>();
  }
  MOEB_INLINE void replace(int column, Pair leaf) { replay<Columns>(Columns + column, leaf); }
  [[nodiscard]] MOEB_INLINE K key() const { return static_cast<K>(node[1] >> key_shift); }
  [[nodiscard]] MOEB_INLINE std::int32_t slot() const { return ~static_cast<std::int32_t>(node[1]); }

 private:
  template <int Level>
  MOEB_INLINE void replay(int i, Pair winner) {
    node[i] = winner;
    if constexpr (Level > 1) replay<Level / 2>(i / 2, better(winner, node[i ^ 1]));
  }
  template <int First>
  MOEB_INLINE void play() {
    if constexpr (First >= 1) {
      for (int i = First; i < 2 * First; ++i) node[i] = better(node[2 * i], node[2 * i + 1]);
      play<First / 2>();
    }
  }
};

/// One column has nothing to play: key and slot stay in a register each.
template <class K>
struct Tournament<K, 1> {
  struct Pair {
    K key;
    std::int32_t slot;
  };
  Pair best;

  [[nodiscard]] MOEB_INLINE static constexpr Pair pair(K key, std::int32_t slot) { return {key, slot}; }
  MOEB_INLINE void start(const K (&key)[1], const std::int32_t (&slot)[1]) { best = {key[0], slot[0]}; }
  MOEB_INLINE void replace(int /*column*/, Pair leaf) { best = leaf; }
  [[nodiscard]] MOEB_INLINE K key() const { return best.key; }
  [[nodiscard]] MOEB_INLINE std::int32_t slot() const { return best.slot; }
};

/// One lane's best keys. A pick rescans only the column that lost its maximum.
template <class TileT, class LayoutT, class K>
struct LaneMaxima {
  static constexpr int columns = TileT::columns;
  using Columns = Tournament<K, columns>;
  Columns tournament;

  [[nodiscard]] MOEB_INLINE K maximum() const { return tournament.key(); }
  [[nodiscard]] MOEB_INLINE std::int32_t slot() const { return tournament.slot(); }

  MOEB_INLINE void scan(const LayoutT& layout, const Slots<K, LayoutT>& keys) {
    K best[columns];
    std::int32_t slot[columns];
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
    tournament.start(best, slot);
  }

  /// Excludes `taken` and finds its column's next best.
  MOEB_INLINE void remove(const LayoutT& layout, Slots<K, LayoutT>& keys, std::int32_t taken) {
    exclude(keys, taken);
    const int column = taken % columns;
    if constexpr (LayoutT::in_registers) {
      tournament.replace(column, best_of<1>(keys, column, LayoutT::capacity));
    } else {  // two halves: a comparison waits for the one before it
      const int slots = layout.blocks() * LayoutT::block_size;
      tournament.replace(column,
                         Columns::better(best_of<2>(keys, column, slots), best_of<2>(keys, column + columns, slots)));
    }
  }

 private:
  /// The best of slots first, first + Step * columns, ... below `end`.
  template <int Step>
  [[nodiscard]] MOEB_INLINE static typename Columns::Pair best_of(const Slots<K, LayoutT>& keys, int first, int end) {
    K best = excluded_key<K>;
    std::int32_t slot = first;
    MOEB_UNROLL
    for (int i = first; i < end; i += Step * columns) {
      const bool larger = keys[i] > best;
      best = larger ? keys[i] : best;
      slot = larger ? i : slot;
    }
    return Columns::pair(best, slot);
  }

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
    const std::int32_t candidate = maxima.maximum() == best ? layout.expert(maxima.slot()) : none;
    const std::int32_t expert = tile.minimum(candidate);
    emit(k, expert);
    if (candidate == expert && k + 1 < count) maxima.remove(layout, keys, maxima.slot());
  }
}

MOEB_NAMESPACE_END
