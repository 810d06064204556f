// Everything, with the CUDA engine; needs nvcc. Calls take a cudaStream_t where the CPU's take a Host.
// From compute capability 9.0 on kernels may be started while the one before them in the stream ends, and wait for it. If that is a kernel of yours
// that was itself launched so (programmatic stream serialization), it must have waited for the one before it.
#pragma once

#if !defined(__CUDACC__)
#error \
    "moe_balance.cuh needs nvcc: C++ files include moe_balance.hpp, and call what nvcc compiles through compiled_router.hpp (docs/policies.md)"
#endif

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
  /// Allocates with cudaMalloc and zeroes on the stream.
  [[nodiscard]] static void* allocate_zeroed(std::size_t bytes, cudaStream_t stream) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes == 0 ? 1 : bytes), "allocating device memory");
    const cudaError_t zeroed = cudaMemsetAsync(memory, 0, bytes, stream);
    if (zeroed != cudaSuccess) release(memory);
    check_cuda(zeroed, "zeroing device memory");
    return memory;
  }
  static void release(void* memory) { cudaFree(memory); }
};

MOEB_NAMESPACE_END
