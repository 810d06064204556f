// The K largest keys of some rows that lie side by side, a row in each lane of a CPU's vectors: round after round the largest, of equal ones the first.
// For short rows: each round looks at all of a row, but no lane waits for another, and nothing is a branch.
#pragma once

#include <moe_balance/numeric/ordered_key.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

inline constexpr int lane_count = 16;
using KeysSideBySide = std::int32_t[lane_count];  ///< one of each row; aligned to 64 bytes

/// slot[k][i] becomes the slot of row i's key of rank k < Count, and best[k][i] that key, of key[0][i] to key[slots - 1][i], at least Count of which are above
/// excluded_key. `key` is overwritten. For any processor.
template <int Count>
__attribute__((noinline)) void select_in_lanes_anywhere(KeysSideBySide* key, int slots, KeysSideBySide* slot,
                                                        KeysSideBySide* best) {
  for (int k = 0; k < Count; ++k) {
    for (int i = 0; i < lane_count; ++i) {
      best[k][i] = excluded_key<std::int32_t>;
      slot[k][i] = 0;
    }
    for (int s = 0; s < slots; ++s) {
      for (int i = 0; i < lane_count; ++i) {
        const bool is_better = key[s][i] > best[k][i];
        best[k][i] = choose(is_better, key[s][i], best[k][i]);
        slot[k][i] = choose(is_better, s, slot[k][i]);
      }
    }
    for (int i = 0; i < lane_count; ++i) key[slot[k][i]][i] = excluded_key<std::int32_t>;
  }
}

#if defined(__x86_64__) && defined(__GNUC__)
/// Eight rows' numbers.
using EightKeys = std::int32_t __attribute__((vector_size(32)));

/// A round of select_in_lanes_v3 for eight of the rows. `chosen` are the slots of the round before, which are excluded if `Excludes`; then this round's.
template <bool Excludes>
__attribute__((always_inline, target("avx2"))) inline EightKeys select_round_v3(std::int32_t* key, int slots,
                                                                                EightKeys& chosen) {
  const EightKeys none = EightKeys{} + excluded_key<std::int32_t>;
  const EightKeys before = chosen;
  EightKeys index{};
  EightKeys best = none;
  chosen = index;
  for (int s = 0; s < slots; ++s, key += lane_count) {
    EightKeys own;
    __builtin_memcpy(&own, key, sizeof(own));
    if (Excludes) {
      own = before == index ? none : own;
      __builtin_memcpy(key, &own, sizeof(own));
    }
    chosen = own > best ? index : chosen;
    best = own > best ? own : best;
    index += 1;
  }
  return best;
}

/// The same for x86-64-v3. A function of its own, compiled once for all routers of a file.
template <int Count>
__attribute__((noinline, target("avx2"))) void select_in_lanes_v3(KeysSideBySide* key, int slots, KeysSideBySide* slot,
                                                                  KeysSideBySide* best) {
  for (int first = 0; first < lane_count; first += 8) {
    EightKeys chosen{};
    EightKeys largest = select_round_v3<false>(key[0] + first, slots, chosen);
    for (int k = 0;;) {
      __builtin_memcpy(slot[k] + first, &chosen, sizeof(chosen));
      __builtin_memcpy(best[k] + first, &largest, sizeof(largest));
      if (++k == Count) break;
      largest = select_round_v3<true>(key[0] + first, slots, chosen);
    }
  }
}
#endif

/// The same with instructions that the machine has.
MOEB_NO_EXECUTION_CHECK
template <int Count>
MOEB_EARLY_INLINE void select_in_lanes([[maybe_unused]] InstructionSet instructions, KeysSideBySide* key, int slots,
                                       KeysSideBySide* slot, KeysSideBySide* best) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (instructions >= InstructionSet::x86_64_v3) return select_in_lanes_v3<Count>(key, slots, slot, best);
#endif
  select_in_lanes_anywhere<Count>(key, slots, slot, best);
}

MOEB_NAMESPACE_END
