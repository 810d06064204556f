// Non-owning, trivially copyable views of the caller's memory. None of them allocates, frees or synchronises.
#pragma once

#include <moe_balance/config.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// Element types of logits, weights and their gradients. float64 is for checks, on the CPU only.
enum class DataType : std::uint8_t { float32, bfloat16, float16, float64 };

/// Bytes of one element.
[[nodiscard]] MOEB_HOST_DEVICE constexpr std::size_t size_of(DataType type) {
  return type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2;
}

/// Storage of the two 16-bit types on compilers without CUDA's own (moe_balance.cuh also accepts __nv_bfloat16 and __half).
struct bfloat16 {
  std::uint16_t bits = 0;  ///< sign, 8 bits of exponent, 7 of fraction
};
/// See bfloat16.
struct float16 {
  std::uint16_t bits = 0;  ///< sign, 5 bits of exponent, 10 of fraction (IEEE 754 binary16)
};

/// Maps an element type to its DataType; specialise it for a framework's own 16-bit types.
template <class T>
struct DataTypeOf {
  static_assert(
      sizeof(T) == 0,
      "elements are float, double (on the CPU), mb::bfloat16, mb::float16, CUDA's own with moe_balance.cuh, or a type of "
      "yours for which moe_balance::DataTypeOf is specialised");
};
template <>
struct DataTypeOf<float> {
  static constexpr DataType value = DataType::float32;
};
template <>
struct DataTypeOf<double> {
  static constexpr DataType value = DataType::float64;
};
template <>
struct DataTypeOf<bfloat16> {
  static constexpr DataType value = DataType::bfloat16;
};
template <>
struct DataTypeOf<float16> {
  static constexpr DataType value = DataType::float16;
};

/// A row-major matrix: element (r, c) is data[r * stride + c]. `stride` counts elements, not bytes.
template <class T>
struct MatrixView {
  T* data = nullptr;         ///< element (0, 0); null only where an argument is left out or the matrix is empty
  std::int64_t rows = 0;     ///< 0 or more
  std::int64_t columns = 0;  ///< 0 or more
  std::int64_t stride = 0;   ///< elements from row to row, at least `columns`

  /// No matrix: an optional argument that is left out.
  constexpr MatrixView() = default;
  /// Rows that lie one behind the other.
  MOEB_HOST_DEVICE constexpr MatrixView(T* pointer, std::int64_t row_count, std::int64_t column_count)
      : MatrixView(pointer, row_count, column_count, column_count) {}
  /// Rows that lie `row_stride` elements apart.
  MOEB_HOST_DEVICE constexpr MatrixView(T* pointer, std::int64_t row_count, std::int64_t column_count,
                                        std::int64_t row_stride)
      : data(pointer), rows(row_count), columns(column_count), stride(row_stride) {}
  /// A view of non-const elements is also a view of const ones.
  template <class U>
    requires(std::is_same_v<T, const U>)
  MOEB_HOST_DEVICE constexpr MatrixView(const MatrixView<U>& other)
      : MatrixView(other.data, other.rows, other.columns, other.stride) {}
};

/// `size` contiguous elements.
template <class T>
struct VectorView {
  T* data = nullptr;      ///< the first element
  std::int64_t size = 0;  ///< elements, 0 or more

  /// No vector: an optional argument that is left out.
  constexpr VectorView() = default;
  /// `count` elements from `pointer` on.
  MOEB_HOST_DEVICE constexpr VectorView(T* pointer, std::int64_t count) : data(pointer), size(count) {}
  /// A view of non-const elements is also a view of const ones.
  template <class U>
    requires(std::is_same_v<T, const U>)
  MOEB_HOST_DEVICE constexpr VectorView(const VectorView<U>& other) : VectorView(other.data, other.size) {}
};

/// A matrix whose element type is known at run time only, so that one argument struct serves every type.
template <bool Const>
struct BasicAnyMatrix {
  /// Elements are written through AnyMatrix only.
  using Pointer = std::conditional_t<Const, const void*, void*>;
  Pointer data = nullptr;             ///< element (0, 0)
  DataType type = DataType::float32;  ///< of the elements
  std::int64_t rows = 0;              ///< 0 or more
  std::int64_t columns = 0;           ///< 0 or more
  std::int64_t stride = 0;            ///< elements, not bytes, from row to row

