// PyTorch operators of a router, through libtorch's C++ interface (1.13 or newer), with autograd.
//
//   const mb::presets::DeepSeekV3<> router;
//   TORCH_LIBRARY(my_moe, m) {
//     mb::pytorch::define_ops<router>(m);
//     mb::pytorch::define_dispatch_ops(m);
//   }
//
// Python then has torch.ops.my_moe.forward and the others that torch_ops.hpp lists, for tensors on the CPU, and for meta tensors, so that shapes can be
// traced; C++ has them through the dispatcher, or directly as mb::pytorch::Ops<router>::forward, without autograd. torch.cuh adds CUDA.
// Weights, loss, permute and combine are differentiable once; a second derivative is refused when it is asked for. Errors are InvalidArgument, in Python a
// ValueError or RuntimeError, by version. A shared object that is built so serves the version of PyTorch that it was built with; torch_stable.hpp serves later ones, too.
#pragma once

#include <moe_balance/dispatch/host.hpp>
#include <moe_balance/engine/host.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/interop/torch_ops.hpp>

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

MOEB_NAMESPACE_BEGIN

namespace pytorch MOEB_HIDDEN {

/// PyTorch's number of threads, and its own threads where the program can use them: where PyTorch's are OpenMP's, if it is compiled with
/// -fopenmp, all files of a shared object alike.
[[nodiscard]] inline Host host() {
#ifdef INTRA_OP_PARALLEL
  static constexpr auto run_parts = [](int parts, const auto& part) {
    at::parallel_for(0, parts, 1, torch_ops::PartRange{part});
  };
  return {.threads = at::get_num_threads(), .executor = executor_of(run_parts)};
#else
  return {.threads = at::get_num_threads()};
#endif
}

/// Runs calls on the CPU with PyTorch's number of threads; on a meta tensor nothing runs.
struct Cpu {
  static constexpr bool has_cuda = false;

  template <class Call>
  static void run(const at::Tensor& tensor, const Call& call) {
    if (!tensor.is_meta()) call(host());
  }
};

/// The classic interface of PyTorch, as torch_ops.hpp asks for it. `Devices` says where calls run: Cpu, or CpuAndCuda of torch.cuh.
template <class Devices>
struct Api {
  using Tensor = at::Tensor;
  using Optional = c10::optional<at::Tensor>;
  using ScalarType = at::ScalarType;

