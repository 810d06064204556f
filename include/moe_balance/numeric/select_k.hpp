// The K largest keys of a token, in order: larger key first, equal keys by smaller expert id.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/select_in_registers.hpp>
#include <moe_balance/tile/layout.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// A key and its slot as one integer: the larger one ranks first, so that equal keys go to the smaller slot.
template <class K>
[[nodiscard]] MOEB_INLINE constexpr typename PairOf<K>::type pair_of(K key, std::int32_t slot) {
  using Pair = typename PairOf<K>::type;
  return (static_cast<Pair>(key) << (8 * sizeof(K))) | static_cast<Pair>(static_cast<std::uint32_t>(~slot));
}

/// The best of one lane's columns, each of which offers its own best. A changed column is replayed in log2(Columns) steps without a branch.
template <class K, int Columns>
struct Tournament {
  using Pair = typename PairOf<K>::type;
  Pair best;
  Pair node[2 * Columns];  ///< the children of node i are 2 i and 2 i + 1; column c is node[Columns + c]

  MOEB_INLINE void start(const K (&key)[Columns], const std::int32_t (&slot)[Columns]) {
    for (int c = 0; c < Columns; ++c) node[Columns + c] = pair_of(key[c], slot[c]);
    play<Columns / 2>();
  }
  MOEB_INLINE void replace(int column, K key, std::int32_t slot) { replay<Columns>(Columns + column, pair_of(key, slot)); }
  [[nodiscard]] MOEB_INLINE K key() const { return static_cast<K>(best >> (8 * sizeof(K))); }
  [[nodiscard]] MOEB_INLINE std::int32_t slot() const { return ~static_cast<std::int32_t>(best); }

 private:
  [[nodiscard]] MOEB_INLINE static constexpr Pair better(Pair a, Pair b) {
    Pair r = b > a ? b : a;
    return r;
  }
  template <int Level>
  MOEB_INLINE void replay(int i, Pair winner) {
    if constexpr (Level > 1) {
      node[i] = winner;
      replay<Level / 2>(i / 2, better(winner, node[i ^ 1]));
    } else {
      best = winner;
    }
  }
  template <int First>
  MOEB_INLINE void play() {
    if constexpr (First >= 1) {
      for (int i = First; i < 2 * First; ++i) node[i] = better(node[2 * i], node[2 * i + 1]);
      play<First / 2>();
    } else {
      best = node[1];
    }
  }
};

/// One lane's best keys. Column c has slots c, c + columns, c + 2 columns, ...: its best takes part in the tournament, and its second best is
/// known, too, so that a column is scanned again only from its third pick on.
template <class TileT, class LayoutT, class K>
struct LaneMaxima {
  static constexpr int columns = TileT::columns;
  Tournament<K, columns> tournament;
  K second[columns];  ///< excluded where it is not known
  std::int32_t second_slot[columns];

  /// The lane's best key, and its slot.
  [[nodiscard]] MOEB_INLINE K key() const { return tournament.key(); }
  [[nodiscard]] MOEB_INLINE std::int32_t slot() const { return tournament.slot(); }

  MOEB_INLINE void scan(const LayoutT& layout, const Slots<K, LayoutT>& keys) {
    K first[columns];
    std::int32_t first_slot[columns];
    MOEB_UNROLL
    for (int c = 0; c < columns; ++c) {
      first[c] = second[c] = excluded_key<K>;
      first_slot[c] = second_slot[c] = 0;
    }
    const int rows = layout.blocks() * LayoutT::block_size / columns;
    const auto offer = [&](int row, int c) MOEB_LAMBDA {
      const int i = row * columns + c;
      const std::int32_t slot = i;
      const K key = keys[i];
      const bool leads = key > first[c];
      const bool follows = key > second[c];
      second[c] = leads ? first[c] : follows ? key : second[c];
      second_slot[c] = leads ? first_slot[c] : follows ? slot : second_slot[c];
      first[c] = leads ? key : first[c];
      first_slot[c] = leads ? slot : first_slot[c];
    };
    // Two rows at a time: a CPU's running bests are memory, and would wait for their own stores after every row.
    MOEB_UNROLL
    for (int row = 0; row + 1 < rows; row += 2) {
      MOEB_UNROLL
      for (int c = 0; c < columns; ++c) {
        offer(row, c);
        offer(row + 1, c);
      }
    }
    if (rows % 2 != 0) {
      MOEB_UNROLL
      for (int c = 0; c < columns; ++c) offer(rows - 1, c);
    }
    tournament.start(first, first_slot);
  }

  /// Goes on to the next best. Keys that are behind it become excluded, some of them later.
  MOEB_INLINE void remove_best(const LayoutT& layout, Slots<K, LayoutT>& keys) {
    const int column = slot() % columns;
    keys[slot()] = excluded_key<K>;
    if (second[column] == excluded_key<K>) {
      scan_again(layout, keys, column);
    } else {
      tournament.replace(column, second[column], second_slot[column]);
      second[column] = excluded_key<K>;
    }
  }

 private:
  MOEB_INLINE void scan_again(const LayoutT& layout, const Slots<K, LayoutT>& keys, int column) {
    K next = excluded_key<K>;
    std::int32_t next_slot = column;  // whatever it is where all keys are excluded
    const int rows = layout.blocks() * LayoutT::block_size / columns;
    MOEB_UNROLL
    for (int row = 0; row < rows; ++row) {
      const int i = row * columns + column;
      const bool larger = keys[i] > next;
      next = larger ? keys[i] : next;
      next_slot = larger ? i : next_slot;
    }
    tournament.replace(column, next, next_slot);
  }
};

/// Calls emit(k, expert, key) for k = 0 to count - 1 on every lane. At least `count` keys must not be excluded. Overwrites the keys.
template <class TileT, class LayoutT, class K, class Emit>
MOEB_INLINE void select_k(const TileT& tile, const LayoutT& layout, Slots<K, LayoutT>& keys, int count, Emit&& emit) {
  if constexpr (LayoutT::in_registers) {
    select_in_registers(tile, layout, keys, count, emit);
  } else {
    constexpr std::int32_t none = largest<std::int32_t>;
    LaneMaxima<TileT, LayoutT, K> maxima;
    maxima.scan(layout, keys);
    const auto round = [&](int k) MOEB_LAMBDA {
      const K best = tile.maximum(maxima.key());
      const std::int32_t candidate = maxima.key() == best ? layout.base() + maxima.slot() : none;
      const std::int32_t expert = tile.minimum(candidate);
      emit(k, expert, best);
      return candidate == expert;
    };
    MOEB_NO_UNROLL
    for (int k = 0; k + 1 < count; ++k) {
      if (round(k)) maxima.remove_best(layout, keys);
    }
    round(count - 1);
  }
}

MOEB_NAMESPACE_END
