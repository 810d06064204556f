// Views of DLPack tensors, without copies: what PyTorch, JAX, NumPy, CuPy and others exchange.
//
// The functions take any struct with the members of DLPack's DLTensor (data, device, ndim, dtype, shape, strides, byte_offset), whoever
// declares it: <dlpack/dlpack.h> of any version, or a framework's copy. This library has none of its own.
// Whether a tensor is read-only stands in DLManagedTensorVersioned's flags, beside the tensor: look there before a call writes through a view.
// A view borrows: the tensor's owner must keep it alive (call its deleter only) after the last call that uses the view has run.
// Format: https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/views.hpp>

#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

template <class T>
concept DlpackTensor = requires(const T& tensor) {
  { tensor.data } -> std::convertible_to<void*>;
  { tensor.device.device_id } -> std::convertible_to<int>;
  static_cast<int>(tensor.device.device_type);
  { tensor.ndim } -> std::convertible_to<int>;
  { tensor.dtype.code } -> std::convertible_to<int>;
  { tensor.dtype.bits } -> std::convertible_to<int>;
  { tensor.dtype.lanes } -> std::convertible_to<int>;
  { tensor.shape } -> std::convertible_to<const std::int64_t*>;
  { tensor.strides } -> std::convertible_to<const std::int64_t*>;
  { tensor.byte_offset } -> std::convertible_to<std::uint64_t>;
};

/// Where memory must lie for a call: on the CPU (device types kDLCPU and kDLCUDAHost, DLPack's 1 and 3), or on the CUDA device `id` (kDLCUDA and
/// kDLCUDAManaged, 2 and 13).
struct DlpackDevice {
  /// CPU or CUDA.
  enum class Kind : std::uint8_t { cpu, cuda };
  Kind kind = Kind::cpu;  ///< where the call runs
  int id = 0;             ///< of a CUDA device; managed memory is on all of them

  /// Whether memory of this DLPack device can be read there.
  [[nodiscard]] bool holds(int type, int device_id) const {
    if (kind == Kind::cpu) return type == 1 || type == 3;
    return type == 13 || (type == 2 && device_id == id);
  }
  /// For messages.
  [[nodiscard]] std::string allowed() const {
    return kind == Kind::cpu ? "device type 1 (CPU) or 3 (pinned)"
                             : "device type 2 (CUDA) with id " + std::to_string(id) + ", or 13 (managed)";
  }
};