  /// No matrix: an optional argument that is left out.
  constexpr BasicAnyMatrix() = default;
  /// From a framework that knows its types at run time only.
  MOEB_HOST_DEVICE constexpr BasicAnyMatrix(Pointer pointer, DataType element_type, std::int64_t row_count,
                                            std::int64_t column_count, std::int64_t row_stride)
      : data(pointer), type(element_type), rows(row_count), columns(column_count), stride(row_stride) {}
  /// From a typed view.
  template <class T>
    requires(Const || !std::is_const_v<T>)
  MOEB_HOST_DEVICE constexpr BasicAnyMatrix(const MatrixView<T>& view)
      : BasicAnyMatrix(view.data, DataTypeOf<std::remove_const_t<T>>::value, view.rows, view.columns, view.stride) {}
  /// A matrix that may be written may also be read.
  template <bool Other>
    requires(Const && !Other)
  MOEB_HOST_DEVICE constexpr BasicAnyMatrix(const BasicAnyMatrix<Other>& other)
      : BasicAnyMatrix(other.data, other.type, other.rows, other.columns, other.stride) {}
};
/// A matrix that a call writes.
using AnyMatrix = BasicAnyMatrix<false>;
/// A matrix that a call only reads.
using ConstAnyMatrix = BasicAnyMatrix<true>;

/// The most values that a rule may keep for each bias.
inline constexpr int max_bias_memory = 8;

/// The selection bias of one or of all layers: float [layers, experts], row l at data + l * stride. Owned by the caller, kept
/// across steps, checkpointed. forward and route read one layer (`layer(l)`), update writes all of them.
struct BiasRef {
  float* data = nullptr;    ///< layer 0, expert 0
  int experts = 0;          ///< E; of the longest layer
  std::int64_t layers = 1;  ///< L
  std::int64_t stride = 0;  ///< elements from layer to layer, at least `experts`
  int memory = 0;  ///< what its rule keeps for each bias, in as many further tables [layers, experts]; see with_memory

  /// None: for routers and calls that need none.
  constexpr BiasRef() = default;
  /// Layers that lie one behind the other.
  MOEB_HOST_DEVICE constexpr BiasRef(float* pointer, int expert_count, std::int64_t layer_count = 1)
      : BiasRef(pointer, expert_count, layer_count, expert_count) {}
  /// Layers that lie `layer_stride` elements apart.
  MOEB_HOST_DEVICE constexpr BiasRef(float* pointer, int expert_count, std::int64_t layer_count, std::int64_t layer_stride)
      : data(pointer), experts(expert_count), layers(layer_count), stride(layer_stride) {}
  /// One layer, with what its rule keeps: for forward, route, and an update of it alone. `with_memory` comes before it: a layer that has none yet does not
  /// know how far its tables lie apart.
  [[nodiscard]] MOEB_HOST_DEVICE constexpr BiasRef layer(std::int64_t index) const { return layer(index, experts); }
  /// One layer that has fewer experts than the longest.
  [[nodiscard]] MOEB_HOST_DEVICE constexpr BiasRef layer(std::int64_t index, int its_experts) const {
    // Of one layer a stride leads from table to table.
    return BiasRef(data + index * stride, its_experts, 1, memory == 0 ? stride : layers * stride).with_memory(memory);
  }
  /// The same with the memory of its rule, `values` (Router::bias_memory) for each bias: value n of layer l and expert e lies
  /// at data[((n + 1) * layers + l) * stride + e], so that all is one float32 table [1 + values, layers, experts]. At first all are 0.
  [[nodiscard]] MOEB_HOST_DEVICE constexpr BiasRef with_memory(int values) const {
    BiasRef result = *this;
    result.memory = values;
    return result;
  }
};

/// The most bins that a rule may count each expert's margins in.
inline constexpr int max_bins = 1 << 16;

