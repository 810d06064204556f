// The place where test bodies run: here the CUDA kernels' bodies on fibers. engine_host.hpp tells what an Engine offers.
#pragma once

#include "engine_host.hpp"
#include "tile/fiber_engine.hpp"

#include <cstdint>
#include <vector>

namespace testing {

struct FiberEngine {
  static constexpr const char* label = "fibers";
  static constexpr bool has_float64 = false;
  /// Fibers are far slower than what they stand for: test bodies with many tokens take this share of them.
  static constexpr std::int64_t share_of_tokens = 10;

  /// Each call runs in an order of its own.
  [[nodiscard]] Fibers place() const { return Fibers{.seed = ++calls_, .multiprocessors = 2}; }
  void wait() const {}

  template <class T>
  class Array : public HostEngine::Array<T> {
   public:
    Array() = default;
    Array(const FiberEngine&, const std::vector<T>& values) : HostEngine::Array<T>(HostEngine{}, values) {}
  };

 private:
  static inline std::uint64_t calls_ = 0;
};

}  // namespace testing
