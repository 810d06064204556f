// Checks of the caller's arguments, before anything is written or enqueued. Each message names the argument, its value and what is
// allowed.
#pragma once

#include <moe_balance/arguments.hpp>
#include <moe_balance/concepts.hpp>
#include <moe_balance/engine/tuning.hpp>
#include <moe_balance/error.hpp>
#include <moe_balance/numeric/math.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
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

/// The bytes of an argument: rows of `width` bytes, `pitch` bytes apart, in what lies from `first` to `last`. None where it is left out.
struct ByteRows {
  const char* name = nullptr;
  std::uintptr_t first = 0;
  std::uintptr_t last = 0;
  std::uintptr_t width = 0;
  std::uintptr_t pitch = 0;

  constexpr ByteRows() = default;
  ByteRows(const char* argument, const void* data, std::int64_t bytes) : ByteRows(argument, data, 1, bytes, bytes) {}
  ByteRows(const char* argument, const void* data, std::int64_t rows, std::int64_t row_bytes, std::int64_t row_pitch)
      : name(argument) {
    if (data == nullptr || rows <= 0 || row_bytes <= 0 || row_pitch < 0) return;
    const auto all = static_cast<std::uintptr_t>(rows - 1) * static_cast<std::uintptr_t>(row_pitch) +
                     static_cast<std::uintptr_t>(row_bytes);
    const bool has_gaps = rows > 1 && row_pitch > row_bytes;
    first = reinterpret_cast<std::uintptr_t>(data);
    last =
        all <= std::numeric_limits<std::uintptr_t>::max() - first ? first + all : std::numeric_limits<std::uintptr_t>::max();
    width = has_gaps ? static_cast<std::uintptr_t>(row_bytes) : all;
    pitch = has_gaps ? static_cast<std::uintptr_t>(row_pitch) : all;
  }

  /// Whether bytes of both may be the same: none are where these do not reach each other.
  [[nodiscard]] bool reaches(const ByteRows& other) const { return first < other.last && other.first < last; }
  [[nodiscard]] bool shares_with(const ByteRows& other) const {
    return reaches(other) && !has_in_gaps(other) && !other.has_in_gaps(*this);
  }

 private:
  /// Whether another argument, of one row or of the same pitch, lies between these rows, as columns of one table do.
  [[nodiscard]] bool has_in_gaps(const ByteRows& other) const {
    if (other.first < first || (other.pitch != pitch && other.last - other.first != other.width)) return false;
    const std::uintptr_t offset = (other.first - first) % pitch;
    return offset >= width && offset + other.width <= pitch;
  }
};

