// Owning buffers for state, where a call runs. Convenience only: every call takes plain pointers.
#pragma once

#include <moe_balance/shape.hpp>
#include <moe_balance/views.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

MOEB_NAMESPACE_BEGIN

/// Allocates zeroed bytes in a place; specialised for Host here and for cudaStream_t in moe_balance.cuh.
template <class Place>
struct Allocator;

template <>
struct Allocator<Host> {
  [[nodiscard]] static void* allocate_zeroed(std::size_t bytes, const Host& /*host*/) {
    void* const memory = ::operator new (bytes == 0 ? 1 : bytes, std::align_val_t{64});
    std::memset(memory, 0, bytes);
    return memory;
  }
  static void release(void* memory) { ::operator delete (memory, std::align_val_t{64}); }
};

/// `size` zeroed elements of a trivial type; freed with the object. Movable, not copyable.
template <class T, class Place = Host>
class Buffer {
 public:
  /// Errors: std::bad_alloc, also where the bytes do not fit 63 bits; CudaError on a GPU, where the memory is zeroed on the stream.
  explicit Buffer(std::size_t size, const Place& place = {})
      : memory_(Allocator<Place>::allocate_zeroed(bytes_of(size), place)), size_(size) {}
  /// Takes what `other` owns; that has no elements then.
  Buffer(Buffer&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  /// Exchanges what both own.
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    return *this;
  }
  /// Frees the memory.
  ~Buffer() {
    if (memory_ != nullptr) Allocator<Place>::release(memory_);
  }
  /// The first element, in the place; valid as long as the buffer.
  [[nodiscard]] T* data() const { return static_cast<T*>(memory_); }
  /// Elements.
  [[nodiscard]] std::size_t size() const { return size_; }
  /// Bytes of all elements.
  [[nodiscard]] std::size_t bytes() const { return size_ * sizeof(T); }

 private:
  /// More than any place has where the product would not fit.
  [[nodiscard]] static std::size_t bytes_of(std::size_t size) {
    constexpr std::size_t most = std::numeric_limits<std::ptrdiff_t>::max();
    return size > most / sizeof(T) ? most : size * sizeof(T);
  }
  // A std::unique_ptr would do; its header is a sixth of what every file that includes this library takes a compiler.
  void* memory_;
  std::size_t size_;
};

/// Elements of tables; more than any place has where sizes are below 0 or their product would not fit.
[[nodiscard]] inline std::size_t elements_of(int experts, std::int64_t layers, std::int64_t tables = 1) {
  std::int64_t elements = 0;
  const bool fits = experts >= 0 && layers >= 0 && tables >= 1 && !__builtin_mul_overflow(layers, experts, &elements) &&
                    !__builtin_mul_overflow(elements, tables, &elements);
  return fits ? static_cast<std::size_t>(elements) : std::numeric_limits<std::size_t>::max();
}

/// A router, which knows what the rule of its bias keeps.
template <class R>
concept KnowsItsBias = requires {
  { R::bias_memory } -> std::convertible_to<int>;
};
/// A router, which knows whether its rule reads margins.
template <class R>
concept KnowsItsLoad = requires(const R router) {
  { router.load_bins() } -> std::convertible_to<int>;
};

/// Bias of `layers` layers, and what its rule keeps, all 0 at first.
template <class Place = Host>
class Bias {
 public:
  /// [layers, experts], zeroed: for rules without memory. Errors: as Buffer; std::bad_alloc also for negative sizes.
  explicit Bias(int experts, std::int64_t layers = 1, const Place& place = {}) : Bias(0, experts, layers, place) {}
  /// The same for the rule of `router`, whatever it keeps: [1 + memory, layers, experts].
  template <KnowsItsBias Router>
  Bias(const Router& /*router*/, int experts, std::int64_t layers = 1, const Place& place = {})
      : Bias(Router::bias_memory, experts, layers, place) {}
  /// For update and, of one layer, the other calls of a router; valid as long as this object.
  [[nodiscard]] BiasRef ref() const { return BiasRef(buffer_.data(), experts_, layers_).with_memory(memory_); }
  /// The biases [layers, experts], and behind them what the rule keeps, in the place.
  [[nodiscard]] float* data() const { return buffer_.data(); }

 private:
  Bias(int memory, int experts, std::int64_t layers, const Place& place)
      : buffer_(elements_of(experts, layers, 1 + memory), place), memory_(memory), experts_(experts), layers_(layers) {}

  Buffer<float, Place> buffer_;
  int memory_;
  int experts_;
  std::int64_t layers_;
};

/// Accumulated counts of `layers` layers, and the histograms of a rule that reads margins, all 0 at first.
template <class Place = Host>
class Load {
 public:
  /// [layers, experts], zeroed: for rules that read counts. Errors: as Buffer; std::bad_alloc also for negative sizes.
  explicit Load(int experts, std::int64_t layers = 1, const Place& place = {}) : Load(0, experts, layers, place) {}
  /// The same for the rule of `router`, whatever it reads: [layers, (1 + bins) * experts].
  template <KnowsItsLoad Router>
  Load(const Router& router, int experts, std::int64_t layers = 1, const Place& place = {})
      : Load(router.load_bins(), experts, layers, place) {}
  /// For the calls of a router; valid as long as this object.
  [[nodiscard]] LoadRef ref() const { return LoadRef::with_bins(buffer_.data(), bins_, experts_, layers_); }
  /// What ref() describes, in the place.
  [[nodiscard]] std::int64_t* data() const { return buffer_.data(); }

 private:
  Load(int bins, int experts, std::int64_t layers, const Place& place)
      : buffer_(elements_of(experts, layers, 1 + std::int64_t{bins}), place),
        bins_(bins),
        experts_(experts),
        layers_(layers) {}

  Buffer<std::int64_t, Place> buffer_;
  int bins_;
  int experts_;
  std::int64_t layers_;
};

/// What one forward of `router` keeps for its backward.
template <class Place = Host>
class Saved {
 public:
  /// Router::saved_bytes(shape) bytes.
  template <class Router>
  Saved(const Router& router, const Shape& shape, const Place& place = {})
      : buffer_(router.saved_bytes(shape), place), experts_(shape.experts), sequences_(shape.sequences) {}
  /// For forward, backward and loss of so many experts and sequences, and any number of tokens; valid as long as this object.
  [[nodiscard]] SavedRef ref() const { return {buffer_.data(), buffer_.bytes(), experts_, sequences_}; }

 private:
  Buffer<std::byte, Place> buffer_;
  int experts_;
  std::int64_t sequences_;
};
/// On the CPU unless a place is named.
template <class Router>
Saved(const Router&, const Shape&) -> Saved<Host>;

MOEB_NAMESPACE_END
