// What a block of the forward kernel adds up: its shared memory, and a lane's sums on the way there.
#pragma once

#include <moe_balance/engine/kernel_config.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

// A lane's sums of probabilities. Its tile has a row of them in shared memory, which has all of them after flush(): rows of their own need no
// atomic additions, which for 64 bits would be loops of compare-and-swap. probability(slot, fixed) adds any, unit_probability(slot, probability)
// one of 0 to 2.

/// Where a row of a tile of `Width` lanes has a lane's slot. Neighbouring lanes have neighbouring words; fours of lanes change places from slot to slot, so
/// that half a warp that reads experts in their order, four slots of four lanes, meets each bank once.
template <int Width>
[[nodiscard]] MOEB_HOST_DEVICE constexpr int place_in_row(int lane, int slot) {
  return slot * Width + (lane ^ (Width < 8 ? 0 : Width < 16 ? slot / 2 % 2 : slot % 4) * 4);
}

/// In registers.
template <class LayoutT>
struct RegisterSums {
  static constexpr bool adds_to_row = false;
  std::int64_t* row;
  LayoutT layout;
  Slots<std::int64_t, LayoutT> sums{};

  MOEB_HOST_DEVICE void clear() { clear_slots(layout, sums); }
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) { sums[slot] += fixed; }
  MOEB_HOST_DEVICE void unit_probability(int slot, float value) { probability(slot, unit_to_int64(value)); }
  MOEB_HOST_DEVICE void flush() {
    for_each_slot(layout, [&](int slot) { row[place_in_row<LayoutT::width>(layout.lane, slot)] = sums[slot]; });
  }
};

/// In the row itself, where they would not fit registers. It must be clear before.
template <class LayoutT>
struct SharedSums {
  static constexpr bool adds_to_row = true;
  std::int64_t* row;
  LayoutT layout;

  MOEB_HOST_DEVICE void clear() {}
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) {
    row[place_in_row<LayoutT::width>(layout.lane, slot)] += fixed;
  }
  MOEB_HOST_DEVICE void unit_probability(int slot, float value) { probability(slot, unit_to_int64(value)); }
  MOEB_HOST_DEVICE void flush() {}
};

/// What a block counts of its tokens, in words of 32 bits: shared memory adds to those by itself, to 64 bits by loops of compare-and-swap, in which
/// all warps of a block wait for each other. A token loss, a sum of 64 bits, is three of them.
template <int TokenLosses>
struct alignas(16) BlockTokens {
  static constexpr int bits_of_part = 22;  ///< so that parts of 512 sums can be added up
  std::int32_t tokens;
  std::int32_t non_finite_tokens;
  std::int32_t invalid_experts;
  std::int32_t token_losses[TokenLosses == 0 ? 1 : TokenLosses][3];

  /// Adds a lane's part; only one of each tile has any of a loss.
  template <class BlockT>
  MOEB_HOST_DEVICE void add(const BlockT& block, const TokenTotals<TokenLosses>& own) {
    const auto add = [&](std::int32_t& to, std::int64_t value) MOEB_LAMBDA {
      if (value != 0) block.add_shared(&to, static_cast<std::int32_t>(value));
    };
    add(tokens, own.tokens);
    add(non_finite_tokens, own.non_finite_tokens);
    add(invalid_experts, own.invalid_experts);
    constexpr std::int64_t mask = (std::int64_t{1} << bits_of_part) - 1;
    MOEB_UNROLL
    for (int i = 0; i < TokenLosses; ++i) {
      const std::int64_t sum = own.token_losses[i];
      add(token_losses[i][0], sum & mask);
      add(token_losses[i][1], sum >> bits_of_part & mask);
      add(token_losses[i][2], sum >> 2 * bits_of_part);
    }
  }
  [[nodiscard]] MOEB_HOST_DEVICE TokenTotals<TokenLosses> totals() const {
    TokenTotals<TokenLosses> sums;
    sums.tokens = tokens;
    sums.non_finite_tokens = non_finite_tokens;
    sums.invalid_experts = invalid_experts;
    MOEB_UNROLL
    for (int i = 0; i < TokenLosses; ++i) {
      const std::int32_t(&parts)[3] = token_losses[i];
      const auto upper = static_cast<std::uint64_t>(std::int64_t{parts[2]});
      sums.token_losses[i] = static_cast<std::int64_t>(
          static_cast<std::uint32_t>(parts[0]) + (std::uint64_t{static_cast<std::uint32_t>(parts[1])} << bits_of_part) +
          (upper << 2 * bits_of_part));
    }
    return sums;
  }
};

/// Shared memory of the forward kernel, in this order: the token totals, counts, the load's and the losses' own counts where they differ, arrivals where a loss
/// counts those, the bias, and a row of probability sums for each tile.
template <class Balancer, int MaxExperts>
struct ForwardShared {
  using Traits = BalancerTraits<Balancer>;
  using Tokens = BlockTokens<Traits::token_losses>;
  static constexpr bool has_probabilities = Traits::losses > 0;
  static constexpr std::size_t counts_at = sizeof(Tokens);
  static constexpr std::size_t row_of_counts = MaxExperts * sizeof(std::int32_t);
  static constexpr std::size_t load_counts_at = counts_at + (Traits::marks_tokens ? row_of_counts : 0);
  static constexpr std::size_t loss_counts_at = load_counts_at + (Traits::plain_losses > 0 ? row_of_counts : 0);
  static constexpr bool counts_arrivals = Traits::arrival_losses > 0;
  static constexpr std::size_t arrivals_at = loss_counts_at + row_of_counts;
  static constexpr std::size_t bias_at = arrivals_at + (counts_arrivals ? row_of_counts : 0);
  static constexpr std::size_t rows_at = bias_at + MaxExperts * sizeof(float);
  static constexpr std::size_t row_bytes = has_probabilities ? MaxExperts * sizeof(std::int64_t) : 0;
  static_assert(rows_at % alignof(std::int64_t) == 0);
  static constexpr int words_of_thread = 2;  ///< of a tile's own memory

