// PyTorch operators of a router, through PyTorch's stable ABI (2.10 or newer): one shared object for that version and all later ones.
//
//   const mb::presets::DeepSeekV3<> router;
//   STABLE_TORCH_LIBRARY(my_moe, m) {
//     mb::pytorch_stable::define_ops<router>(m);
//     mb::pytorch_stable::define_dispatch_ops(m);
//   }
//   STABLE_TORCH_LIBRARY_IMPL(my_moe, CPU, m) {
//     mb::pytorch_stable::implement_ops<router>(m);
//     mb::pytorch_stable::implement_dispatch_ops(m);
//   }
//
// Define TORCH_TARGET_VERSION before any header of PyTorch: the oldest version that the shared object is for, 2.10 as 0x020a000000000000. It links
// libtorch_cpu (and libtorch_cuda) only. The operators are those of torch_ops.hpp, on the CPU; torch_stable.cuh adds CUDA. The stable ABI
// has no autograd and no meta kernels: examples/torch_moe_layer/moe_ops.py registers both from Python. In Python errors are RuntimeErrors.
#pragma once

#include <moe_balance/dispatch/host.hpp>
#include <moe_balance/engine/host.hpp>
#include <moe_balance/interop/torch_ops.hpp>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#if TORCH_FEATURE_VERSION < TORCH_VERSION_2_10_0
#error "moe_balance: torch_stable.hpp needs TORCH_TARGET_VERSION 0x020a000000000000 (PyTorch 2.10) or newer"
#endif

MOEB_NAMESPACE_BEGIN

namespace pytorch_stable MOEB_HIDDEN {

/// Runs calls on PyTorch's own threads, where they are on the CPU.
struct Cpu {
  template <class Call>
  static void run(const ::torch::stable::Tensor& /*tensor*/, const Call& call) {
    const auto run_parts = [](int parts, const auto& part) {
      ::torch::stable::parallel_for(0, parts, 1, torch_ops::PartRange{part});
    };
    call(Host{.threads = static_cast<int>(::torch::stable::get_num_threads()), .executor = executor_of(run_parts)});
  }
};

/// The stable interface of PyTorch, as torch_ops.hpp asks for it. `Device` says where calls run: Cpu, or Cuda of torch_stable.cuh.
template <class Device>
struct Api {
  using Tensor = ::torch::stable::Tensor;
  using Optional = std::optional<Tensor>;
  using ScalarType = ::torch::headeronly::ScalarType;

  [[nodiscard]] static torch_ops::TensorView view(const Tensor& tensor) {
    const bool cuda = tensor.is_cuda();
    return {tensor.data_ptr(),
            {cuda ? torch_ops::TensorView::cuda : torch_ops::TensorView::cpu, cuda ? tensor.get_device_index() : 0},
            static_cast<int>(tensor.dim()),
            torch_ops::dlpack_type(tensor.scalar_type()),
            tensor.sizes().data(),
            tensor.strides().data()};
  }
  [[nodiscard]] static ScalarType scalar_type(const Tensor& tensor) { return tensor.scalar_type(); }
  [[nodiscard]] static Tensor empty(const Tensor& like, std::initializer_list<std::int64_t> sizes, ScalarType type) {
    return ::torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, type);
  }
  [[nodiscard]] static Tensor contiguous(const Tensor& tensor) { return ::torch::stable::contiguous(tensor); }
  [[nodiscard]] static Tensor clone(const Tensor& tensor) { return ::torch::stable::clone(tensor); }
  template <class Call>
  static void run(const Tensor& tensor, const Call& call) {
    Device::run(tensor, call);
  }
};

using Library = ::torch::stable::detail::StableLibrary;

/// Defines the signatures of a router's operators in a STABLE_TORCH_LIBRARY; a prefix before their names keeps those of several routers apart.
/// `router` is an object of static storage duration, which may still change between calls.
template <const auto& router>
void define_ops(Library& library, const std::string& prefix = "") {
  for (const char* schema : torch_ops::router_schemas) library.def((prefix + schema).c_str());
  library.impl((prefix + "sizes").c_str(), TORCH_BOX((&torch_ops::RouterOps<Api<Cpu>, router>::sizes)));
}

/// The signatures of the operators of `router` that permute, too, beside define_ops.
template <const auto& router>
void define_fused_ops(Library& library, const std::string& prefix = "") {
  for (const char* schema : torch_ops::fused_schemas) library.def((prefix + schema).c_str());
}

/// Defines the signatures of dispatch, once for all routers.
inline void define_dispatch_ops(Library& library) {
  for (const char* schema : torch_ops::dispatch_schemas) library.def(schema);
}

/// The operators of `router` in a STABLE_TORCH_LIBRARY_IMPL of the device's key.
template <const auto& router, class Device = Cpu>
void implement_ops(Library& library, const std::string& prefix = "") {
  torch_ops::for_each_router_op<torch_ops::RouterOps<Api<Device>, router>>([&]<auto function>(const char* name) {
    library.impl((prefix + name).c_str(), TORCH_BOX(function));
  });
}

/// Those that permute, too, likewise. They have kernels of their own on a GPU: compiling takes longer.
template <const auto& router, class Device = Cpu>
void implement_fused_ops(Library& library, const std::string& prefix = "") {
  torch_ops::for_each_fused_op<torch_ops::RouterOps<Api<Device>, router>>([&]<auto function>(const char* name) {
    library.impl((prefix + name).c_str(), TORCH_BOX(function));
  });
}

/// The operators of dispatch, likewise.
template <class Device = Cpu>
void implement_dispatch_ops(Library& library) {
  torch_ops::for_each_dispatch_op<torch_ops::DispatchOps<Api<Device>>>([&]<auto function>(const char* name) {
    library.impl(name, TORCH_BOX(function));
  });
}

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
