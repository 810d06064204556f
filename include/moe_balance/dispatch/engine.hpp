// What the dispatch calls need of an engine: to run a kernel body over blocks. `DispatchEngine<Place>` is specialised for each kind of place:
// Host (dispatch/host.hpp) and cudaStream_t (dispatch/cuda.cuh). A body is a stateless function object body(block, tile, problem), written once
// over the Block vocabulary of engine/block.hpp; a CPU thread is a block of one thread with a tile of one lane.
#pragma once

#include <moe_balance/engine/kernels.hpp>
#include <moe_balance/engine/tuning.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class Place>
struct DispatchEngine;

/// A place that some included header has a dispatch engine for.
template <class Place>
concept DispatchPlace = requires {
  DispatchEngine<Place>::serves_float64;
};

/// What a launch asks of the engine.
struct LaunchSize {
  std::int64_t blocks = 1;
  int tiles = 1;                 ///< per block; the CPU has one
  std::size_t shared_bytes = 0;  ///< for so many tiles
};

/// The number of experts of a call, and the argument that it comes from, which messages name: how much more than the experts that one says.
struct ExpertCount {
  const char* call;
  int experts;
  const char* argument = "offsets.size";
  int more = 1;
};

namespace detail {

/// Calls f(double{}) for float64, f(float{}) for all other element types.
template <class Place, class Function>
void in_real_type_of(DataType type, Function&& f) {
  if constexpr (DispatchEngine<Place>::serves_float64) {
    if (type == DataType::float64) return f(double{});
  }
  f(float{});
}

}  // namespace detail

/// Items first to last - 1.
template <class Int>
struct RangeOf {
  Int first;
  Int last;
};
using ItemRange = RangeOf<std::int64_t>;

/// The first item of the `part`-th of contiguous ranges of `quotient` items, or one more in each of the first `remainder`.
template <class Int>
[[nodiscard]] MOEB_INLINE constexpr Int start_of_part(Int quotient, Int remainder, Int part) {
  return quotient * part + (part < remainder ? part : remainder);
}
/// The `part`-th of `parts` contiguous, nearly equal ranges of n items.
template <class Int = std::int64_t>
[[nodiscard]] MOEB_INLINE constexpr RangeOf<Int> range_of_part(std::type_identity_t<Int> n, std::type_identity_t<Int> part,
                                                               std::type_identity_t<Int> parts) {
  const Int quotient = n / parts;
  const Int remainder = n - quotient * parts;
  const Int first = start_of_part(quotient, remainder, part);
  return {first, first + quotient + (part < remainder ? 1 : 0)};
}

/// Calls f(item) for every item of this tile; tiles of all blocks take turns.
template <class BlockT, class TileT, class Function>
MOEB_INLINE void for_each_item_of_tile(const BlockT& block, const TileT& /*tile*/, std::int64_t n, Function&& f) {
  const int tiles = block.threads() / TileT::width;
  const std::int64_t step = block.blocks() * tiles;
  MOEB_NO_UNROLL
  for (std::int64_t i = block.index() * tiles + block.thread() / TileT::width; i < n; i += step) f(i);
}

/// Calls f(item) for every item of this thread; threads of all blocks take turns.
template <class BlockT, class Function>
MOEB_INLINE void for_each_item_of_thread(const BlockT& block, std::int64_t n, Function&& f) {
  const std::int64_t step = block.blocks() * block.threads();
  MOEB_NO_UNROLL
  for (std::int64_t i = block.index() * block.threads() + block.thread(); i < n; i += step) f(i);
}

/// Sum of the values of all threads before this one, of which the first `count` have any. Every thread calls it; `sums` has a word of shared memory for
/// each tile, and is in use until the next barrier.
template <class BlockT, class TileT>
[[nodiscard]] MOEB_INLINE std::int64_t sum_of_earlier_threads(const BlockT& block, const TileT& tile, int count,
                                                              std::int64_t value, std::int64_t* sums) {
  const int own = block.thread() / TileT::width;
  const bool has_any = own * TileT::width < count;
  std::int64_t inclusive = value;
  if (has_any) {
    for (int distance = 1; distance < TileT::width; distance *= 2) {
      const bool has_source = tile.lane() >= distance;
      const std::int64_t earlier = tile.shuffle(inclusive, has_source ? tile.lane() - distance : tile.lane());
      inclusive += has_source ? earlier : 0;
    }
    if (tile.lane() == TileT::width - 1) sums[own] = inclusive;
  }
  block.barrier();
  std::int64_t before = inclusive - value;
  if (has_any) {
    MOEB_UNROLL_BY_4
    for (int i = 0; i < own; ++i) before += sums[i];
  }
  return before;
}

/// Bits of lanes below `lane`.
[[nodiscard]] MOEB_INLINE constexpr std::uint32_t lanes_below(int lane) {
  return (1u << lane) - 1u;
}

[[nodiscard]] MOEB_INLINE int count_bits(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __popc(bits);
#else
  bits = bits - ((bits >> 1) & 0x55555555u);
  bits = (bits & 0x33333333u) + ((bits >> 2) & 0x33333333u);
  return static_cast<int>((((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
#endif
}

MOEB_NAMESPACE_END