namespace dlpack {

/// DLPack's type codes.
inline constexpr int code_int = 0;
inline constexpr int code_unsigned = 1;
inline constexpr int code_float = 2;
inline constexpr int code_bfloat = 4;
inline constexpr int code_bool = 6;

/// "int64"; a type without such a name as its code, bits and lanes.
[[nodiscard]] inline std::string type_text(int code, int bits, int lanes = 1) {
  if (code == code_bool && bits == 8 && lanes == 1) return "bool";
  if (code == code_bfloat && bits == 16 && lanes == 1) return "bfloat16";
  if (code >= code_int && code <= code_float && lanes == 1) {
    return (code == code_int ? "int" : code == code_unsigned ? "uint" : "float") + std::to_string(bits);
  }
  return "code " + std::to_string(code) + ", " + std::to_string(bits) + " bits, " + std::to_string(lanes) + " lanes";
}
template <DlpackTensor Tensor>
[[nodiscard]] std::string type_text(const Tensor& tensor) {
  return type_text(static_cast<int>(tensor.dtype.code), static_cast<int>(tensor.dtype.bits),
                   static_cast<int>(tensor.dtype.lanes));
}

template <DlpackTensor Tensor>
[[nodiscard]] bool has_type(const Tensor& tensor, int code, int bits) {
  return tensor.dtype.code == code && tensor.dtype.bits == bits && tensor.dtype.lanes == 1;
}

template <DlpackTensor Tensor>
void expect_memory(const char* call, const char* argument, const Tensor& tensor, int dimensions,
                   const DlpackDevice& device) {
  const std::string name(argument);
  MOEB_EXPECTS(tensor.ndim == dimensions, call, (name + ".ndim").c_str(), std::to_string(tensor.ndim),
               std::to_string(dimensions));
  MOEB_EXPECTS(tensor.shape != nullptr, call, (name + ".shape").c_str(), "null", "an array of ndim sizes");
  const int type = static_cast<int>(tensor.device.device_type);
  MOEB_EXPECTS(device.holds(type, tensor.device.device_id), call, (name + ".device").c_str(),
               "type " + std::to_string(type) + " with id " + std::to_string(tensor.device.device_id), device.allowed());
  for (int i = 0; i < dimensions; ++i) {
    MOEB_EXPECTS(tensor.shape[i] >= 0, call, (name + ".shape[" + std::to_string(i) + "]").c_str(),
                 std::to_string(tensor.shape[i]), "0 or more");
  }
}

template <DlpackTensor Tensor>
[[nodiscard]] void* first_element(const Tensor& tensor) {
  return tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
}

/// Elements from row to row. Neighbours of a row must lie together; strides of a tensor without elements, and of a dimension of size 1, mean nothing.
template <DlpackTensor Tensor>
[[nodiscard]] std::int64_t row_stride(const char* call, const char* argument, const Tensor& tensor) {
  const std::int64_t rows = tensor.shape[0];
  const std::int64_t columns = tensor.shape[1];
  if (tensor.strides == nullptr || rows == 0) return columns;
  const std::string name(argument);
  MOEB_EXPECTS(columns <= 1 || tensor.strides[1] == 1, call, (name + ".strides[1]").c_str(),
               std::to_string(tensor.strides[1]), "1: rows must be contiguous");
  if (rows <= 1) return columns;
  MOEB_EXPECTS(tensor.strides[0] >= columns, call, (name + ".strides[0]").c_str(), std::to_string(tensor.strides[0]),
               std::to_string(columns) + " (the columns) or more");
  return tensor.strides[0];
}

template <DlpackTensor Tensor>
[[nodiscard]] DataType element_type(const char* call, const char* argument, const Tensor& tensor) {
  if (has_type(tensor, code_float, 32)) return DataType::float32;
  if (has_type(tensor, code_bfloat, 16)) return DataType::bfloat16;
  if (has_type(tensor, code_float, 16)) return DataType::float16;
  if (has_type(tensor, code_float, 64)) return DataType::float64;
  fail_argument(call, (std::string(argument) + ".dtype").c_str(), type_text(tensor),
                {"float32, bfloat16, float16, float64"});
}

/// Whether a tensor has elements of T; int32, int64, uint8 (bool, too) and float32 are what arguments have.
template <class T, DlpackTensor Tensor>
void expect_type(const char* call, const char* argument, const Tensor& tensor) {
  using Element = std::remove_const_t<T>;
  constexpr int bits = 8 * static_cast<int>(sizeof(Element));
  const bool is_byte = std::is_same_v<Element, std::uint8_t> && has_type(tensor, code_bool, 8);
  const int code = std::is_floating_point_v<Element> ? code_float : std::is_signed_v<Element> ? code_int : code_unsigned;
  MOEB_EXPECTS(is_byte || has_type(tensor, code, bits), call, (std::string(argument) + ".dtype").c_str(), type_text(tensor),
               type_text(code, bits) + (bits == 8 ? ", bool" : ""));
}

}  // namespace dlpack

/// A [rows, columns] tensor of floats as logits, weights or their gradients. `call` and `argument` name it in errors.
/// Errors: InvalidArgument for another number of dimensions, device, type, or strides that are not those of rows.
template <DlpackTensor Tensor>
[[nodiscard]] AnyMatrix matrix_of_dlpack(const char* call, const char* argument, const Tensor& tensor,
                                         const DlpackDevice& device = {}) {
  dlpack::expect_memory(call, argument, tensor, 2, device);
  const DataType type = dlpack::element_type(call, argument, tensor);
  const std::int64_t stride = dlpack::row_stride(call, argument, tensor);
  return {dlpack::first_element(tensor), type, tensor.shape[0], tensor.shape[1], stride};
}

/// A [rows, columns] tensor of T: expert ids (std::int32_t), row_of_slot (std::int64_t). Errors as above.
template <class T, DlpackTensor Tensor>
[[nodiscard]] MatrixView<T> matrix_of_dlpack(const char* call, const char* argument, const Tensor& tensor,
                                             const DlpackDevice& device = {}) {
  dlpack::expect_memory(call, argument, tensor, 2, device);
  dlpack::expect_type<T>(call, argument, tensor);
  const std::int64_t stride = dlpack::row_stride(call, argument, tensor);
  return {static_cast<T*>(dlpack::first_element(tensor)), tensor.shape[0], tensor.shape[1], stride};
}

/// A contiguous [size] tensor of T: counts and load (std::int64_t), bias (float), active (std::uint8_t, or bool). Errors as above.
template <class T, DlpackTensor Tensor>
[[nodiscard]] VectorView<T> vector_of_dlpack(const char* call, const char* argument, const Tensor& tensor,
                                             const DlpackDevice& device = {}) {
  dlpack::expect_memory(call, argument, tensor, 1, device);
  dlpack::expect_type<T>(call, argument, tensor);
  MOEB_EXPECTS(tensor.strides == nullptr || tensor.shape[0] <= 1 || tensor.strides[0] == 1, call,
               (std::string(argument) + ".strides[0]").c_str(), std::to_string(tensor.strides[0]), "1: contiguous");
  return {static_cast<T*>(dlpack::first_element(tensor)), tensor.shape[0]};
}

MOEB_NAMESPACE_END
