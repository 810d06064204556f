// A selection whose keys share a word with their slots: what lanes of registers try first.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/numeric/sorting_network.hpp>
#include <moe_balance/tile/layout.hpp>
#include <moe_balance/tile/tile.hpp>
#include <moe_balance/tile/word_pairs.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// The best `Depth` words of a lane, the largest first. 0 where there is none.
template <int Depth>
struct BestWords {
  std::uint32_t word[Depth] = {};
};

/// Of both. The i-th of the union is the largest that i others reach: a's i-th, b's, or the smaller of a's j-th and b's (i - 1 - j)-th.
template <int Depth>
[[nodiscard]] MOEB_INLINE BestWords<Depth> best_of_both(const BestWords<Depth>& a, const BestWords<Depth>& b) {
  BestWords<Depth> best;
  MOEB_UNROLL
  for (int i = 0; i < Depth; ++i) {
    std::uint32_t word = a.word[i] > b.word[i] ? a.word[i] : b.word[i];
    MOEB_UNROLL
    for (int j = 0; j < i; ++j) {
      const std::uint32_t smaller = a.word[j] < b.word[i - 1 - j] ? a.word[j] : b.word[i - 1 - j];
      word = smaller > word ? smaller : word;
    }
    best.word[i] = word;
  }
  return best;
}

/// Of `Count` words from `First` on.
template <int Depth, int First, int Count, class Words>
[[nodiscard]] MOEB_INLINE BestWords<Depth> best_words(const Words& words) {
  if constexpr (Count == 1)
    return {{words[First]}};
  else
    return best_of_both(best_words<Depth, First, Count / 2>(words), best_words<Depth, First + Count / 2, Count / 2>(words));
}

/// The same by sorting: with eight words to know well, that takes fewer comparisons than merging.
template <int Depth, class Words>
[[nodiscard]] MOEB_INLINE BestWords<Depth> best_sorted(Words words) {
  sort_values<0, Depth - 1>(words.values);
  BestWords<Depth> best;
  MOEB_UNROLL
  for (int i = 0; i < Depth; ++i) best.word[i] = words[i];
  return best;
}

/// A selection whose keys share a word with their slots, so that comparing words finds both: it costs half the instructions of RegisterSelection. The
/// slots' bits are taken from the keys' end: a key is its distance above `lowest`, and all that rank no higher are as low. It knows a few keys of a
/// lane, or all that can be taken; where it would have to know more, where a key that it takes is as low, or where the warp's tiles are apart, it fails.
template <int Count, class TileT, class LayoutT>
struct PackedSelection {
  using Key = std::int32_t;
  static constexpr int slot_bits = LayoutT::capacity == 4 ? 2 : LayoutT::capacity == 8 ? 3 : LayoutT::capacity == 16 ? 4 : 5;
  static constexpr std::uint32_t last_slot = (1u << slot_bits) - 1u;
  static constexpr std::uint32_t window = 0xffffffffu >> slot_bits;  ///< the largest distance

  /// Whether to sort a lane's words takes fewer instructions than to merge them, if it is to know more than three.
  static constexpr bool sorts_well = LayoutT::capacity <= 8;
  /// Whether a lane sorts all its words: in tiles narrower than a warp it would have to know most of them.
  static constexpr bool sorts = TileT::width < 32 && sorts_well;