/// Tokens per expert on this rank, accumulated over the micro-batches of a step: int64 [layers, experts]. Owned by the caller; forward
/// adds to one layer when `accumulate` is set, update sums all layers over ranks, reads them and clears them.
/// Layers with different numbers of experts share one block whose rows are as long as the longest: `experts_of_layer` then has each
/// layer's own number, and forward takes `layer(l, its experts)`.
struct LoadRef {
  std::int64_t* counts = nullptr;  ///< layer 0, expert 0
  int experts = 0;                 ///< E; of the longest layer
  std::int64_t layers = 1;         ///< L
  std::int64_t stride = 0;         ///< elements from layer to layer, at least `experts`, or what they have with histograms
  const std::int32_t* experts_of_layer =
      nullptr;   ///< [layers], each 1 to experts; where the call runs; null: all have `experts`
  int bins = 0;  ///< of a histogram of margins for each expert, behind the counts of each layer; see with_bins

  /// None: for routers and calls that need none.
  constexpr LoadRef() = default;
  /// Layers that lie one behind the other.
  MOEB_HOST_DEVICE constexpr LoadRef(std::int64_t* pointer, int expert_count, std::int64_t layer_count = 1)
      : LoadRef(pointer, expert_count, layer_count, expert_count) {}
  /// Layers that lie `layer_stride` elements apart.
  MOEB_HOST_DEVICE constexpr LoadRef(std::int64_t* pointer, int expert_count, std::int64_t layer_count,
                                     std::int64_t layer_stride)
      : counts(pointer), experts(expert_count), layers(layer_count), stride(layer_stride) {}
  /// One layer, for forward and route.
  [[nodiscard]] MOEB_HOST_DEVICE constexpr LoadRef layer(std::int64_t index) const { return layer(index, experts); }
  /// One layer that has fewer experts than the longest.
  [[nodiscard]] MOEB_HOST_DEVICE constexpr LoadRef layer(std::int64_t index, int its_experts) const {
    LoadRef result(counts + index * stride, its_experts, 1, stride);
    result.bins = bins;
    return result;
  }
  /// Layers that lie one behind the other, with the histograms of a rule that reads margins, of `bin_count` (Router::load_bins) bins for each expert: a layer's
  /// row has the counts of its experts and behind them [experts, bins], bin b of expert e at counts[experts + e * bins + b], so that all is one int64 table
  /// [layers, (1 + bins) * experts]. At first all are 0.
  [[nodiscard]] MOEB_HOST_DEVICE static constexpr LoadRef with_bins(std::int64_t* pointer, int bin_count, int expert_count,
                                                                    std::int64_t layer_count = 1) {
    LoadRef result(pointer, expert_count, layer_count);
    result.bins = bin_count;
    result.stride = result.row_size();
    return result;
  }
  /// Elements of the longest layer's row.
  [[nodiscard]] MOEB_HOST_DEVICE constexpr std::int64_t row_size() const { return (1 + std::int64_t{bins}) * experts; }
};

/// What forward keeps for backward and loss: `Router::saved_bytes(shape)` bytes, 8-byte aligned, one per forward whose backward
/// is still to come. Its contents need no initialisation.
struct SavedRef {
  void* data = nullptr;        ///< where the call runs
  std::size_t bytes = 0;       ///< at least Router::saved_bytes
  int experts = 0;             ///< E of the calls that it is for, which others refuse; 0: not known
  std::int64_t sequences = 0;  ///< their sequences, where a loss reads them; 0: not known
};

/// Scratch of `Router::workspace_bytes(shape)` bytes, 16-byte aligned; contents need no initialisation. Calls that may run at the
/// same time (two streams, two threads) need one each. May be empty where workspace_bytes is 0.
struct Workspace {
  void* data = nullptr;   ///< where the call runs
  std::size_t bytes = 0;  ///< at least workspace_bytes of the call
};

/// Counters that calls add to (never clear). The caller zeroes them and reads them when it likes; on a GPU they are device memory.
struct Status {
  std::int64_t non_finite_tokens = 0;  ///< tokens with a non-finite logit among their chosen experts: weights 0, gradient 0
  std::int64_t invalid_experts = 0;    ///< replayed or dispatched ids outside [-1, experts): treated as -1
  std::int64_t invalid_rows = 0;       ///< rows or slots outside what they index, and splits that disagree: treated as -1
  std::int64_t dropped_slots = 0;      ///< slots that a capacity dropped
};

