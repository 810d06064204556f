// A tile is the group of lanes that shares one token. This file has its concept and the tile of one lane, which is plain scalar
// code: the CPU engine runs it over tokens on all cores. tile/cuda_tile.cuh has the tile of 1 to 32 GPU threads.
#pragma once

#include <moe_balance/config.hpp>
#include <moe_balance/views.hpp>

#include <concepts>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Every member is a collective: all lanes of the tile call it together.
template <class T>
concept Tile = requires(const T tile, float f, double d, std::int32_t i, std::uint32_t u, std::int64_t l) {
  { T::width } -> std::convertible_to<int>;
  { T::slots_in_registers } -> std::convertible_to<bool>;
  { T::columns } -> std::convertible_to<int>;
  { tile.lane() } -> std::same_as<int>;
  { tile.shuffle(f, 0) } -> std::same_as<float>;
  { tile.shuffle(i, 0) } -> std::same_as<std::int32_t>;
  { tile.shuffle_xor(f, 1) } -> std::same_as<float>;
  { tile.shuffle_xor(d, 1) } -> std::same_as<double>;
  { tile.shuffle_xor(i, 1) } -> std::same_as<std::int32_t>;
  { tile.shuffle_xor(l, 1) } -> std::same_as<std::int64_t>;
  { tile.any(true) } -> std::same_as<bool>;
  { tile.ballot(true) } -> std::same_as<std::uint32_t>;
  { tile.maximum(i) } -> std::same_as<std::int32_t>;
  { tile.maximum(u) } -> std::same_as<std::uint32_t>;
  { tile.minimum(i) } -> std::same_as<std::int32_t>;
  { tile.match(i) } -> std::same_as<std::uint32_t>;
  {tile.barrier()};
};

/// One lane that holds all of a token's scores in memory. `columns` is how many running maxima a scan keeps, so that it vectorises.
struct SerialTile {
  static constexpr int width = 1;
  static constexpr bool slots_in_registers = false;
  static constexpr int columns = 32;

  InstructionSet instructions = InstructionSet::baseline;  ///< of the loop that it is in, for what is a function of its own; never `automatic`

  [[nodiscard]] MOEB_INLINE static constexpr int lane() { return 0; }
  template <class V>
  [[nodiscard]] MOEB_INLINE static constexpr V shuffle(V value, int /*source*/) {
    return value;
  }
  template <class V>
  [[nodiscard]] MOEB_INLINE static constexpr V shuffle_xor(V value, int /*mask*/) {
    return value;
  }
  [[nodiscard]] MOEB_INLINE static constexpr bool any(bool value) { return value; }
  /// A bit for each lane of the tile whose value is true.
  [[nodiscard]] MOEB_INLINE static constexpr std::uint32_t ballot(bool value) { return value ? 1 : 0; }
  template <class V>
  [[nodiscard]] MOEB_INLINE static constexpr V maximum(V value) {
    return value;
  }
  template <class V>
  [[nodiscard]] MOEB_INLINE static constexpr V minimum(V value) {
    return value;
  }
  /// A bit for each lane of the tile whose value is this lane's.
  [[nodiscard]] MOEB_INLINE static constexpr std::uint32_t match(std::int32_t /*value*/) { return 1; }
  MOEB_INLINE static constexpr void barrier() {}
};
static_assert(Tile<SerialTile>);

/// Whether a tile's code takes more registers than on other architectures, so that less can be kept in them.
template <class TileT>
inline constexpr bool is_short_of_registers = [] {
  if constexpr (requires { TileT::is_short_of_registers; })
    return TileT::is_short_of_registers;
  else
    return false;
}();

/// A tile that is part of a warp: a GPU's collectives cost less where all lanes of a warp take part. Where is_with_warp(), they all are here, and it is true
/// for all; with_warp() is the same tile for as long as they stay together, so no branch that its tiles may take apart.
template <class T>
concept TileOfWarp = Tile<T> && requires(const T tile, std::uint32_t lanes) {
  { tile.is_with_warp() } -> std::same_as<bool>;
  {tile.with_warp()};
  { tile.lanes_below() } -> std::same_as<std::uint32_t>;
  { tile.is_first_of(lanes, true) } -> std::same_as<bool>;
};

/// A value combined with those of its `Lanes` neighbours, by halves, the far ones first: f(own, other).
template <int Lanes, class TileT, class V, class Function>
[[nodiscard]] MOEB_INLINE V butterfly_in_tile(const TileT& tile, V value, const Function& f) {
  MOEB_UNROLL
  for (int distance = Lanes / 2; distance >= 1; distance /= 2) value = f(value, tile.shuffle_xor(value, distance));
  return value;
}
/// The same by collectives of the whole warp, which cost less, where the tile's warp is together.
template <int Lanes, class TileT, class V, class Function>
[[nodiscard]] MOEB_INLINE V butterfly(const TileT& tile, V value, const Function& f) {
  if constexpr (TileOfWarp<TileT> && TileT::width < 32) {
    const bool together = tile.is_with_warp();
    if (!together) return butterfly_in_tile<Lanes>(tile, value, f);
    return butterfly_in_tile<Lanes>(tile.with_warp(), value, f);
  } else {
    return butterfly_in_tile<Lanes>(tile, value, f);
  }
}

/// A tile whose lanes share memory: two words for each lane, which nothing else uses. `Unrolls`: whether the code of each round of a selection is
/// worth its compilation.
template <class TileT, bool Unrolls = false>
struct TileWithMemory : TileT {
  static constexpr bool unrolls = Unrolls;  ///< the rounds of a selection
  std::uint32_t* memory;                    ///< of the tile, shared by its lanes
};
template <class T>
concept HasTileMemory = TileOfWarp<T> && requires(const T tile) {
  { tile.memory } -> std::convertible_to<std::uint32_t*>;
};

MOEB_NAMESPACE_END