  /// How many keys of a lane to know: so many that at most one warp in a thousand fails, where a lane has eight words to sort, because a call ends with its
  /// last warp; else, and where that would take more than six, one in ten. It fails where so many of the picks before the last come from one lane.
  static constexpr int depth = [] {
    if (sorts) return Count < LayoutT::capacity ? Count : LayoutT::capacity;
    constexpr int most = LayoutT::capacity < 6 ? LayoutT::capacity : 6;
    constexpr double wanted = sorts_well ? 0.001 : 0.1;
    double chance = 32.0;  // of some lane of a warp
    for (int taken = 1; taken <= most; ++taken) {
      chance *= static_cast<double>(Count - taken) / taken / TileT::width;
      if (taken >= 2 && chance <= wanted) return taken;
    }
    return most == LayoutT::capacity || chance <= 0.1 ? most : 0;
  }();
  static constexpr bool knows_all = depth == LayoutT::capacity || depth == Count;  ///< that can be taken
  static constexpr bool works = HasTileMemory<TileT> && TileT::width >= 8 && Count <= TileT::width &&
                                LayoutT::capacity >= 4 && LayoutT::capacity <= 32 && depth > 0;
  /// Narrower tiles only where lanes sort and have registers for it. Those of eight that merged to know five or six keys took 20.0 us for 32768 tokens
  /// of 64 experts on an H100, RegisterSelection 17.8.
  static constexpr bool serves = works && (TileT::width == 32 || (sorts && !is_short_of_registers<TileT>));

  /// The lowest key for keys up to `highest`.
  [[nodiscard]] MOEB_INLINE static constexpr Key lowest_for(Key highest) {
    const std::int64_t lowest = std::int64_t{highest} - window;
    return lowest < excluded_key<Key> ? excluded_key<Key> : static_cast<Key>(lowest);
  }

  /// Calls emit(k, expert, key) on lane k, for k = 0 to Count - 1, and returns true; or fails. No key is above lowest + window. Equal keys by the
  /// quad's row, then by lane, then in the quad: that is the experts' order.
  template <class Emit>
  [[nodiscard]] MOEB_INLINE static bool select(const TileT& tile, const Slots<Key, LayoutT>& keys, Key lowest,
                                               const Emit& emit) {
    if (!tile.is_with_warp()) return false;
    const auto lanes = tile.with_warp();  // no tile may leave the others until the last of its collectives
    BestWords<depth> best = best_of_lane(packed(keys, lowest));
    const Writer writer(tile);
    const std::uint32_t lanes_below = tile.lanes_below();
    Round round;
    if constexpr (TileT::unrolls && Count <= 8) {
      MOEB_UNROLL
      for (int k = 0; k < Count; ++k) take(tile, lanes, writer, lanes_below, k, best, round);
    } else {
      MOEB_NO_UNROLL
      for (int k = 0; k < Count; ++k) take(tile, lanes, writer, lanes_below, k, best, round);
    }
    const std::uint32_t taken = round.taken;
    const bool exhausted = round.exhausted;
    const bool knew_all = knows_all || !lanes.any(exhausted);
    const bool succeeds = knew_all && (taken >> slot_bits) != 0;
    lanes.barrier();
    if constexpr (sorts) {
      const Written written = writer.read(tile);
      lanes.barrier();  // here, where all lanes of the warp still are
      if (succeeds && tile.lane() < Count) emit_written(tile, written, lowest, emit);
    } else {
      if (!succeeds) return false;
      if (tile.lane() < Count) emit_written(tile, writer.read(tile), lowest, emit);
      tile.barrier();
    }
    return succeeds;
  }

 private:
  /// What a pick leaves for the lane that has its rank.
  struct Written {
    std::uint32_t word;
    std::int32_t lane;
  };
  /// Side by side where a thread has to keep the place's address.
  struct PairWriter {
    WordPairs pairs;
    MOEB_INLINE explicit PairWriter(const TileT& tile) : pairs(tile.memory) {}
    MOEB_INLINE void write(const TileT& tile, int k, std::uint32_t word) const {
      pairs.store(k, {word, static_cast<std::uint32_t>(tile.lane())});
    }
    [[nodiscard]] MOEB_INLINE Written read(const TileT& tile) const {
      const WordPairs::Pair pair = pairs.load(tile.lane());
      return {pair.first, static_cast<std::int32_t>(pair.second)};
    }
  };
  struct RowWriter {
    MOEB_INLINE explicit RowWriter(const TileT& /*tile*/) {}
    MOEB_INLINE void write(const TileT& tile, int k, std::uint32_t word) const {
      tile.memory[k] = word;
      tile.memory[TileT::width + k] = static_cast<std::uint32_t>(tile.lane());
    }
    [[nodiscard]] MOEB_INLINE Written read(const TileT& tile) const {
      return {tile.memory[tile.lane()], static_cast<std::int32_t>(tile.memory[TileT::width + tile.lane()])};
    }
  };
  using Writer = std::conditional_t<sorts, PairWriter, RowWriter>;

