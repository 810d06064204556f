// Views of XLA's buffers, without copies and with rank, element type and sizes checked.
//
// XLA's buffers are dense and row-major unless a call asks for other layouts, which handlers here do not. An empty buffer stands for an optional
// argument that is left out. int64 arrays may also be int32 with a last dimension of 2, the low word first: the same bits, for JAX without
// jax_enable_x64, which has no int64.
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/interop/xla_ffi_api.hpp>
#include <moe_balance/views.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

namespace xla {

namespace ffi = ::xla::ffi;

static_assert(std::endian::native == std::endian::little, "int64 as two int32 are read with the low word first");

/// Any operand or result of a call.
using Operand = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

/// Which element types serve as T, and their names in errors.
template <class T>
struct ElementOf;
template <>
struct ElementOf<float> {
  static constexpr const char* allowed = "F32";
  static bool is(ffi::DataType type) { return type == ffi::F32; }
};
template <>
struct ElementOf<std::int32_t> {
  static constexpr const char* allowed = "S32";
  static bool is(ffi::DataType type) { return type == ffi::S32; }
};
template <>
struct ElementOf<std::uint8_t> {
  static constexpr const char* allowed = "U8, PRED";
  static bool is(ffi::DataType type) { return type == ffi::U8 || type == ffi::PRED; }
};
template <>
struct ElementOf<std::int64_t> {
  static constexpr const char* allowed = "S64; S32 with a last dimension of 2 (low word, high word)";
  static bool is(ffi::DataType type) { return type == ffi::S64 || type == ffi::S32; }
};

/// Reads the buffers of one call; `call` is its name in errors. Errors: InvalidArgument, which names the argument, what it is and what is allowed.
struct Reader {
  const char* call;

  [[nodiscard]] AnyMatrix matrix(const char* name, const Operand& buffer) const {
    const ffi::AnyBuffer::Dimensions sizes = buffer.dimensions();
    expect_rank(name, sizes.size(), 2);
    return {buffer.untyped_data(), float_type(name, buffer), sizes[0], sizes[1], sizes[1]};
  }
  template <class T>
  [[nodiscard]] MatrixView<T> matrix_of(const char* name, const Operand& buffer) const {
    expect_element<T>(name, buffer);
    expect_rank(name, rank_of<T>(name, buffer), 2);
    return {data_of<T>(buffer), buffer.dimensions()[0], buffer.dimensions()[1]};
  }
  template <class T>
  [[nodiscard]] VectorView<T> vector_of(const char* name, const Operand& buffer) const {
    expect_element<T>(name, buffer);
    expect_rank(name, rank_of<T>(name, buffer), 1);
    return {data_of<T>(buffer), buffer.dimensions()[0]};
  }

  /// Biases of one layer or of many, and behind them what their rule keeps for each: [1 + memory, E] or [1 + memory, L, E]; without memory [E] or [L, E].
  [[nodiscard]] BiasRef biases_of(const char* name, const Operand& buffer, bool many, int memory) const {
    expect_element<float>(name, buffer);
    const ffi::AnyBuffer::Dimensions sizes = buffer.dimensions();
    expect_rank(name, sizes.size(), std::size_t{1} + (many ? 1 : 0) + (memory > 0 ? 1 : 0));
    if (memory > 0) {
      Validator{call}.range({name, "tables"}, sizes[0], 1 + memory, 1 + memory, "the biases and what their rule keeps");
    }
    const std::int64_t layers = many ? sizes[sizes.size() - 2] : 1;
    return BiasRef(data_of<float>(buffer), static_cast<int>(sizes.back()), layers).with_memory(memory);
  }

