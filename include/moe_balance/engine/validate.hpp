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

/// Argument checks of one call; `call` is its name in messages.
struct Validator {
  const char* call;

  void range(const ArgumentName& argument, std::int64_t value, std::int64_t least, std::int64_t most,
             const char* why = nullptr) const {
    if (value < least || value > most) fail_range(argument, value, least, most, why);
  }

  void pointer(const ArgumentName& argument, const void* data, std::size_t alignment) const {
    MOEB_EXPECTS(data != nullptr, call, argument, "null", "a pointer to the caller's memory");
    optional_pointer(argument, data, alignment);
  }

  void optional_pointer(const ArgumentName& argument, const void* data, std::size_t alignment) const {
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    if (address % alignment != 0) fail_alignment(argument, address, alignment);
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

  /// `most`: what the engine's kernels were compiled for.
  void compiled_experts(std::int64_t experts, int most) const {
    if (experts > most && most < max_experts) {
      range("logits.columns", experts, 1, most, "kernels for more are not compiled: MOE_BALANCE_CUDA_MAX_EXPERTS");
    }
  }

  /// Weights and gradients: float32 or the logits' type; float64 with float64.
  void type_beside_logits(const char* name, DataType type, DataType logits_type) const {
    const bool both_double = logits_type == DataType::float64;
    MOEB_EXPECTS(type == logits_type || (!both_double && type == DataType::float32), call, ArgumentName(name, "type"),
                 name_of(type), both_double ? "" : "float32 or the logits' ",
                 both_double ? "float64, as the logits" : name_of(logits_type));
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

  /// What layers have of their rows is read on the host only.
  void load_of_layers(const LoadRef& view, bool on_host) const {
    pointer("load.counts", view.counts, alignof(std::int64_t));
    range("load.experts", view.experts, 1, max_experts);
    range("load.layers", view.layers, 1, std::numeric_limits<std::int32_t>::max());
    range("load.stride", view.stride, view.experts, std::numeric_limits<std::int32_t>::max());
    optional_pointer("load.experts_of_layer", view.experts_of_layer, alignof(std::int32_t));
    if (!on_host || view.experts_of_layer == nullptr) return;
    for (std::int64_t l = 0; l < view.layers; ++l) {
      range({"load.experts_of_layer", l}, view.experts_of_layer[l], 1, view.experts, "the experts of load");
    }
  }

  void bias_of_layers(const BiasRef& view, const LoadRef& load) const {
    pointer("bias.data", view.data, alignof(float));
    range("bias.experts", view.experts, load.experts, load.experts, "the experts of load");
    range("bias.layers", view.layers, load.layers, load.layers, "the layers of load");
    range("bias.stride", view.stride, view.experts, std::numeric_limits<std::int32_t>::max());
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
      MOEB_EXPECTS(tokens % view.count == 0, call, "sequences.count", view.count, "a divisor of the ", tokens, " tokens");
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

 private:
  [[noreturn, gnu::noinline, gnu::cold]] void fail_range(const ArgumentName& argument, std::int64_t value,
                                                         std::int64_t least, std::int64_t most, const char* why) const {
    std::string allowed;
    append_pieces(allowed, {least});
    if (least != most) append_pieces(allowed, {" to ", most});
    if (why != nullptr) append_pieces(allowed, {" (", why, ")"});
    fail_argument(call, argument, value, {allowed});
  }
  [[noreturn, gnu::noinline, gnu::cold]] void fail_alignment(const ArgumentName& argument, std::uintptr_t address,
                                                             std::size_t alignment) const {
    std::string value;
    append_pieces(value, {"at address ", address});
    fail_argument(call, argument, value, {"addresses that are multiples of ", alignment});
  }
};

MOEB_NAMESPACE_END
