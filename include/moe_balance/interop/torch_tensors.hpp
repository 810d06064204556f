// How the operators of torch_ops.hpp see PyTorch's tensors: what an interface of PyTorch offers (`TensorApi`), and views that check type, dimensions, strides
// and device before anything is read or written. Shapes, strides and types are judged by dlpack.hpp, in its wording.
#pragma once

#include <moe_balance/engine/validate.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/interop/dlpack.hpp>
#include <moe_balance/views.hpp>

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>

MOEB_NAMESPACE_BEGIN

namespace torch_ops MOEB_HIDDEN {

/// A tensor as dlpack.hpp reads it. Borrows shape and strides from the tensor.
struct TensorView {
  /// Device types: DLPack's, and one for tensors without data.
  static constexpr int cpu = 1;
  static constexpr int cuda = 2;
  static constexpr int meta = 0;

  struct Device {
    int device_type;
    int device_id;

    bool operator==(const Device&) const = default;
    [[nodiscard]] std::string text() const {
      return device_type == cpu ? "cpu" : device_type == cuda ? "cuda:" + std::to_string(device_id) : "meta";
    }
  };
  struct Type {
    int code;
    int bits;
    int lanes;
  };
  void* data;
  Device device;
  int ndim;
  Type dtype;
  const std::int64_t* shape;
  const std::int64_t* strides;
  std::uint64_t byte_offset = 0;
};
static_assert(DlpackTensor<TensorView>);

/// How DLPack writes an element type of PyTorch; a type that no argument has becomes an opaque one (code 3).
template <class ScalarType>
[[nodiscard]] TensorView::Type dlpack_type(ScalarType type) {
  struct Entry {
    ScalarType type;
    int code;
    int bits;
  };
  constexpr Entry entries[] = {{ScalarType::Float, dlpack::code_float, 32},  {ScalarType::BFloat16, dlpack::code_bfloat, 16},
                               {ScalarType::Half, dlpack::code_float, 16},   {ScalarType::Double, dlpack::code_float, 64},
                               {ScalarType::Int, dlpack::code_int, 32},      {ScalarType::Long, dlpack::code_int, 64},
                               {ScalarType::Byte, dlpack::code_unsigned, 8}, {ScalarType::Bool, dlpack::code_bool, 8},
                               {ScalarType::Short, dlpack::code_int, 16},    {ScalarType::Char, dlpack::code_int, 8}};
  for (const Entry& entry : entries) {
    if (entry.type == type) return {entry.code, entry.bits, 1};
  }
  return {3, 0, 1};
}

/// Some parts of a call, as PyTorch's parallel_for hands them to a thread.
struct PartRange {
  const ExecutorPart& part;
  void operator()(std::int64_t first, std::int64_t last) const {
    for (std::int64_t i = first; i < last; ++i) part(static_cast<int>(i));
  }
};

/// What an interface of PyTorch has to offer. `run(tensor, call)` calls `call(place)` with the place where the tensor's calls run.
template <class A>
concept TensorApi = requires(const typename A::Tensor& tensor, const typename A::Optional& optional,
                             std::initializer_list<std::int64_t> sizes, typename A::ScalarType type) {
  { optional.has_value() } -> std::convertible_to<bool>;
  { *optional } -> std::convertible_to<const typename A::Tensor&>;
  { A::view(tensor) } -> std::same_as<TensorView>;
  { A::scalar_type(tensor) } -> std::same_as<typename A::ScalarType>;
  { A::empty(tensor, sizes, type) } -> std::same_as<typename A::Tensor>;
  { A::contiguous(tensor) } -> std::same_as<typename A::Tensor>;
  { A::clone(tensor) } -> std::same_as<typename A::Tensor>;
};

/// Views of the tensors of one call, each checked: type, dimensions, strides, and that it lies where the call's first tensor does. Sizes are the library's to check.
template <TensorApi Api>
class Views {
 public:
  using Tensor = typename Api::Tensor;
  using Optional = typename Api::Optional;

  Views(const char* call, const Tensor& first) : call_(call), device_(Api::view(first).device) {}

