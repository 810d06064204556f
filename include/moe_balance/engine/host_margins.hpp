// A CPU thread's own counts of margins.
#pragma once

#include <moe_balance/engine/tuning.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

MOEB_NAMESPACE_BEGIN

/// What one thread counts of a histogram [E, bins], in 16 bits: a quarter of the memory that the histogram has, and lines that no other thread writes. Where it
/// has few tokens, or there is no memory, it counts in the histogram itself. `add(pointer, value)` is what adds to that.
template <class Add>
class OwnMargins {
 public:
  /// For so many tokens.
  OwnMargins(std::int64_t* histogram, std::int64_t experts, std::int64_t bins, std::int64_t tokens, const Add& add)
      : histogram_(histogram), cells_(experts * bins), add_(add) {
    const std::size_t bytes = static_cast<std::size_t>(cells_) * sizeof(std::uint16_t);
    if (tokens < bins || bytes > host_tuning.most_margin_bytes) return;
    own_ = static_cast<std::uint16_t*>(std::calloc(bytes, 1));
  }
  OwnMargins(const OwnMargins&) = delete;
  OwnMargins& operator=(const OwnMargins&) = delete;
  ~OwnMargins() { std::free(own_); }

  /// Before each token, which counts once for an expert.
  MOEB_INLINE void start_token() {
    if (tokens_ == most_tokens) flush();
    ++tokens_;
  }
  MOEB_INLINE void count(std::int64_t cell) {
    if (own_ != nullptr)
      ++own_[cell];
    else
      add_(histogram_ + cell, 1);
  }
  /// Adds what has been counted to the histogram.
  MOEB_INLINE void flush() {
    tokens_ = 0;
    if (own_ == nullptr) return;
    for (std::int64_t cell = 0; cell < cells_; ++cell) {
      if (own_[cell] == 0) continue;
      add_(histogram_ + cell, own_[cell]);
      own_[cell] = 0;
    }
  }

 private:
  static constexpr std::int32_t most_tokens = 65535;  ///< that 16 bits hold

  std::int64_t* histogram_;
  std::int64_t cells_;
  Add add_;
  std::uint16_t* own_ = nullptr;
  std::int32_t tokens_ = 0;
};

MOEB_NAMESPACE_END
