// What a kernel body may ask of the block that runs it: thread and block indices, a barrier, shared memory and atomic additions.
#pragma once

#include <moe_balance/tile/tile.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// What a kernel body may ask of the block that runs it.
template <class B>
concept Block = requires(const B block, std::int64_t* sum, std::int32_t* count) {
  { block.thread() } -> std::same_as<int>;          // index of this thread in its block
  { block.threads() } -> std::same_as<int>;         // threads of the block
  { block.index() } -> std::same_as<std::int64_t>;  // block index along the tokens
  { block.blocks() } -> std::same_as<std::int64_t>;
  { block.row() } -> std::same_as<std::int64_t>;  // block index along the segments
  { block.rows() } -> std::same_as<std::int64_t>;
  {block.barrier()};
  { block.shared() } -> std::same_as<std::byte*>;  // 16-byte aligned
  {block.add_shared(sum, std::int64_t{})};
  {block.add_shared(count, std::int32_t{})};
  {block.add_global(sum, std::int64_t{})};
};

/// Which of its block's tiles a thread is in. A whole warp takes it from one lane, so that the compiler knows it to be the same for all: addresses
/// are then kept once a warp, and no loop needs code for lanes that have parted.
template <class BlockT, class TileT>
[[nodiscard]] MOEB_HOST_DEVICE inline int tile_in_block(const BlockT& block, const TileT& tile) {
  const int own = block.thread() / TileT::width;
  return TileT::width == 32 ? tile.shuffle(own, 0) : own;
}

/// What a kernel asks of a block whose grid may be launched so that all its blocks run at the same time.
template <class B>
concept ClusterBlock = Block<B> && requires(const B block) {
  {block.arrive()};        // says, once, that this thread has come so far
  {block.await_blocks()};  // waits until all threads of the grid have
};

/// What a kernel asks of a block that may run beside the kernel before it.
template <class B>
concept BesideBlock = Block<B> && requires(const B block) {
  {block.await_kernel_before()};  // waits until that one has ended
};

MOEB_NAMESPACE_END
