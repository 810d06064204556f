// The layer on a GPU, with cuBLAS's matrix products.
#pragma once

#include "product_shape.hpp"

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

namespace moe_layer {

inline void check(bool good, const char* what) {
  if (!good) throw std::runtime_error(what);
}

static __global__ void silu_kernel(std::int64_t count, const float* x, float* y) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) y[i] = x[i] / (1.0f + expf(-x[i]));
}

static __global__ void silu_backward_kernel(std::int64_t count, const float* x, float* grad) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float sigmoid = 1.0f / (1.0f + expf(-x[i]));
  grad[i] *= sigmoid + x[i] * sigmoid * (1.0f - sigmoid);
}

/// One stream and one cuBLAS handle, shared by copies.
class CublasBackend {
 public:
  static constexpr const char* name = "GPU (cuBLAS)";

  CublasBackend() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess, "cudaStreamCreate");
    stream_ = std::shared_ptr<CUstream_st>(stream, [](cudaStream_t made) { (void)cudaStreamDestroy(made); });
    cublasHandle_t handle = nullptr;
    check(cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS, "cublasCreate");
    handle_ = std::shared_ptr<cublasContext>(handle, [](cublasHandle_t made) { (void)cublasDestroy(made); });
    check(cublasSetStream(handle, stream) == CUBLAS_STATUS_SUCCESS, "cublasSetStream");
  }

  template <class T>
  class Array {
   public:
    Array(std::shared_ptr<CUstream_st> stream, const std::vector<T>& values)
        : stream_(std::move(stream)), size_(values.size()) {
      T* memory = nullptr;
      check(cudaMalloc(&memory, (size_ + 1) * sizeof(T)) == cudaSuccess, "cudaMalloc");
      memory_ = std::shared_ptr<T>(memory, [](T* made) { (void)cudaFree(made); });
      check(
          cudaMemcpyAsync(memory, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice, stream_.get()) == cudaSuccess &&
              cudaStreamSynchronize(stream_.get()) == cudaSuccess,
          "copying to the GPU");
    }
    T* data() { return memory_.get(); }
    std::vector<T> values() const {
      std::vector<T> result(size_);
      check(cudaMemcpyAsync(result.data(), memory_.get(), size_ * sizeof(T), cudaMemcpyDeviceToHost, stream_.get()) ==
                    cudaSuccess &&
                cudaStreamSynchronize(stream_.get()) == cudaSuccess,
            "copying from the GPU");
      return result;
    }

   private:
    std::shared_ptr<CUstream_st> stream_;
    std::shared_ptr<T> memory_;
    std::size_t size_;
  };

  template <class T>
  Array<T> array(const std::vector<T>& values) const {
    return {stream_, values};
  }
  cudaStream_t place() const { return stream_.get(); }

  /// cuBLAS is column-major: c^T = b^T a^T in its eyes.
  void multiply(const ProductShape& shape, const float* a, bool a_transposed, const float* b, bool b_transposed, float* c,
                bool add = false) const {
    const float one = 1.0f;
    const float old = add ? 1.0f : 0.0f;
    const auto rows = static_cast<int>(shape.rows);
    const auto columns = static_cast<int>(shape.columns);
    const auto inner = static_cast<int>(shape.inner);
    const cublasStatus_t status = cublasSgemm(
        handle_.get(), b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, columns, rows,
        inner, &one, b, b_transposed ? inner : columns, a, a_transposed ? rows : inner, &old, c, columns);
    check(status == CUBLAS_STATUS_SUCCESS, "cublasSgemm");
  }

  void silu(std::int64_t count, const float* x, float* y) const {
    silu_kernel<<<blocks(count), 256, 0, place()>>>(count, x, y);
    check(cudaGetLastError() == cudaSuccess, "launching silu");
  }
  void silu_backward(std::int64_t count, const float* x, float* grad) const {
    silu_backward_kernel<<<blocks(count), 256, 0, place()>>>(count, x, grad);
    check(cudaGetLastError() == cudaSuccess, "launching silu_backward");
  }

 private:
  static unsigned blocks(std::int64_t count) { return static_cast<unsigned>((count + 255) / 256); }
  std::shared_ptr<CUstream_st> stream_;
  std::shared_ptr<cublasContext> handle_;
};

}  // namespace moe_layer
