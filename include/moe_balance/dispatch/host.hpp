// The CPU engine of the dispatch calls: each block of a launch is one thread with a tile of one lane. Calls return when the work is done.
#pragma once

#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/host_sort.hpp>
#include <moe_balance/engine/host.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// One block of a launch, run by one CPU thread.
struct HostBlock {
  std::byte* memory;
  std::int64_t own_index;
  std::int64_t block_count;

  [[nodiscard]] MOEB_INLINE int thread() const { return 0; }
  [[nodiscard]] MOEB_INLINE int threads() const { return 1; }
  [[nodiscard]] MOEB_INLINE std::int64_t index() const { return own_index; }
  [[nodiscard]] MOEB_INLINE std::int64_t blocks() const { return block_count; }
  [[nodiscard]] MOEB_INLINE std::int64_t row() const { return 0; }
  [[nodiscard]] MOEB_INLINE std::int64_t rows() const { return 1; }
  MOEB_INLINE void barrier() const {}
  [[nodiscard]] MOEB_INLINE std::byte* shared() const { return memory; }
  MOEB_INLINE void add_shared(std::int64_t* to, std::int64_t value) const { *to += value; }
  MOEB_INLINE void add_shared(std::int32_t* to, std::int32_t value) const { *to += value; }
  MOEB_INLINE void add_global(std::int64_t* to, std::int64_t value) const { AtomicAdd{}(to, value); }
};
static_assert(Block<HostBlock>);

template <>
struct DispatchEngine<Host> {
  static constexpr bool serves_float64 = true;
  /// Index arrays are read before the work, and bad ones refused.
  static constexpr bool reads_arguments = true;
  /// Routing and counting are two passes over a CPU's cache.
  static constexpr bool fuses_routing = false;
  /// What a block's shared memory may need: the counts of all experts, see PlaceSlots.
  static constexpr std::size_t shared_bytes = static_cast<std::size_t>(max_counted_experts) * 32 + 1024;

  static void check(const char* call, const Host& host) { Engine<Host>::check(call, host); }
  static void clear(void* data, std::size_t bytes, const Host& host) { Engine<Host>::clear(data, bytes, host); }

  /// Blocks for `work` items of which `least` are worth a thread.
  [[nodiscard]] static std::int64_t blocks(std::int64_t work, std::int64_t least, const Host& host) {
    return std::clamp<std::int64_t>(work / least, 1, host.threads > 0 ? host.threads : usable_cores());
  }
  [[nodiscard]] static LaunchSize for_rows(std::int64_t rows, std::int64_t columns, const Host& host) {
    const std::int64_t most = std::max<std::int64_t>(rows, 1);
    return {std::min(most, blocks(rows * columns, dispatch_tuning.elements_per_thread, host)), 1, 0};
  }
  [[nodiscard]] static LaunchSize for_items(std::int64_t items, const Host& host) {
    return {blocks(items, dispatch_tuning.slots_per_thread, host), 1, 0};
  }
  /// A block takes whole groups, of `items` items in all.
  [[nodiscard]] static LaunchSize for_groups(std::int64_t groups, std::int64_t items, const Host& host) {
    return {std::min(groups, for_items(items, host).blocks), 1, 0};
  }
  /// Parts of a counting sort: a thread each, more where a part would hold more slots than its counts can.
  [[nodiscard]] static std::int64_t parts(std::int64_t slots, std::int64_t most, const Host& host) {
    return std::min(most, std::max(slots / dispatch_tuning.most_slots_per_part + 1,
                                   blocks(slots, dispatch_tuning.slots_per_thread, host)));
  }
  [[nodiscard]] static constexpr int tiles(const ExpertCount& /*count*/, const Host&) { return 1; }

  static void check_sort(std::int64_t /*slots*/, const ExpertCount& /*count*/, const Host& /*host*/) {}
  static void sort(SlotPairs& pairs, std::int64_t n, int bits, const Workspace& scratch, const Host& host) {
    sort_on_host(pairs, n, bits, scratch.data, blocks(n, dispatch_tuning.slots_per_thread, host), host);
  }
  static void sum(std::int64_t* values, std::int64_t n, const Workspace& /*scratch*/, const Host& /*host*/) {
    sum_on_host(values, n);
  }

  template <class Body, class Problem>
  static void launch(const char* /*call*/, const LaunchSize& size, const Body& body, const Problem& problem,
                     const Host& host) {
    run_parallel(host, static_cast<int>(size.blocks), [&](int part, int parts) {
      alignas(64) std::byte memory[Body::uses_shared ? shared_bytes : 1];
      const HostBlock block{memory, part, parts};
      run_for(host.instructions, [&](InstructionSet set) MOEB_LAMBDA { body(block, SerialTile{set}, problem); });
    });
  }
};

MOEB_NAMESPACE_END
