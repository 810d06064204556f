// The place where test bodies run: here a GPU. engine_host.hpp tells what an Engine offers.
#pragma once

#include <moe_balance/moe_balance.cuh>

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace testing {

namespace mb = moe_balance;

/// Why GPU tests cannot run here; empty where they can.
inline std::string cuda_skip_reason() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return std::string("no CUDA device: ") + cudaGetErrorString(error);
  }
  return devices == 0 ? "no CUDA device" : "";
}

inline void cuda_check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

/// One stream that all copies of an engine share.
struct CudaEngine {
  static constexpr const char* label = "CUDA";
  static constexpr bool has_float64 = false;

  CudaEngine() {
    cudaStream_t made = nullptr;
    cuda_check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreate");
    stream_ = std::shared_ptr<CUstream_st>(made, [](cudaStream_t stream) { (void)cudaStreamDestroy(stream); });
  }
  [[nodiscard]] cudaStream_t place() const { return stream_.get(); }
  void wait() const { cuda_check(cudaStreamSynchronize(place()), "cudaStreamSynchronize"); }

  /// Returns when the bytes are there. On the stream itself, which waits for no other: a plain cudaMemcpy may return before they have arrived, and
  /// a kernel on this stream may then run first.
  void upload(void* to, const void* from, std::size_t bytes) const {
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, place()), "cudaMemcpyAsync to the device");
    wait();
  }

  template <class T>
  class Array {
   public:
    Array() = default;
    Array(const CudaEngine& engine, const std::vector<T>& values) : stream_(engine.stream_), size_(values.size()) {
      if (values.empty()) return;
      T* memory = nullptr;
      cuda_check(cudaMalloc(&memory, size_ * sizeof(T)), "cudaMalloc");
      memory_ = std::shared_ptr<T>(memory, [](T* pointer) { (void)cudaFree(pointer); });
      engine.upload(memory, values.data(), size_ * sizeof(T));
    }
    [[nodiscard]] T* data() { return memory_.get(); }
    [[nodiscard]] std::vector<T> values() const {
      std::vector<T> result(size_);
      if (result.empty()) return result;
      cuda_check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
      cuda_check(cudaMemcpy(result.data(), memory_.get(), size_ * sizeof(T), cudaMemcpyDeviceToHost),
                 "cudaMemcpy to the host");
      return result;
    }

   private:
    std::shared_ptr<CUstream_st> stream_;
    std::shared_ptr<T> memory_;
    std::size_t size_ = 0;
  };

 private:
  std::shared_ptr<CUstream_st> stream_;
};

}  // namespace testing