  template <class Emit>
  MOEB_INLINE static void emit_written(const TileT& tile, const Written& written, Key lowest, const Emit& emit) {
    const auto slot = static_cast<std::int32_t>(last_slot - (written.word & last_slot));
    const auto key = static_cast<Key>((written.word >> slot_bits) + static_cast<std::uint32_t>(lowest));
    emit(tile.lane(), LayoutT{0, written.lane}.expert(slot), key);
  }

  struct Round {
    std::uint32_t taken = 0;  ///< the last one, without its place in its quad
    bool exhausted = false;   ///< whether this lane had given all that it knows before the last round
  };

  [[nodiscard]] MOEB_INLINE static BestWords<depth> best_of_lane(const Slots<std::uint32_t, LayoutT>& words) {
    if constexpr (sorts || (sorts_well && depth > 3))
      return best_sorted<depth>(words);
    else
      return best_words<depth, 0, LayoutT::capacity>(words);
  }

  /// The k-th best: the lane that has it writes it down and goes on to its next.
  template <class Lanes>
  MOEB_INLINE static void take(const TileT& tile, const Lanes& lanes, const Writer& writer, std::uint32_t lanes_below, int k,
                               BestWords<depth>& best, Round& round) {
    round.exhausted = best.word[0] == 0;
    const std::uint32_t rank = best.word[0] & ~3u;
    round.taken = lanes.maximum(rank);
    const bool is_taken = rank == round.taken;
    const bool is_own = both(is_taken, lanes.is_first_of(lanes_below, is_taken));
    if (is_own) writer.write(tile, k, best.word[0]);
    MOEB_UNROLL
    for (int i = 0; i < depth; ++i) {
      const std::uint32_t next = i + 1 < depth ? best.word[i + 1 < depth ? i + 1 : i] : 0;
      best.word[i] = is_own ? next : best.word[i];
    }
  }

  [[nodiscard]] MOEB_INLINE static Slots<std::uint32_t, LayoutT> packed(const Slots<Key, LayoutT>& keys, Key lowest) {
    const std::uint32_t start = static_cast<std::uint32_t>(lowest) << slot_bits;
    Slots<std::uint32_t, LayoutT> words;
    MOEB_UNROLL
    for (int i = 0; i < LayoutT::capacity; ++i) {
      const Key key = keys[i] > lowest ? keys[i] : lowest;
      words[i] = (static_cast<std::uint32_t>(key) << slot_bits) + (last_slot - static_cast<std::uint32_t>(i) - start);
    }
    return words;
  }
};

/// The largest key of a tile.
template <class TileT, class LayoutT>
[[nodiscard]] MOEB_INLINE std::int32_t largest_key(const TileT& tile, const Slots<std::int32_t, LayoutT>& keys) {
  std::int32_t best = keys[0];
  MOEB_UNROLL
  for (int i = 1; i < LayoutT::capacity; ++i) best = keys[i] > best ? keys[i] : best;
  return tile.maximum(best);
}

/// Whether a lane of registers selects by words that have keys and slots.
template <int Count, class TileT, class LayoutT, class K>
inline constexpr bool selects_packed = false;
template <int Count, class TileT, class LayoutT>
requires LayoutT::in_registers inline constexpr bool selects_packed<Count, TileT, LayoutT, std::int32_t> =
    PackedSelection<Count, TileT, LayoutT>::serves;

MOEB_NAMESPACE_END