  [[nodiscard]] AnyMatrix optional_matrix(const char* name, const Operand& buffer) const {
    return is_empty(buffer) ? AnyMatrix{} : matrix(name, buffer);
  }
  template <class T>
  [[nodiscard]] MatrixView<T> optional_matrix_of(const char* name, const Operand& buffer) const {
    return is_empty(buffer) ? MatrixView<T>{} : matrix_of<T>(name, buffer);
  }
  /// `size` elements, or null for an empty buffer.
  template <class T>
  [[nodiscard]] T* optional_array(const char* name, const Operand& buffer, std::int64_t size, const char* what) const {
    return is_empty(buffer) ? nullptr : array<T>(name, buffer, size, what);
  }
  template <class T>
  [[nodiscard]] T* array(const char* name, const Operand& buffer, std::int64_t size, const char* what) const {
    const VectorView<T> view = vector_of<T>(name, buffer);
    MOEB_EXPECTS(view.size == size, call, (std::string(name) + ".size").c_str(), std::to_string(view.size),
                 std::to_string(size) + " (" + what + ")");
    return view.data;
  }
  template <class T>
  [[nodiscard]] T* scalar(const char* name, const Operand& buffer) const {
    expect_element<T>(name, buffer);
    expect_rank(name, buffer.dimensions().size(), 0);
    return static_cast<T*>(buffer.untyped_data());
  }
  /// The counters that every call clears and fills: int64 [4].
  [[nodiscard]] Status* status(const Operand& buffer) const {
    constexpr std::int64_t counters = sizeof(Status) / sizeof(std::int64_t);
    return reinterpret_cast<Status*>(array<std::int64_t>("status", buffer, counters, "counters of Status"));
  }
  [[nodiscard]] Workspace workspace(const Operand& buffer) const {
    const VectorView<std::uint8_t> bytes = vector_of<std::uint8_t>("workspace", buffer);
    return {bytes.data, static_cast<std::size_t>(bytes.size)};
  }
  [[nodiscard]] SavedRef saved(const Operand& buffer) const {
    const VectorView<std::uint8_t> bytes = vector_of<std::uint8_t>("saved", buffer);
    return {bytes.data, static_cast<std::size_t>(bytes.size)};
  }

  [[nodiscard]] static bool is_empty(const Operand& buffer) { return buffer.element_count() == 0; }

 private:
  template <class T>
  [[nodiscard]] static T* data_of(const Operand& buffer) {
    return static_cast<T*>(buffer.untyped_data());
  }

  [[nodiscard]] static std::string text_of(ffi::DataType type) {
    std::ostringstream text;
    text << type;
    return text.str();
  }

  void expect_rank(const char* name, std::size_t rank, std::size_t wanted) const {
    MOEB_EXPECTS(rank == wanted, call, (std::string(name) + ".rank").c_str(), std::to_string(rank), std::to_string(wanted));
  }

  template <class T>
  void expect_element(const char* name, const Operand& buffer) const {
    const ffi::DataType type = buffer.element_type();
    MOEB_EXPECTS(ElementOf<std::remove_const_t<T>>::is(type), call, (std::string(name) + ".dtype").c_str(), text_of(type),
                 ElementOf<std::remove_const_t<T>>::allowed);
  }

  /// Dimensions of elements of T: without the last one where two int32 make an int64.
  template <class T>
  [[nodiscard]] std::size_t rank_of(const char* name, const Operand& buffer) const {
    const ffi::AnyBuffer::Dimensions sizes = buffer.dimensions();
    if (!std::is_same_v<std::remove_const_t<T>, std::int64_t> || buffer.element_type() == ffi::S64) return sizes.size();
    const std::int64_t last = sizes.size() == 0 ? 1 : sizes.back();
    MOEB_EXPECTS(last == 2, call, (std::string(name) + ".dtype").c_str(),
                 "S32 with a last dimension of " + std::to_string(last), ElementOf<std::int64_t>::allowed);
    return sizes.size() - 1;
  }

  [[nodiscard]] DataType float_type(const char* name, const Operand& buffer) const {
    switch (buffer.element_type()) {
      case ffi::F32:
        return DataType::float32;
      case ffi::BF16:
        return DataType::bfloat16;
      case ffi::F16:
        return DataType::float16;
      case ffi::F64:
        return DataType::float64;
      default:
        fail_argument(call, (std::string(name) + ".dtype").c_str(), text_of(buffer.element_type()), {"F32, BF16, F16, F64"});
    }
  }
};

}  // namespace xla

MOEB_NAMESPACE_END
