// Everything, with the CUDA engine; needs nvcc. Calls take a cudaStream_t where the CPU's take a Host.
#pragma once

#include <moe_balance/dispatch/cuda.cuh>
#include <moe_balance/engine/cuda.cuh>
#include <moe_balance/moe_balance.hpp>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

MOEB_NAMESPACE_BEGIN

template <>
struct DataTypeOf<__nv_bfloat16> {
  static constexpr DataType value = DataType::bfloat16;
};
template <>
struct DataTypeOf<__half> {
  static constexpr DataType value = DataType::float16;
};

template <>
struct Allocator<cudaStream_t> {
  struct Delete {
    void operator()(void* data) const { cudaFree(data); }
  };
  /// Allocates with cudaMalloc and zeroes on the stream.
  [[nodiscard]] static std::unique_ptr<void, Delete> allocate_zeroed(std::size_t bytes, cudaStream_t stream) {
    void* data = nullptr;
    check_cuda(cudaMalloc(&data, bytes == 0 ? 1 : bytes), "allocating device memory");
    std::unique_ptr<void, Delete> memory(data);
    check_cuda(cudaMemsetAsync(data, 0, bytes, stream), "zeroing device memory");
    return memory;
  }
};

MOEB_NAMESPACE_END
