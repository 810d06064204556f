// torch.hpp for tensors on the CPU and on CUDA devices, in a file that nvcc compiles:
//
//   TORCH_LIBRARY(my_moe, m) {
//     mb::pytorch::define_ops<router, mb::pytorch::CpuAndCuda>(m);
//     mb::pytorch::define_dispatch_ops<mb::pytorch::CpuAndCuda>(m);
//   }
#pragma once

#include <moe_balance/dispatch/cuda.cuh>
#include <moe_balance/engine/cuda.cuh>
#include <moe_balance/interop/torch.hpp>

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

MOEB_NAMESPACE_BEGIN

namespace pytorch MOEB_HIDDEN {

/// Runs calls where the tensor lies; on a GPU on PyTorch's current stream of that device, which is the current device meanwhile. Nothing is awaited.
struct CpuAndCuda {
  static constexpr bool has_cuda = true;

  template <class Call>
  static void run(const at::Tensor& tensor, const Call& call) {
    if (!tensor.is_cuda()) return Cpu::run(tensor, call);
    const c10::cuda::CUDAGuard guard(tensor.device());
    call(c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream());
  }
};

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