  [[nodiscard]] AnyMatrix matrix(const char* name, const Tensor& tensor) const {
    return matrix_of_dlpack(call_, name, at_first(name, tensor));
  }
  [[nodiscard]] AnyMatrix matrix(const char* name, const Optional& tensor) const {
    return tensor.has_value() ? matrix(name, *tensor) : AnyMatrix{};
  }
  template <class T>
  [[nodiscard]] MatrixView<T> matrix(const char* name, const Tensor& tensor) const {
    return matrix_of_dlpack<T>(call_, name, at_first(name, tensor));
  }
  template <class T>
  [[nodiscard]] VectorView<T> vector(const char* name, const Tensor& tensor) const {
    return vector_of_dlpack<T>(call_, name, at_first(name, tensor));
  }
  /// The elements of an optional [size] tensor; null where there is none.
  template <class T>
  [[nodiscard]] T* elements(const char* name, const Optional& tensor, std::int64_t size) const {
    if (!tensor.has_value()) return nullptr;
    const VectorView<T> view = vector<T>(name, *tensor);
    Validator{call_}.range({name, "size"}, view.size, size, size);
    return view.data;
  }
  /// The one element of an optional tensor of any dimensions.
  template <class T>
  [[nodiscard]] T* element(const char* name, const Optional& tensor) const {
    if (!tensor.has_value()) return nullptr;
    TensorView view = at_first(name, *tensor);
    std::int64_t size = 1;
    for (int i = 0; i < view.ndim; ++i) size *= view.shape[i];
    view.ndim = 1;
    view.shape = &size;
    const VectorView<T> whole = vector_of_dlpack<T>(call_, name, view);
    Validator{call_}.range({name, "size"}, whole.size, 1, 1);
    return whole.data;
  }
  /// A state of layers: [L, E], or [E] as one layer.
  template <class T>
  [[nodiscard]] MatrixView<T> layers(const char* name, const Tensor& tensor) const {
    if (Api::view(tensor).ndim != 1) return matrix<T>(name, tensor);
    const VectorView<T> layer = vector<T>(name, tensor);
    return {layer.data, 1, layer.size};
  }
  /// The biases of layers; where their rule keeps something for each, it lies behind them: [1 + memory, L, E], or [1 + memory, E] of one layer.
  [[nodiscard]] BiasRef biases(const char* name, const Tensor& tensor, int memory) const {
    if (memory == 0) {
      const MatrixView<float> view = layers<float>(name, tensor);
      return {view.data, static_cast<int>(view.columns), view.rows, view.stride};
    }
    TensorView view = at_first(name, tensor);
    const Validator check{call_};
    check.range({name, "ndim"}, view.ndim, 2, 3, "the biases of one layer or of many, and what their rule keeps");
    check.range({name, "shape[0]"}, view.shape[0], 1 + memory, 1 + memory, "the biases and what their rule keeps");
    std::int64_t layer_count = 1;
    std::int64_t shape[] = {view.shape[0], view.shape[view.ndim - 1]};
    std::int64_t strides[] = {view.strides[0], view.strides[view.ndim - 1]};
    if (view.ndim == 3 && view.shape[1] != 1) {  // of one layer, its stride means nothing
      layer_count = view.shape[1];
      shape[0] *= layer_count;
      strides[0] = view.strides[1];
      check.range({name, "strides[2]"}, shape[1] > 1 ? strides[1] : 1, 1, 1, "rows must be contiguous");
      if (layer_count > 0) {
        const std::int64_t table = layer_count * strides[0];
        check.range({name, "strides[0]"}, view.strides[0], table, table, "tables behind one another");
      }
    }
    view.ndim = 2;
    view.shape = shape;
    view.strides = strides;
    const MatrixView<float> rows = matrix_of_dlpack<float>(call_, name, view);
    return BiasRef(rows.data, static_cast<int>(rows.columns), layer_count, rows.stride).with_memory(memory);
  }

 private:
  /// The tensor's view, for dlpack.hpp as if it lay on the CPU once its device has been checked.
  [[nodiscard]] TensorView at_first(const char* name, const Tensor& tensor) const {
    TensorView view = Api::view(tensor);
    MOEB_EXPECTS(view.device == device_, call_, (std::string(name) + ".device").c_str(), view.device.text(),
                 device_.text() + ", where the call's first tensor lies");
    view.device = {TensorView::cpu, 0};
    return view;
  }

  const char* call_;
  TensorView::Device device_;
};

/// Gradients arrive in whatever form autograd has, expanded from one element, say: as a tensor with rows. Empty stays empty.
template <TensorApi Api>
[[nodiscard]] typename Api::Optional with_rows(const typename Api::Optional& gradient) {
  if (!gradient.has_value()) return {};
  return Api::contiguous(*gradient);
}

}  // namespace MOEB_HIDDEN

MOEB_NAMESPACE_END
