// torch_stable.hpp for tensors on CUDA devices, in a file that nvcc compiles with -DUSE_CUDA, as PyTorch's stable ABI wants it:
//
//   STABLE_TORCH_LIBRARY_IMPL(my_moe, CUDA, m) {
//     mb::pytorch_stable::implement_ops<router, mb::pytorch_stable::Cuda>(m);
//     mb::pytorch_stable::implement_dispatch_ops<mb::pytorch_stable::Cuda>(m);
//   }
//
// The operators are defined once, by a file of their own or this one.
#pragma once

#include <moe_balance/dispatch/cuda.cuh>
#include <moe_balance/engine/cuda.cuh>
#include <moe_balance/interop/torch_stable.hpp>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#if !defined(USE_CUDA)
#error "moe_balance: torch_stable.cuh needs USE_CUDA defined, for the current stream"
#endif

MOEB_NAMESPACE_BEGIN

namespace pytorch_stable MOEB_HIDDEN {

/// Runs calls on PyTorch's current stream of the tensor's device, which is the current device meanwhile. Nothing is awaited.
struct Cuda {
  template <class Call>
  static void run(const ::torch::stable::Tensor& tensor, const Call& call) {
    const auto device = tensor.get_device_index();
    const ::torch::stable::accelerator::DeviceGuard guard(device);
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    call(static_cast<cudaStream_t>(stream));
  }
};

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