  [[nodiscard]] static torch_ops::TensorView view(const Tensor& tensor) {
    TORCH_CHECK(tensor.layout() == at::kStrided, "moe_balance: a tensor has the layout ", tensor.layout(),
                "; allowed: strided");
    return {tensor.is_meta() ? nullptr : tensor.data_ptr(), device_of(tensor),     static_cast<int>(tensor.dim()),
            torch_ops::dlpack_type(tensor.scalar_type()),   tensor.sizes().data(), tensor.strides().data()};
  }
  [[nodiscard]] static torch_ops::TensorView::Device device_of(const Tensor& tensor) {
    using torch_ops::TensorView;
    if (tensor.is_cuda()) return {TensorView::cuda, static_cast<int>(tensor.get_device())};
    return {tensor.is_meta() ? TensorView::meta : TensorView::cpu, 0};
  }
  [[nodiscard]] static ScalarType scalar_type(const Tensor& tensor) { return tensor.scalar_type(); }
  [[nodiscard]] static Tensor empty(const Tensor& like, std::initializer_list<std::int64_t> sizes, ScalarType type) {
    return at::empty(at::IntArrayRef(sizes), at::TensorOptions().device(like.device()).dtype(type));
  }
  [[nodiscard]] static Tensor contiguous(const Tensor& tensor) { return tensor.contiguous(); }
  [[nodiscard]] static Tensor clone(const Tensor& tensor) { return tensor.clone(); }
  template <class Call>
  static void run(const Tensor& tensor, const Call& call) {
    Devices::run(tensor, call);
  }
};

/// The operators as functions of at::Tensor, without autograd: Ops<router>::forward(logits, bias, ...).
template <const auto& router, class Devices = Cpu>
using Ops = torch_ops::RouterOps<Api<Devices>, router>;
template <class Devices = Cpu>
using Dispatch = torch_ops::DispatchOps<Api<Devices>>;

namespace detail {

using ::torch::autograd::AutogradContext;
using ::torch::autograd::variable_list;
using Stack = std::vector<c10::IValue>;

/// "ns::forward" of an operator.
[[nodiscard]] inline const std::string& name_of(const c10::OperatorHandle& op) {
  return op.operator_name().name;
}

/// Calls an operator below autograd; arguments become results.
[[nodiscard]] inline variable_list call_below_autograd(const c10::OperatorHandle& op, Stack& arguments) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.callBoxed(&arguments);
  variable_list results;
  for (const c10::IValue& result : arguments) results.push_back(result.toTensor());
  return results;
}

/// Calls the backward operator whose name forward has saved.
inline void call_backward(AutogradContext* context, Stack& arguments) {
  const std::string& name = context->saved_data["backward"].toStringRef();
  c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").callBoxed(&arguments);
}

[[nodiscard]] inline c10::IValue optional_tensor(const at::Tensor& tensor) {
  return tensor.defined() ? c10::IValue(tensor) : c10::IValue();
}
[[nodiscard]] inline at::Tensor tensor_or_none(const c10::IValue& value) {
  return value.isTensor() ? value.toTensor() : at::Tensor();
}

/// A router's forward: what has a gradient is the logits.
struct Forward : ::torch::autograd::Function<Forward> {
  static variable_list forward(AutogradContext* context, const at::Tensor& logits, const c10::OperatorHandle& op,
                               Stack arguments) {
    const at::Tensor active = tensor_or_none(arguments[4]);
    const at::Tensor balanced = tensor_or_none(arguments[8]);
    const at::Tensor offsets = tensor_or_none(arguments[9]);
    context->saved_data["sequences"] = arguments[5];
    context->saved_data["token_major"] = arguments[10];
    const variable_list results = call_below_autograd(op, arguments);
    const std::string& name = name_of(op);  // of forward or forward_and_permute
    context->saved_data["backward"] = name.substr(0, name.rfind("forward")) + "backward";
    context->save_for_backward({logits, results[0], results[4], active, balanced, offsets});
    variable_list without_gradient{results[0], results[2]};
    without_gradient.insert(without_gradient.end(), results.begin() + 4, results.end());
    context->mark_non_differentiable(without_gradient);
    context->set_materialize_grads(false);
    return results;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    Stack arguments{saved[0],
                    saved[1],
                    saved[2],
                    optional_tensor(gradients[1]),
                    optional_tensor(gradients[3]),
                    optional_tensor(saved[3]),
                    context->saved_data["sequences"],
                    optional_tensor(saved[4]),
                    optional_tensor(saved[5]),
                    context->saved_data["token_major"]};
    call_backward(context, arguments);
    return {arguments[0].toTensor(), at::Tensor(), at::Tensor()};
  }
};

/// permute and combine: (rows, row_of_slot, slot_of_row, factors); rows and factors have gradients.
struct MoveRows : ::torch::autograd::Function<MoveRows> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows, const c10::optional<at::Tensor>& factors,
                            const c10::OperatorHandle& op, Stack arguments) {
    const at::Tensor row_of_slot = arguments[1].toTensor();
    const at::Tensor slot_of_row = arguments[2].toTensor();
    context->saved_data["backward"] = name_of(op) + "_backward";
    context->saved_data["takes_slots"] = op.schema().arguments()[0].name() == "permuted";
    context->save_for_backward({rows, row_of_slot, slot_of_row, factors.value_or(at::Tensor())});
    return call_below_autograd(op, arguments)[0];
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const bool has_factors = saved[3].defined();
    Stack arguments{gradients[0], saved[1]};
    if (context->saved_data["takes_slots"].toBool()) arguments.emplace_back(saved[2]);
    arguments.push_back(has_factors ? c10::IValue(saved[0]) : c10::IValue());
    arguments.push_back(optional_tensor(saved[3]));
    call_backward(context, arguments);
    return {arguments[0].toTensor(), has_factors ? arguments[1].toTensor() : at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

/// routing_of_rows: (weights, experts, row_of_slot, slot_of_row, experts_per_rank); weights have a gradient.
struct CopyWeights : ::torch::autograd::Function<CopyWeights> {
  static variable_list forward(AutogradContext* context, const at::Tensor& /*weights*/, const c10::OperatorHandle& op,
                               Stack arguments) {
    context->saved_data["backward"] = name_of(op) + "_backward";
    context->saved_data["experts_per_rank"] = arguments[4];
    context->save_for_backward({arguments[1].toTensor(), arguments[2].toTensor()});
    const variable_list results = call_below_autograd(op, arguments);
    context->mark_non_differentiable({results[0]});
    return results;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    Stack arguments{gradients[1], saved[0], saved[1], context->saved_data["experts_per_rank"]};
    call_backward(context, arguments);
    return {arguments[0].toTensor(), at::Tensor(), at::Tensor()};
  }
};

/// A backward operator: it has no derivative, which is an error only where one is asked for.
struct Once : ::torch::autograd::Function<Once> {
  static variable_list forward(AutogradContext* context, at::TensorList /*inputs*/, const c10::OperatorHandle& op,
                               Stack arguments) {
    context->saved_data["name"] = name_of(op);
    return call_below_autograd(op, arguments);
  }
  static variable_list backward(AutogradContext* context, const variable_list& /*gradients*/) {
    fail_argument(context->saved_data["name"].toStringRef().c_str(), "the derivative", "the second", {"the first"});
  }
};

/// Puts results where the dispatcher wants them: in place of the arguments.
inline void replace(::torch::jit::Stack* stack, std::size_t arguments, const variable_list& results) {
  stack->erase(stack->end() - static_cast<std::ptrdiff_t>(arguments), stack->end());
  for (const at::Tensor& result : results) stack->emplace_back(result);
}
[[nodiscard]] inline Stack arguments_of(const c10::OperatorHandle& op, const ::torch::jit::Stack& stack) {
  return {stack.end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size()), stack.end()};
}

inline void differentiate_forward(const c10::OperatorHandle& op, ::torch::jit::Stack* stack) {
  const Stack arguments = arguments_of(op, *stack);
  replace(stack, arguments.size(), Forward::apply(arguments[0].toTensor(), op, arguments));
}
inline void differentiate_rows(const c10::OperatorHandle& op, ::torch::jit::Stack* stack) {
  const Stack arguments = arguments_of(op, *stack);
  const auto factors = arguments[3].toOptional<at::Tensor>();
  replace(stack, arguments.size(), {MoveRows::apply(arguments[0].toTensor(), factors, op, arguments)});
}
inline void differentiate_weights(const c10::OperatorHandle& op, ::torch::jit::Stack* stack) {
  const Stack arguments = arguments_of(op, *stack);
  replace(stack, arguments.size(), CopyWeights::apply(arguments[0].toTensor(), op, arguments));
}
inline void differentiate_once(const c10::OperatorHandle& op, ::torch::jit::Stack* stack) {
  const Stack arguments = arguments_of(op, *stack);
  variable_list inputs;
  for (const c10::IValue& argument : arguments) {
    if (argument.isTensor()) inputs.push_back(argument.toTensor());
  }
  replace(stack, arguments.size(), Once::apply(at::TensorList(inputs), op, arguments));
}

template <void (*kernel)(const c10::OperatorHandle&, ::torch::jit::Stack*)>
void differentiate(::torch::Library& library, const std::string& name) {
  library.impl(name.c_str(),
               ::torch::dispatch(c10::DispatchKey::Autograd, ::torch::CppFunction::makeFromBoxedFunction<kernel>()));
}

/// Operators without a gradient pass autograd by; PyTorch 1.13 does so unasked for some devices only.
inline void pass_autograd(::torch::Library& library, const std::string& name) {
  library.impl(name.c_str(), ::torch::dispatch(c10::DispatchKey::Autograd, ::torch::CppFunction::makeFallthrough()));
}

/// Counts a version of each tensor that an operator changes in place, so that autograd finds saved ones out of date.
inline void count_versions(const c10::OperatorHandle& op, c10::DispatchKeySet keys, ::torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  std::vector<at::Tensor> changed;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& value = ::torch::jit::peek(*stack, i, arguments.size());
    if (arguments[i].alias_info() != nullptr && value.isTensor()) changed.push_back(value.toTensor());
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);  // a call that is refused changes nothing
  }
  for (const at::Tensor& tensor : changed) {
    if (tensor.defined() && !tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

template <class Devices, class Function>
void implement(::torch::Library& library, const std::string& name, Function* function) {
  library.impl(name.c_str(), ::torch::dispatch(c10::DispatchKey::CPU, function));
  library.impl(name.c_str(), ::torch::dispatch(c10::DispatchKey::Meta, function));
  if constexpr (Devices::has_cuda) library.impl(name.c_str(), ::torch::dispatch(c10::DispatchKey::CUDA, function));
}

}  // namespace detail

/// Defines the operators of `router` in a TORCH_LIBRARY; a prefix before their names keeps those of several routers apart. `router` is an object of
/// static storage duration, which may still change between calls.
template <const auto& router, class Devices = Cpu>
void define_ops(::torch::Library& library, const std::string& prefix = "") {
  for (const char* schema : torch_ops::router_schemas) library.def((prefix + schema).c_str());
  torch_ops::for_each_router_op<Ops<router, Devices>>([&]<auto function>(const char* name) {
    detail::implement<Devices>(library, prefix + name, function);
  });
  library.impl((prefix + "sizes").c_str(), &Ops<router, Devices>::sizes);
  detail::differentiate<&detail::differentiate_forward>(library, prefix + "forward");
  detail::differentiate<&detail::differentiate_once>(library, prefix + "backward");
  detail::pass_autograd(library, prefix + "route");
  detail::pass_autograd(library, prefix + "update");
  detail::pass_autograd(library, prefix + "losses");
  library.impl((prefix + "update").c_str(),
               ::torch::dispatch(c10::DispatchKey::ADInplaceOrView,
                                 ::torch::CppFunction::makeFromBoxedFunction<&detail::count_versions>()));
}

/// Defines the operators of `router` that permute, too, beside define_ops. They have kernels of their own on a GPU: compiling takes longer.
template <const auto& router, class Devices = Cpu>
void define_fused_ops(::torch::Library& library, const std::string& prefix = "") {
  for (const char* schema : torch_ops::fused_schemas) library.def((prefix + schema).c_str());
  torch_ops::for_each_fused_op<Ops<router, Devices>>([&]<auto function>(const char* name) {
    detail::implement<Devices>(library, prefix + name, function);
  });
  detail::differentiate<&detail::differentiate_forward>(library, prefix + "forward_and_permute");
  detail::pass_autograd(library, prefix + "route_and_permute");
}

/// Defines the operators of dispatch in a TORCH_LIBRARY, once for all its routers.
template <class Devices = Cpu>
void define_dispatch_ops(::torch::Library& library) {
  for (const char* schema : torch_ops::dispatch_schemas) library.def(schema);
  torch_ops::for_each_dispatch_op<Dispatch<Devices>>([&]<auto function>(const char* name) {
    detail::implement<Devices>(library, name, function);
  });
  detail::differentiate<&detail::differentiate_rows>(library, "permute");
  detail::differentiate<&detail::differentiate_rows>(library, "combine");
  detail::differentiate<&detail::differentiate_once>(library, "permute_backward");
  detail::differentiate<&detail::differentiate_once>(library, "combine_backward");
  detail::differentiate<&detail::differentiate_weights>(library, "routing_of_rows");
  detail::differentiate<&detail::differentiate_once>(library, "routing_of_rows_backward");
  detail::pass_autograd(library, "permutation");
  detail::pass_autograd(library, "once_per_rank");
}

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
