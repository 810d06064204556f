// Checks of the dispatch calls' arguments: views, and that what is written overlaps nothing else.
#pragma once

#include <moe_balance/dispatch/arguments.hpp>
#include <moe_balance/engine/validate.hpp>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

MOEB_NAMESPACE_BEGIN

/// The bytes of one argument; `written` where the call writes them.
struct MemoryRegion : ByteRows {
  bool written = false;

  MemoryRegion(const ByteRows& bytes, bool is_written) : ByteRows(bytes), written(is_written) {}
  MemoryRegion(const char* argument, const void* data, std::int64_t bytes, bool is_written)
      : MemoryRegion(ByteRows(argument, data, bytes), is_written) {}
};

template <class T>
[[nodiscard]] MemoryRegion region(const char* name, const VectorView<T>& view) {
  return {name, view.data, view.size * static_cast<std::int64_t>(sizeof(T)), !std::is_const_v<T>};
}
template <class T>
[[nodiscard]] MemoryRegion region(const char* name, const MatrixView<T>& view) {
  return {bytes_of(name, view), !std::is_const_v<T>};
}
template <bool Const>
[[nodiscard]] MemoryRegion region(const char* name, const BasicAnyMatrix<Const>& view) {
  return {bytes_of(name, view), !Const};
}

/// Of any size that its caller says.
[[nodiscard]] inline MemoryRegion region(const Workspace& workspace) {
  constexpr std::size_t most = std::numeric_limits<std::int64_t>::max();
  return {"workspace", workspace.data, static_cast<std::int64_t>(workspace.bytes < most ? workspace.bytes : most), true};
}
[[nodiscard]] inline MemoryRegion region(const Status* status) {
  return {"status", status, static_cast<std::int64_t>(sizeof(Status)), true};
}

/// Validator's checks and those that only dispatch calls need.
struct DispatchValidator : Validator {
  template <class T>
  void vector(const char* name, const VectorView<T>& view, std::int64_t least, std::int64_t most,
              const char* why = nullptr) const {
    range({name, "size"}, view.size, least, most, why);
    constexpr std::int64_t element = sizeof(T);
    range({name, "size"}, view.size, 0, std::numeric_limits<std::int64_t>::max() / element,
          "elements; they must fit memory");
    if (view.size > 0) pointer({name, "data"}, view.data, alignof(T));
  }

  template <class T>
  void matrix(const char* name, const MatrixView<T>& view, std::int64_t rows, std::int64_t columns) const {
    matrix_of(name, view, sizeof(T), rows, columns);
  }
  template <bool Const>
  void matrix(const char* name, const BasicAnyMatrix<Const>& view, std::int64_t rows, std::int64_t columns) const {
    MOEB_EXPECTS(view.type <= DataType::float64, call, ArgumentName(name, "type"), static_cast<int>(view.type),
                 "float32, bfloat16, float16; float64 on the CPU only");
    matrix_of(name, view, size_of(view.type), rows, columns);
  }

  /// As many as a permutation may have.
  void slots(std::int64_t tokens, std::int64_t k, std::int64_t experts) const {
    range("k", k, 1, max_experts, "slots of a token");
    range("tokens", tokens, 0, dispatch_tuning.most_slots_per_part * dispatch_tuning.most_parts / k, "slots");
    range("experts", experts, 1, max_dispatch_experts);
  }

  void padding(Padding value) const {
    MOEB_EXPECTS(value <= Padding::untouched, call, "padding", static_cast<int>(value), "zero, untouched");
  }

  /// What each expert's rows are a multiple of.
  void align(std::int64_t align) const { range("align", align, 1, std::int64_t{1} << 30); }

  /// How many rows an expert gets.
  void rows(std::int64_t align, std::int64_t rows_per_expert) const {
    this->align(align);
    range("rows_per_expert", rows_per_expert, 0, std::int64_t{1} << 40);
    MOEB_EXPECTS(rows_per_expert % align == 0, call, "rows_per_expert", std::to_string(rows_per_expert),
                 "0, or a multiple of align = " + std::to_string(align));
  }

  /// rows and columns of a first matrix, by which others are judged.
  template <class View>
  void shape(const char* name, const View& view, std::int64_t least_columns, std::int64_t most_columns) const {
    range({name, "rows"}, view.rows, 0, std::numeric_limits<std::int64_t>::max());
    range({name, "columns"}, view.columns, least_columns, most_columns);
  }

  template <class View>
  void hidden(const char* name, const View& view, bool serves_float64) const {
    shape(name, view, 1, std::numeric_limits<std::int32_t>::max());
    matrix(name, view, view.rows, view.columns);
    MOEB_EXPECTS(serves_float64 || view.type != DataType::float64, call, ArgumentName(name, "type"), "float64",
                 "float32, bfloat16, float16; float64 on the CPU only");
  }

  /// float32 or the type of `other`; float64 with float64.
  void type_beside(const char* name, DataType type, DataType other_type, const char* other = "the hidden states") const {
    const bool is_alone = other_type == DataType::float32 || other_type == DataType::float64;
    MOEB_EXPECTS(type == other_type || (other_type != DataType::float64 && type == DataType::float32), call,
                 ArgumentName(name, "type"), name_of(type), is_alone ? "" : "float32 or ", name_of(other_type), ", as ",
                 other);
  }

  void same_type(const char* name, DataType type, const char* other, DataType other_type) const {
    MOEB_EXPECTS(type == other_type, call, ArgumentName(name, "type"), name_of(type),
                 std::string(name_of(other_type)) + ", as " + other);
  }

  /// Nothing that is written may share a byte with anything else.
  void apart(std::initializer_list<MemoryRegion> regions) const {
    for (const MemoryRegion* a = regions.begin(); a != regions.end(); ++a) {
      for (const MemoryRegion* b = a + 1; b != regions.end(); ++b) {
        MOEB_EXPECTS(!(a->written || b->written) || !a->shares_with(*b), call, a->name,
                     std::string("memory that ") + b->name + " shares", "memory of its own");
      }
    }
  }

 private:
  template <class View>
  void matrix_of(const char* name, const View& view, std::size_t element, std::int64_t rows, std::int64_t columns) const {
    range({name, "rows"}, view.rows, rows, rows);
    range({name, "columns"}, view.columns, columns, columns);
    fits_memory(name, element, rows, columns, view.stride);
    if (rows > 0) pointer({name, "data"}, view.data, element);
  }
};

MOEB_NAMESPACE_END
