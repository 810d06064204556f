// Checks of the caller's arguments, before anything is written or enqueued. Each message names the argument, its value and what is
// allowed.
#pragma once

#include <moe_balance/arguments.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/error.hpp>

#include <cstdint>
#include <limits>
#include <string>

MOEB_NAMESPACE_BEGIN

[[nodiscard]] inline const char* name_of(DataType type) {
  switch (type) {
    case DataType::float32:
      return "float32";
    case DataType::bfloat16:
      return "bfloat16";
    case DataType::float16:
      return "float16";
    case DataType::float64:
      return "float64";
  }
  return "unknown";
}

/// What a message calls an argument: name, name.field, or name[index]. Put together only when a check fails: checks do not allocate.
struct ArgumentName {
  const char* name;
  const char* field = nullptr;
  std::int64_t index = -1;

  constexpr ArgumentName(const char* whole) : name(whole) {}
  constexpr ArgumentName(const char* owner, const char* member) : name(owner), field(member) {}
  constexpr ArgumentName(const char* array, std::int64_t element) : name(array), index(element) {}

  [[nodiscard]] std::string text() const {
    std::string result = name;
    if (field != nullptr) result += std::string(".") + field;
    if (index >= 0) result += "[" + std::to_string(index) + "]";
    return result;
  }
};

/// Argument checks of one call; `call` is its name in messages.
struct Validator {
  const char* call;

  void range(const ArgumentName& argument, std::int64_t value, std::int64_t least, std::int64_t most,
             const char* why = nullptr) const {
    MOEB_EXPECTS(value >= least && value <= most, call, argument.text().c_str(), std::to_string(value),
                 (least == most ? std::to_string(least) : std::to_string(least) + " to " + std::to_string(most)) +
                     (why == nullptr ? std::string() : std::string(" (") + why + ")"));
  }

  void pointer(const ArgumentName& argument, const void* data, std::size_t alignment) const {
    MOEB_EXPECTS(data != nullptr, call, argument.text().c_str(), "null", "a pointer to the caller's memory");
    optional_pointer(argument, data, alignment);
  }

  void optional_pointer(const ArgumentName& argument, const void* data, std::size_t alignment) const {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    MOEB_EXPECTS(address % alignment == 0, call, argument.text().c_str(), "at address " + std::to_string(address),
                 "addresses that are multiples of " + std::to_string(alignment));
  }

  void matrix(const char* name, const void* data, std::size_t element, std::int64_t rows, std::int64_t columns,
              std::int64_t stride, std::int64_t wanted_rows, std::int64_t wanted_columns) const {
    constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();
    range({name, "rows"}, rows, wanted_rows, wanted_rows, "the tokens of logits");
    range({name, "columns"}, columns, wanted_columns, wanted_columns);
    range({name, "stride"}, stride, columns, largest / static_cast<std::int64_t>(element) / (rows > 0 ? rows : 1),
          "elements; at least the columns, and rows * stride must fit memory");
    if (rows > 0) pointer({name, "data"}, data, element);
  }

  template <class T>
  void matrix(const char* name, const MatrixView<T>& view, std::int64_t rows, std::int64_t columns) const {
    matrix(name, view.data, sizeof(T), view.rows, view.columns, view.stride, rows, columns);
  }
  template <bool Const>
  void matrix(const char* name, const BasicAnyMatrix<Const>& view, std::int64_t rows, std::int64_t columns) const {
    matrix(name, view.data, size_of(view.type), view.rows, view.columns, view.stride, rows, columns);
  }

  void logits(const ConstAnyMatrix& view, int top_k, bool serves_float64) const {
    range("logits.rows", view.rows, 0, std::numeric_limits<std::int64_t>::max());
    range("logits.columns", view.columns, 1, max_experts, "experts");
    range("top_k.k", top_k, 1, view.columns, "K may not exceed the experts");
    matrix("logits", view, view.rows, view.columns);
    MOEB_EXPECTS(serves_float64 || view.type != DataType::float64, call, "logits.type", "float64",
                 "float32, bfloat16, float16; float64 on the CPU only");
  }

  /// Weights and gradients: float32 or the logits' type; float64 with float64.
  void type_beside_logits(const char* name, DataType type, DataType logits_type) const {
    const bool both_double = logits_type == DataType::float64;
    MOEB_EXPECTS(type == logits_type || (!both_double && type == DataType::float32), call,
                 ArgumentName(name, "type").text().c_str(), name_of(type),
                 both_double ? "float64, as the logits" : std::string("float32 or the logits' ") + name_of(logits_type));
  }

  void bias(const BiasRef& view, std::int64_t experts, bool required) const {
    if (!required && view.data == nullptr) return;
    pointer("bias.data", view.data, alignof(float));
    range("bias.experts", view.experts, experts, experts, "the experts of logits");
    range("bias.layers", view.layers, 1, 1, "one layer: bias.layer(l)");
  }

  void load(const LoadRef& view, std::int64_t experts, bool required) const {
    if (!required && view.counts == nullptr) return;
    pointer("load.counts", view.counts, alignof(std::int64_t));
    range("load.experts", view.experts, experts, experts, "the experts of logits");
    range("load.layers", view.layers, 1, 1, "one layer: load.layer(l)");
  }

  void memory(const char* name, const void* data, std::size_t bytes, std::size_t needed, std::size_t alignment) const {
    if (needed == 0) return;
    pointer({name, "data"}, data, alignment);
    range({name, "bytes"}, static_cast<std::int64_t>(bytes), static_cast<std::int64_t>(needed),
          std::numeric_limits<std::int64_t>::max());
  }

  /// Contents of offsets are read on the host only.
  void sequences(const Sequences& view, std::int64_t tokens, bool on_host) const {
    range("sequences.count", view.count, 1, std::numeric_limits<std::int32_t>::max());
    if (view.layout != Sequences::Layout::offsets) {
      MOEB_EXPECTS(tokens % view.count == 0, call, "sequences.count", std::to_string(view.count),
                   "a divisor of the " + std::to_string(tokens) + " tokens");
      return;
    }
    pointer("sequences.offsets", view.offsets, alignof(std::int64_t));
    if (!on_host) return;
    for (std::int64_t s = 0; s <= view.count; ++s) {
      const std::int64_t least = s == 0 ? 0 : s == view.count ? tokens : view.offsets[s - 1];
      const std::int64_t most = s == 0 ? 0 : tokens;
      range({"sequences.offsets", s}, view.offsets[s], least, most);
    }
  }
};

MOEB_NAMESPACE_END
