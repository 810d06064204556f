// The tile of W fibers: the GPU's per-token algorithm, executed on a CPU.
#pragma once

#include "fibers.hpp"

#include <moe_balance/tile/tile.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <source_location>

namespace testing {

/// Barriers of a kernel body, by line: those that were reached, and one that a test leaves out.
struct BarrierFault {
  std::uint_least32_t skipped = 0;  ///< 0: none
  std::set<std::uint_least32_t>* seen = nullptr;

  [[nodiscard]] bool skips(const std::source_location& site) const {
    if (seen != nullptr) seen->insert(site.line());
    return site.line() == skipped;
  }
};

/// What a test breaks in a kernel body on purpose. Each is what the body would do had it been written with that mistake.
struct Faults {
  BarrierFault block_barriers{};
  BarrierFault grid_barriers{};  ///< of blocks that run together: waiting for the others
  BarrierFault kernel_waits{};   ///< of blocks that run beside the kernel before them: waiting for that one
  BarrierFault tile_barriers{};
  bool half_width_shuffles = false;   ///< shuffles stay inside half the tile
  int more_blocks = 0;                ///< block.blocks() is so many too large
  int later_block = 0;                ///< block.index() is so many too large
  int more_rows = 0;                  ///< block.rows()
  int later_row = 0;                  ///< block.row()
  int more_threads = 0;               ///< block.threads()
  std::size_t less_shared_bytes = 0;  ///< the forward kernel gets so many too few
};
inline constexpr Faults no_faults{};

template <int W>
struct FiberTile {
  static constexpr int width = W;
  static constexpr bool slots_in_registers = true;
  static constexpr int columns = 1;
  using Site = std::source_location;

  FiberGroup* group;
  int thread;
  const Faults* faults = &no_faults;
  bool is_apart_at_times = false;  ///< from the warp's other tiles, as hardware may find it
  mutable std::uint32_t asked = 0;

  [[nodiscard]] int lane() const { return thread % W; }
  [[nodiscard]] bool is_with_warp() const { return !is_apart_at_times || ++asked % 4 != 3; }
  [[nodiscard]] FiberTile with_warp() const { return *this; }
  [[nodiscard]] std::uint32_t lanes_below() const { return (1u << lane()) - 1u; }
  [[nodiscard]] bool is_first_of(std::uint32_t below, bool value, const Site& site = Site::current()) const {
    return (ballot(value, site) & below) == 0;
  }

  template <class V>
  [[nodiscard]] V shuffle(V value, int source, const Site& site = Site::current()) const {
    if (source < 0 || source >= W) throw FiberError("a shuffle from a lane outside its tile");
    return decode<V>(meet(encode(value), site)[reached(source)]);
  }
  template <class V>
  [[nodiscard]] V shuffle_xor(V value, int mask, const Site& site = Site::current()) const {
    if (mask < 0 || mask >= W) throw FiberError("a shuffle_xor that leaves its tile");
    return decode<V>(meet(encode(value), site)[reached(lane() ^ mask)]);
  }
  [[nodiscard]] bool any(bool value, const Site& site = Site::current()) const {
    const std::uint64_t* seen = meet(value ? 1 : 0, site);
    for (int i = 0; i < W; ++i) {
      if (seen[i] != 0) return true;
    }
    return false;
  }
  [[nodiscard]] std::uint32_t ballot(bool value, const Site& site = Site::current()) const {
    const std::uint64_t* seen = meet(value ? 1 : 0, site);
    std::uint32_t lanes = 0;
    for (int i = 0; i < W; ++i) lanes |= seen[i] != 0 ? 1u << i : 0u;
    return lanes;
  }
  template <class V>
  [[nodiscard]] V maximum(V value, const Site& site = Site::current()) const {
    const std::uint64_t* seen = meet(encode(value), site);
    for (int i = 0; i < W; ++i) value = std::max(value, decode<V>(seen[i]));
    return value;
  }
  [[nodiscard]] std::int32_t minimum(std::int32_t value, const Site& site = Site::current()) const {
    const std::uint64_t* seen = meet(encode(value), site);
    for (int i = 0; i < W; ++i) value = std::min(value, decode<std::int32_t>(seen[i]));
    return value;
  }
  [[nodiscard]] std::uint32_t match(std::int32_t value, const Site& site = Site::current()) const {
    const std::uint64_t* seen = meet(encode(value), site);
    std::uint32_t lanes = 0;
    for (int i = 0; i < W; ++i) lanes |= seen[i] == encode(value) ? 1u << i : 0u;
    return lanes;
  }
  void barrier(const Site& site = Site::current()) const {
    if (!faults->tile_barriers.skips(site)) meet(0, site);
  }

 private:
  /// The lane that a shuffle reads: `source`, or what hardware makes of it when told of half the width.
  [[nodiscard]] int reached(int source) const {
    if (W == 1 || !faults->half_width_shuffles) return source;
    constexpr int half = W == 1 ? 1 : W / 2;
    return lane() / half * half + source % half;
  }
  const std::uint64_t* meet(std::uint64_t payload, const Site& site) const {
    return group->meet(thread, thread / W * W, W, 0, payload, site);
  }
  template <class V>
  static std::uint64_t encode(V value) {
    static_assert(sizeof(V) <= 8);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(V));
    return bits;
  }
  template <class V>
  static V decode(std::uint64_t bits) {
    V value;
    std::memcpy(&value, &bits, sizeof(V));
    return value;
  }
};
static_assert(moe_balance::TileOfWarp<FiberTile<32>> && moe_balance::TileOfWarp<FiberTile<1>>);

}  // namespace testing
