// Include this in one CUDA file of a program that permutes over more than max_counted_experts (4096) experts on a GPU: it compiles CUB's radix sort and
// scan, which takes some seconds, and registers them for all files of the program that are compiled for the same architectures. (Of a static
// library a linker must take that file: it does where anything else in it is called.) The calls stay as they are.
#pragma once

#include <moe_balance/dispatch/cuda.cuh>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <algorithm>
#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN
inline namespace MOEB_ARCH_LIST_NAME {

/// Calls of CUB: the same ones ask for the scratch's size (scratch null) and do the work. Stable, deterministic, nothing waits for the host.
struct MOEB_HIDDEN CubSorting {
  [[nodiscard]] static std::size_t scratch_bytes(std::int64_t slots, std::int64_t experts) {
    std::size_t sort_bytes = 0;
    std::size_t sum_bytes = 0;
    SlotPairs pairs{};
    check_cuda(sort_pairs(nullptr, sort_bytes, pairs, slots, key_bits, nullptr), "asking CUB for a sort's scratch");
    check_cuda(cub::DeviceScan::ExclusiveSum(nullptr, sum_bytes, static_cast<std::int64_t*>(nullptr), experts + 1),
               "asking CUB for a scan's scratch");
    return std::max(sort_bytes, sum_bytes);
  }

  static void sort(SlotPairs& pairs, std::int64_t n, int bits, const Workspace& scratch, cudaStream_t stream) {
    if (n == 0) return;
    std::size_t bytes = scratch.bytes;
    check_cuda(sort_pairs(scratch.data, bytes, pairs, n, bits, stream), "sorting slots by expert");
  }

  static bool register_for_program() {
    device_sorting = {scratch_bytes, sort, sum};
    return true;
  }

  static void sum(std::int64_t* values, std::int64_t n, const Workspace& scratch, cudaStream_t stream) {
    std::size_t bytes = scratch.bytes;
    check_cuda(cub::DeviceScan::ExclusiveSum(scratch.data, bytes, values, n, stream), "adding up experts' rows");
  }

 private:
  static constexpr int key_bits = 32;

  /// The host alone decides which half has the result, by the number of passes.
  static cudaError_t sort_pairs(void* scratch, std::size_t& bytes, SlotPairs& pairs, std::int64_t n, int bits,
                                cudaStream_t stream) {
    cub::DoubleBuffer<std::uint32_t> keys(pairs.keys[0], pairs.keys[1]);
    cub::DoubleBuffer<std::int64_t> slots(pairs.slots[0], pairs.slots[1]);
    const cudaError_t error = cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, slots, n, 0, bits, stream);
    pairs.current = keys.selector;
    return error;
  }
};

/// Before main.
[[maybe_unused]] MOEB_HIDDEN inline const bool registers_device_sorting = CubSorting::register_for_program();

}  // namespace MOEB_ARCH_LIST_NAME
MOEB_NAMESPACE_END