/// Of any number of elements: a view that a call does not read is checked for nothing else.
[[nodiscard]] inline std::int64_t bytes_of_elements(std::int64_t count, std::size_t element) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(count) * element);
}
template <class T>
[[nodiscard]] ByteRows bytes_of(const char* name, const MatrixView<T>& view) {
  return {name, view.data, view.rows, bytes_of_elements(view.columns, sizeof(T)), bytes_of_elements(view.stride, sizeof(T))};
}
template <bool Const>
[[nodiscard]] ByteRows bytes_of(const char* name, const BasicAnyMatrix<Const>& view) {
  const std::size_t element = size_of(view.type);
  return {name, view.data, view.rows, bytes_of_elements(view.columns, element), bytes_of_elements(view.stride, element)};
}
[[nodiscard]] inline ByteRows bytes_of(const BiasRef& view) {
  constexpr std::int64_t element = sizeof(float);
  const std::int64_t rows = view.layers * (1 + view.memory);
  return {"bias", view.data, rows, view.experts * element, view.stride * element};
}
[[nodiscard]] inline ByteRows bytes_of(const LoadRef& view) {
  constexpr std::int64_t element = sizeof(std::int64_t);
  return {"load", view.counts, view.layers, view.row_size() * element, view.stride * element};
}
[[nodiscard]] inline ByteRows bytes_of(const Sequences& view) {
  const bool is_read = view.layout == Sequences::Layout::offsets;
  return {"sequences.offsets", is_read ? view.offsets : nullptr, (view.count + 1) * std::int64_t{sizeof(std::int64_t)}};
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

  /// What another kind of selection would write or read, and this router would leave as it is.
  void left_out(const ArgumentName& argument, const void* data, const char* selection) const {
    MOEB_EXPECTS(data == nullptr, call, argument, "given", "null, unless the selection is ", selection);
  }

  void finite(const ArgumentName& argument, float value) const {
    MOEB_EXPECTS(is_finite(value), call, argument, std::to_string(value), "finite numbers");
  }

  /// Rows of elements of so many bytes, at a stride of so many elements.
  void fits_memory(const char* name, std::size_t element, std::int64_t rows, std::int64_t columns,
                   std::int64_t stride) const {
    constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();
    const std::int64_t elements = largest / static_cast<std::int64_t>(element);
    const std::int64_t longest = elements / (rows > 0 ? rows : 1);
    if (longest < columns) range({name, "rows"}, rows, 0, elements / columns, "rows * columns must fit memory");
    range({name, "stride"}, stride, columns, longest, "elements; at least the columns, and rows * stride must fit memory");
  }

  void matrix(const char* name, const void* data, std::size_t element, std::int64_t rows, std::int64_t columns,
              std::int64_t stride, std::int64_t wanted_rows, std::int64_t wanted_columns) const {
    range({name, "rows"}, rows, wanted_rows, wanted_rows, "the tokens of logits");
    range({name, "columns"}, columns, wanted_columns, wanted_columns);
    fits_memory(name, element, rows, columns, stride);
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
    MOEB_EXPECTS(view.type <= DataType::float64, call, ArgumentName("logits", "type"), static_cast<int>(view.type),
                 "float32, bfloat16, float16; float64 on the CPU only");
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
    range("bias.memory", view.memory, 0, max_bias_memory);
  }

  /// `bins`: of the histograms that the balancer's rule reads.
  void load(const LoadRef& view, std::int64_t experts, bool required, int bins) const {
    if (!required && view.counts == nullptr) return;
    pointer("load.counts", view.counts, alignof(std::int64_t));
    range("load.experts", view.experts, experts, experts, "the experts of logits");
    range("load.layers", view.layers, 1, 1, "one layer: load.layer(l)");
    load_bins(view, bins);
    if (bins > 0) load_stride(view);
  }
  void load_bins(const LoadRef& view, int bins) const {
    range("load.bins", view.bins, bins, bins, "the bins that the balancer's rule counts in: Load{router, experts, layers}");
  }
  void load_stride(const LoadRef& view) const {
    range("load.stride", view.stride, view.row_size(), std::numeric_limits<std::int32_t>::max(),
          view.bins > 0 ? "from what a layer has with its histograms on" : nullptr);
  }

  /// What layers have of their rows is read on the host only.
  void load_of_layers(const LoadRef& view, bool on_host, int bins) const {
    pointer("load.counts", view.counts, alignof(std::int64_t));
    range("load.experts", view.experts, 1, max_experts);
    range("load.layers", view.layers, 1, std::numeric_limits<std::int32_t>::max());
    load_bins(view, bins);
    load_stride(view);
    optional_pointer("load.experts_of_layer", view.experts_of_layer, alignof(std::int32_t));
    if (!on_host || view.experts_of_layer == nullptr) return;
    for (std::int64_t l = 0; l < view.layers; ++l) {
      range({"load.experts_of_layer", l}, view.experts_of_layer[l], 1, view.experts, "the experts of load");
    }
  }

  void bias_of_layers(const BiasRef& view, const LoadRef& load, int memory) const {
    pointer("bias.data", view.data, alignof(float));
    range("bias.experts", view.experts, load.experts, load.experts, "the experts of load");
    range("bias.layers", view.layers, load.layers, load.layers, "the layers of load");
    range("bias.stride", view.stride, view.experts, std::numeric_limits<std::int32_t>::max());
    range("bias.memory", view.memory, memory, memory,
          "what the balancer's rule keeps for each bias: Bias{router, experts}, with_memory");
    const std::int64_t bytes = load.layers * std::int64_t{sizeof(std::int32_t)};
    apart({bytes_of(view), bytes_of(load)}, {ByteRows("load.experts_of_layer", load.experts_of_layer, bytes)});
  }

  /// Of a GPU's block, for rows of so many experts.
  void shared_memory(std::int64_t experts, std::size_t needed, std::size_t available) const {
    MOEB_EXPECTS(needed <= available, call, "logits.columns", experts, "fewer: this balancer needs ", needed,
                 " bytes of shared memory for so many, and the device's blocks have ", available);
  }

  void memory(const char* name, const void* data, std::size_t bytes, std::size_t needed, std::size_t alignment) const {
    if (needed == 0) return;
    pointer({name, "data"}, data, alignment);
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    range({name, "bytes"}, static_cast<std::int64_t>(std::min(bytes, static_cast<std::size_t>(most))),
          static_cast<std::int64_t>(needed), most);
  }

  /// Contents of offsets are read on the host only.
  void sequences(const Sequences& view, std::int64_t tokens, bool on_host) const {
    MOEB_EXPECTS(view.layout <= Sequences::Layout::offsets, call, "sequences.layout", static_cast<int>(view.layout),
                 "sequence_major, token_major, offsets");
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

  /// What a call writes shares no byte with what else it writes or reads.
  void apart(std::initializer_list<ByteRows> written, std::initializer_list<ByteRows> read) const {
    const ByteRows* there[most_arguments];
    int count = 0;
    for (const ByteRows& a : written) {
      if (a.first != a.last) there[count++] = &a;
    }
    const int outputs = count;
    for (const ByteRows& a : read) {
      if (a.first != a.last) there[count++] = &a;
    }
    for (int a = 0; a < outputs; ++a) {
      for (int b = a + 1; b < count; ++b) {
        if (there[a]->reaches(*there[b])) apart(*there[a], *there[b]);
      }
    }
  }

  /// `saved_bytes`: of `saved`, what the call uses. `workspace`: what a pass behind the routing kernel writes of it. Replayed ids may lie where ids are written to.
  void forward_memory(const ForwardArgs& args, std::size_t saved_bytes, const MatrixView<std::int32_t>& chosen,
                      const ReplayRef& replay, const Sequences& sequences, const ByteRows& workspace) const {
    const std::int64_t tokens = args.logits.rows;
    const std::int64_t count_bytes = args.logits.columns * std::int64_t{sizeof(std::int64_t)};
    const bool rewrites_ids = replay.experts.data == args.experts.data && replay.experts.stride == args.experts.stride;
    apart(
        {bytes_of("experts", args.experts), bytes_of("weights", args.weights), ByteRows("counts", args.counts, count_bytes),
         bytes_of(args.load), ByteRows("saved", args.saved.data, static_cast<std::int64_t>(saved_bytes)),
         ByteRows("status", args.status, sizeof(Status)), bytes_of("chosen", chosen), workspace},
        {bytes_of("logits", args.logits), bytes_of(args.bias), ByteRows("active", args.active, tokens),
         ByteRows("balanced", args.balanced, tokens), rewrites_ids ? ByteRows() : bytes_of("replay.experts", replay.experts),
         ByteRows("replay.tokens", replay.tokens, tokens),
         ByteRows("tokens_on_device", args.tokens_on_device, sizeof(std::int64_t)), bytes_of(sequences)});
  }

  /// See forward_memory. The gradient may take the logits' place.
  void backward_memory(const BackwardArgs& args, std::size_t saved_bytes, const MatrixView<const std::int32_t>& chosen,
                       const Sequences& sequences) const {
    const bool is_in_place = args.grad_logits.data == args.logits.data && args.grad_logits.type == args.logits.type &&
                             args.grad_logits.stride == args.logits.stride;
    apart({bytes_of("grad_logits", args.grad_logits)},
          {is_in_place ? ByteRows() : bytes_of("logits", args.logits), bytes_of("experts", args.experts),
           bytes_of("chosen", chosen), bytes_of("grad_weights", args.grad_weights),
           ByteRows("saved", args.saved.data, static_cast<std::int64_t>(saved_bytes)),
           ByteRows("active", args.active, args.logits.rows), ByteRows("balanced", args.balanced, args.logits.rows),
           ByteRows("tokens_on_device", args.tokens_on_device, sizeof(std::int64_t)),
           ByteRows("grad_loss", args.grad_loss, sizeof(float)), bytes_of(sequences)});
  }

  /// See forward_memory.
  void loss_memory(const LossArgs& args, std::size_t saved_bytes, std::int64_t losses) const {
    apart({ByteRows("value", args.value, sizeof(float)),
           ByteRows("part_values", args.part_values, losses * std::int64_t{sizeof(float)})},
          {ByteRows("saved", args.saved.data, static_cast<std::int64_t>(saved_bytes))});
  }

 private:
  static constexpr int most_arguments = 17;  ///< that a call reads or writes

  [[gnu::noinline, gnu::cold]] void apart(const ByteRows& a, const ByteRows& b) const {
    if (a.shares_with(b))
      fail_argument(call, a.name, "memory that " + std::string(b.name) + " shares", {"memory of its own"});
  }
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
    std::string digits;
    for (std::uintptr_t rest = address; rest != 0; rest /= 16) digits.insert(digits.begin(), "0123456789abcdef"[rest % 16]);
    const std::string value = "at address 0x" + digits;
    fail_argument(call, argument, value, {"addresses that are multiples of ", alignment});
  }
};

MOEB_NAMESPACE_END