  /// `threads`: those that have words of their tile's memory.
  [[nodiscard]] static constexpr std::size_t bytes(int tiles, int threads) {
    return rows_at + row_bytes * static_cast<std::size_t>(tiles) +
           words_of_thread * sizeof(std::uint32_t) * static_cast<std::size_t>(threads);
  }

  std::byte* memory;
  [[nodiscard]] MOEB_HOST_DEVICE Tokens* tokens() const { return reinterpret_cast<Tokens*>(memory); }
  [[nodiscard]] MOEB_HOST_DEVICE std::int32_t* counts() const { return reinterpret_cast<std::int32_t*>(memory + counts_at); }
  /// The same as counts() unless calls mark balanced tokens.
  [[nodiscard]] MOEB_HOST_DEVICE std::int32_t* load_counts() const {
    return reinterpret_cast<std::int32_t*>(memory + load_counts_at);
  }
  /// The same as load_counts() unless losses count apart.
  [[nodiscard]] MOEB_HOST_DEVICE std::int32_t* loss_counts() const {
    return reinterpret_cast<std::int32_t*>(memory + loss_counts_at);
  }
  /// Null unless a loss counts them.
  [[nodiscard]] MOEB_HOST_DEVICE std::int32_t* arrivals() const {
    return counts_arrivals ? reinterpret_cast<std::int32_t*>(memory + arrivals_at) : nullptr;
  }
  [[nodiscard]] MOEB_HOST_DEVICE float* bias() const { return reinterpret_cast<float*>(memory + bias_at); }
  [[nodiscard]] MOEB_HOST_DEVICE std::int64_t* probabilities(int tile) const {
    return reinterpret_cast<std::int64_t*>(memory + rows_at) + static_cast<std::int64_t>(tile) * MaxExperts;
  }
  /// A tile's own, behind the rows of all; there are none in a tier that has no use for them on any architecture.
  [[nodiscard]] MOEB_HOST_DEVICE std::uint32_t* words(int tile, int tiles, int width) const {
    const std::size_t words_at = rows_at + row_bytes * static_cast<std::size_t>(tiles);
    return reinterpret_cast<std::uint32_t*>(memory + words_at) + tile * words_of_thread * width;
  }
};

/// The bytes a forward kernel of `Tier` asks for, with blocks of so many threads.
template <class Balancer, CudaTier Tier>
[[nodiscard]] constexpr std::size_t forward_shared_bytes(int threads = Tier.threads) {
  constexpr bool selects_by_words = Tier.max_experts / Tier.width <= (Tier.width == 32 ? 32 : 8);  // see PackedSelection
  return ForwardShared<Balancer, Tier.max_experts>::bytes(threads / Tier.width, selects_by_words ? threads : 0);
}

template <class BlockT, class SumsT, class Balancer>
struct KernelSink {
  using Traits = BalancerTraits<Balancer>;
  const BlockT& block;
  std::int32_t* counts;
  std::int32_t* load_counts;
  std::int32_t* loss_counts;
  std::int32_t* arrivals;
  SumsT& sums;
  TokenTotals<Traits::token_losses> tokens{};
  std::int32_t tokens_of_tile = 0;  ///< 32 bits hold what a kernel's block can see
  std::int32_t non_finite_of_tile = 0;
  std::int32_t invalid_of_lane = 0;

  MOEB_HOST_DEVICE void token() { ++tokens_of_tile; }
  MOEB_HOST_DEVICE void token_with_losses() {}
  MOEB_HOST_DEVICE void non_finite_token() { ++non_finite_of_tile; }
  MOEB_HOST_DEVICE void invalid_expert() { ++invalid_of_lane; }
  /// This lane's part of all totals.
  [[nodiscard]] MOEB_HOST_DEVICE TokenTotals<Traits::token_losses> part_of_lane(int lane) const {
    TokenTotals<Traits::token_losses> part = tokens;
    part.tokens = lane == 0 ? tokens_of_tile : 0;
    part.non_finite_tokens = lane == 0 ? non_finite_of_tile : 0;
    part.invalid_experts = invalid_of_lane;
    return part;
  }
  MOEB_HOST_DEVICE void count(std::int32_t expert) { block.add_shared(counts + expert, 1); }
  MOEB_HOST_DEVICE void load_count(std::int32_t expert) { block.add_shared(load_counts + expert, 1); }
  MOEB_HOST_DEVICE void loss_count(std::int32_t expert) { block.add_shared(loss_counts + expert, 1); }
  MOEB_HOST_DEVICE void arrival(std::int32_t expert) { block.add_shared(arrivals + expert, 1); }
  MOEB_HOST_DEVICE void probability(int slot, std::int64_t fixed) { sums.probability(slot, fixed); }
  MOEB_HOST_DEVICE void unit_probability(int slot, float probability) { sums.unit_probability(slot, probability); }
  MOEB_HOST_DEVICE void token_loss(int index, std::int64_t fixed) {
    MOEB_UNROLL
    for (int i = 0; i < Traits::token_losses; ++i) tokens.token_losses[i] += i == index ? fixed : 0;
  }
};

MOEB_NAMESPACE_END
