// The tile of W GPU threads, W = 1, 2, 4, 8, 16 or 32: neighbours in one warp. Tiles of the same warp may diverge from each other.
#pragma once

#include <moe_balance/tile/opaque.hpp>
#include <moe_balance/tile/tile.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Whether compilers need more registers for the same code than from sm_90 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool needs_more_registers = true;
#else
inline constexpr bool needs_more_registers = false;
#endif

/// `WithWarp`: all lanes of the warp take part in each collective, so that the compiler need not ask which do: where masks differ between a warp's lanes,
/// that takes six instructions before each, one of which compares all lanes.
template <int W, bool WithWarp = W == 32>
struct CudaTile {
  static_assert(W >= 1 && W <= 32 && (W & (W - 1)) == 0, "a tile is a power of two of lanes of one warp");
  static constexpr int width = W;
  static constexpr bool slots_in_registers = true;
  static constexpr int columns = 1;
  static constexpr bool is_short_of_registers = needs_more_registers;

  /// Kept in a register: reading the thread's index takes as long as a load from shared memory, and compilers would read it again and again.
  std::int32_t own_lane = opaque(index_in_tile());

  MOEB_HOST_DEVICE int lane() const { return own_lane; }
  /// Whether all lanes of the warp are here together. If so for one, then for all. Not asked where both ways would need more registers than there are.
  MOEB_HOST_DEVICE bool is_with_warp() const {
#if defined(__CUDA_ARCH__)
    return WithWarp || (!needs_more_registers && __activemask() == 0xffffffffu);
#else
    return true;
#endif
  }
  /// The same tile where all are, and stay so.
  MOEB_HOST_DEVICE CudaTile<W, true> with_warp() const {
    return {own_lane};
  }
  template <class V>
  MOEB_HOST_DEVICE V shuffle(V value, [[maybe_unused]] int source) const {
#if defined(__CUDA_ARCH__)
    return __shfl_sync(mask(), value, source, W);
#else
    return value;
#endif
  }
  template <class V>
  MOEB_HOST_DEVICE V shuffle_xor(V value, [[maybe_unused]] int distance) const {
#if defined(__CUDA_ARCH__)
    return __shfl_xor_sync(mask(), value, distance, W);
#else
    return value;
#endif
  }
  MOEB_HOST_DEVICE bool any(bool value) const {
#if defined(__CUDA_ARCH__)
    if constexpr (W == 32) {
      return __any_sync(mask(), value) != 0;
    } else if constexpr (WithWarp) {
      return (__ballot_sync(mask(), value) & lanes_of_tile()) != 0;
    } else {
      const bool together = is_with_warp();
      if (!together) return __any_sync(mask(), value) != 0;
      return with_warp().any(value);
    }
#else
    return value;
#endif
  }
  MOEB_HOST_DEVICE std::uint32_t ballot(bool value) const {
#if defined(__CUDA_ARCH__)
    return in_tile(__ballot_sync(mask(), value));
#else
    return value ? 1 : 0;
#endif
  }
  /// The tile's lanes below this one, for is_first_of.
  MOEB_HOST_DEVICE std::uint32_t lanes_below() const {
    const std::uint32_t lanes = (1u << own_lane) - 1u;
#if defined(__CUDA_ARCH__)
    return lanes << (threadIdx.x % 32 / W * W);
#else
    return lanes;
#endif
  }
  /// Whether `value` is true in none of the lanes below this one.
  MOEB_HOST_DEVICE bool is_first_of([[maybe_unused]] std::uint32_t below, [[maybe_unused]] bool value) const {
#if defined(__CUDA_ARCH__)
    return (__ballot_sync(mask(), value) & below) == 0;
#else
    return true;
#endif
  }
  MOEB_HOST_DEVICE std::int32_t maximum(std::int32_t value) const {
    return reduce(
        value, [](std::int32_t a, std::int32_t b) { return a > b ? a : b; }, Reduction::maximum);
  }
  MOEB_HOST_DEVICE std::uint32_t maximum(std::uint32_t value) const {
    return reduce(
        value, [](std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }, Reduction::maximum);
  }
  MOEB_HOST_DEVICE std::int32_t minimum(std::int32_t value) const {
    return reduce(
        value, [](std::int32_t a, std::int32_t b) { return a < b ? a : b; }, Reduction::minimum);
  }
  MOEB_HOST_DEVICE std::uint32_t match([[maybe_unused]] std::int32_t value) const {
#if defined(__CUDA_ARCH__)
    return in_tile(__match_any_sync(mask(), value));
#else
    return 1;
#endif
  }
  MOEB_HOST_DEVICE void barrier() const {
#if defined(__CUDA_ARCH__)
    if constexpr (WithWarp) {
      __syncwarp(mask());
    } else {
      const bool together = is_with_warp();
      if (!together) return __syncwarp(mask());
      with_warp().barrier();
    }
#endif
  }

 private:
  MOEB_HOST_DEVICE static std::int32_t index_in_tile() {
#if defined(__CUDA_ARCH__)
    return static_cast<std::int32_t>(threadIdx.x % W);
#else
    return 0;
#endif
  }

  enum class Reduction { maximum, minimum };

  /// Over a whole warp this is one instruction, redux.sync, on sm_80 and later.
  template <class Value, class Function>
  MOEB_HOST_DEVICE Value reduce(Value value, const Function& f, [[maybe_unused]] Reduction reduction) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    constexpr bool has_instruction = W == 32;
#else
    constexpr bool has_instruction = false;
#endif
    if constexpr (has_instruction) {
#if defined(__CUDA_ARCH__)
      value =
          reduction == Reduction::maximum ? __reduce_max_sync(0xffffffffu, value) : __reduce_min_sync(0xffffffffu, value);
#endif
    } else {
      value = butterfly<W>(*this, value, f);
    }
    return value;
  }

#if defined(__CUDA_ARCH__)
  /// The bits of this tile's lanes among those of the warp.
  __device__ static std::uint32_t in_tile(std::uint32_t lanes) {
    return W == 32 ? lanes : lanes >> (threadIdx.x % 32 / W * W) & ((1u << (W % 32)) - 1u);
  }
  __device__ static unsigned mask() {
    return WithWarp ? 0xffffffffu : lanes_of_tile();
  }
  __device__ static unsigned lanes_of_tile() {
    constexpr unsigned lanes = W == 32 ? 0xffffffffu : (1u << (W % 32)) - 1u;
    return lanes << (threadIdx.x % 32 / W * W);
  }
#endif
};
static_assert(TileOfWarp<CudaTile<32>> && TileOfWarp<CudaTile<1>>);

MOEB_NAMESPACE_END
