// The place where test bodies run: here the CPU. engine_cuda.cuh has the same interface for a GPU.
//
// An Engine offers: label, has_float64, place() for the last argument of Router's calls, wait(), and Array<T>, memory where the
// calls run, made from host values and read back by values().
#pragma once

#include <moe_balance/moe_balance.hpp>

#include <cstddef>
#include <vector>

namespace testing {

namespace mb = moe_balance;

struct HostEngine {
  static constexpr const char* label = "CPU";
  static constexpr bool has_float64 = true;
  int threads = 1;
  mb::InstructionSet instructions = mb::InstructionSet::automatic;
  mb::Executor executor = {};

  [[nodiscard]] mb::Host place() const {
    return mb::Host{.threads = threads, .instructions = instructions, .executor = executor};
  }
  void wait() const {}

  /// Exactly as large as its values, so that AddressSanitizer sees one step too far.
  template <class T>
  class Array {
   public:
    Array() = default;
    Array(const HostEngine&, const std::vector<T>& values) : values_(values) {}
    [[nodiscard]] T* data() { return values_.empty() ? nullptr : values_.data(); }
    [[nodiscard]] std::vector<T> values() const { return values_; }

   private:
    std::vector<T> values_;
  };
};

}  // namespace testing
