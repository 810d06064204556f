// The CPU's stable sort of pairs by key and its sum over experts, for permutations of very many experts.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/sort_kernels.hpp>
#include <moe_balance/engine/host.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// One pass: pairs by `digit_count` digits of their keys, counted and moved by contiguous parts, a thread each.
class HostSortPass {
 public:
  HostSortPass(const SlotPairs& pairs, std::int64_t n, int shift, std::int64_t* counts, std::int64_t parts, const Host& host)
      : pairs_(pairs), n_(n), shift_(shift), counts_(counts), parts_(parts), host_(host) {}

  void run() const {
    run_parallel(host_, static_cast<int>(parts_), [&](int part, int /*parts*/) { count(part); });
    start_digits();
    run_parallel(host_, static_cast<int>(parts_), [&](int part, int /*parts*/) { move(part); });
  }

  static constexpr std::int64_t digit_count = std::int64_t{1} << dispatch_tuning.sort_bits;

 private:
  [[nodiscard]] std::int64_t digit(std::uint32_t key) const { return (key >> shift_) & (digit_count - 1); }

  void count(int part) const {
    std::int64_t* counts = counts_ + part * digit_count;
    std::fill(counts, counts + digit_count, 0);
    const ItemRange range = range_of_part(n_, part, parts_);
    for (std::int64_t i = range.first; i < range.last; ++i) ++counts[digit(pairs_.keys[pairs_.current][i])];
  }

  /// Counts become first places: by digit, then by part.
  void start_digits() const {
    std::int64_t next = 0;
    for (std::int64_t d = 0; d < digit_count; ++d) {
      for (std::int64_t part = 0; part < parts_; ++part) {
        const std::int64_t count = counts_[part * digit_count + d];
        counts_[part * digit_count + d] = next;
        next += count;
      }
    }
  }

  void move(int part) const {
    std::int64_t* next = counts_ + part * digit_count;
    const int from = pairs_.current;
    const ItemRange range = range_of_part(n_, part, parts_);
    for (std::int64_t i = range.first; i < range.last; ++i) {
      const std::int64_t place = next[digit(pairs_.keys[from][i])]++;
      pairs_.keys[1 - from][place] = pairs_.keys[from][i];
      pairs_.slots[1 - from][place] = pairs_.slots[from][i];
    }
  }

  const SlotPairs& pairs_;
  std::int64_t n_;
  int shift_;
  std::int64_t* counts_;
  std::int64_t parts_;
  const Host& host_;
};
static_assert(static_cast<std::size_t>(HostSortPass::digit_count * dispatch_tuning.most_sort_parts) * sizeof(std::int64_t) <=
              dispatch_tuning.sort_scratch_bytes);

/// Sorts n pairs by the low `bits` bits of their keys, equal keys in the order they have.
inline void sort_on_host(SlotPairs& pairs, std::int64_t n, int bits, void* scratch, std::int64_t threads, const Host& host) {
  const std::int64_t parts = std::clamp<std::int64_t>(threads, 1, dispatch_tuning.most_sort_parts);
  for (int shift = 0; shift < bits; shift += dispatch_tuning.sort_bits) {
    HostSortPass(pairs, n, shift, static_cast<std::int64_t*>(scratch), parts, host).run();
    pairs.current = 1 - pairs.current;
  }
}

/// values[i] becomes the sum of those before it.
inline void sum_on_host(std::int64_t* values, std::int64_t n) {
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t value = values[i];
    values[i] = sum;
    sum += value;
  }
}

MOEB_NAMESPACE_END