/// How tokens belong to sequences, for SequenceLoss.
struct Sequences {
  /// The order of tokens.
  enum class Layout : std::uint8_t {
    sequence_major,  ///< token t belongs to sequence t / (tokens / count)
    token_major,     ///< token t belongs to sequence t % count
    offsets          ///< sequence s holds tokens offsets[s] to offsets[s + 1] - 1
  };
  std::int64_t count = 1;                  ///< sequences, 1 or more
  Layout layout = Layout::sequence_major;  ///< the order of this batch
  const std::int64_t* offsets =
      nullptr;  ///< [count + 1], ascending, first 0, last tokens; where the call runs (Layout::offsets)
};

/// Which experts the caller has already chosen, for Replay. They count as any others: a bias would go on moving without changing them, where calls that replay have
/// `accumulate`. An expert may stand twice in a row.
struct ReplayRef {
  MatrixView<const std::int32_t>
      experts;  ///< [T, K]; -1 leaves a slot empty, and so do ids out of range, which status counts (on a CPU, too)
  const std::uint8_t* tokens =
      nullptr;  ///< [T]: 0 = choose as usual, else take the given ids; null = all tokens are replayed
};

/// Which vector instructions the CPU engine uses; all give the same bits. `automatic` takes the widest that the machine has, and a
/// machine that lacks what is asked for uses the widest it has below.
enum class InstructionSet : std::uint8_t { automatic, baseline, x86_64_v3, x86_64_v4 };

/// Threads of the program's own, a framework's pool say, that take the parts of a call on the CPU. executor_of makes one.
struct Executor {
  using Part = void (*)(const void* work, int index);  ///< runs part `index` of the work
  /// Calls part(work, i) once for every i from 0 to parts - 1, on any threads, in any order, at worst one after the other on the calling thread, and
  /// returns, or throws, only when those that it called have returned. Parts do not wait for each other; each takes up to 0.3 MB of stack. What it throws
  /// leaves the call, whose outputs, and what it adds to (load, status), are then unspecified; a part itself throws what a policy of the user's does. In a
  /// forked process the executor has to see to its threads. Null: the call starts threads, and joins them.
  void (*run)(void* context, int parts, Part part, const void* work) = nullptr;
  void* context = nullptr;  ///< what run gets; as long-lived as the calls that use it
};

/// What an executor_of's function calls with an index.
struct ExecutorPart {
  Executor::Part part;                                     ///< as Executor::run got it
  const void* work;                                        ///< as Executor::run got it
  void operator()(int index) const { part(work, index); }  ///< runs part `index`
};

/// An executor that calls f(parts, part), where part(i) runs part i, as Executor::run has to. Refers to f, an object that can be called while it is const.
///
///   const auto on_pool = [&](int parts, const auto& part) { tbb::parallel_for(0, parts, part); };
///   router.forward(args, {}, mb::Host{.threads = 8, .executor = mb::executor_of(on_pool)});
template <class Function>
  requires std::is_object_v<Function> && std::is_invocable_v<const Function&, int, const ExecutorPart&>
[[nodiscard]] Executor executor_of(const Function& f) {
  return {.run =
              [](void* context, int parts, Executor::Part part, const void* work) {
                (*static_cast<const Function*>(context))(parts, ExecutorPart{part, work});
              },
          .context = const_cast<Function*>(&f)};
}
template <class Function>
Executor executor_of(const Function&& f) = delete;  // which would end before the executor is used

/// Where a call runs on the CPU. Calls return when the work is done. The calling thread takes a part, too, and needs up to 336 KiB of stack for it: more than
/// some C libraries give a thread (musl: 128 KiB). Threads that a call starts have 1 MiB or more. What a policy of the user's throws leaves the call when all
/// parts have ended, of several parts what the first has thrown; outputs, and what the call adds to (load, status), are then unspecified.
struct Host {
  int threads = 0;  ///< 0 = all cores that the calling thread may run on, not with an executor; small calls use fewer
  InstructionSet instructions = InstructionSet::automatic;  ///< for measurements; the result is the same
  Executor executor = {};                                   ///< whose threads; the result is the same
};

MOEB_NAMESPACE_END
