// The first half of the fused calls: the forward pass by blocks that have contiguous ranges of tokens and leave their counts, and a place on which a
// Router's calls run it.
#pragma once

#include <moe_balance/concepts.hpp>
#include <moe_balance/dispatch/engine.hpp>
#include <moe_balance/dispatch/permutation_problem.hpp>
#include <moe_balance/engine/engine.hpp>
#include <moe_balance/engine/kernels.hpp>

#include <cstddef>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// The indices in `segment` of its tokens among `range`, which lie in order in every layout.
[[nodiscard]] MOEB_INLINE ItemRange items_of_segment(const Segments& segments, std::int64_t segment,
                                                     const ItemRange& range) {
  const std::int64_t size = segments.size(segment);
  const std::int64_t step = segments.sequences.layout == Sequences::Layout::token_major ? segments.count() : 1;
  const auto bounded = [&](std::int64_t token) MOEB_LAMBDA {
    const std::int64_t index = (token - segments.token(segment, 0) + step - 1) / step;
    return index < 0 ? 0 : index > size ? size : index;
  };
  return {bounded(range.first), bounded(range.last)};
}

/// The row that a block leaves its sums in; empty where there are none.
template <class Balancer, class BlockT>
[[nodiscard]] MOEB_INLINE SavedView row_of_block(const BlockT& block, std::int64_t experts, const Totals& totals) {
  constexpr bool may_have = SavedLayout<Balancer>::is_used && !BalancerTraits<Balancer>::reads_global_batch;
  if (!may_have || totals.rows_of_sums == nullptr) return {};
  const SavedLayout<Balancer> layout{experts, 1};
  return layout.view(totals.rows_of_sums + block.index() * layout.words());
}

/// The forward pass by blocks that have contiguous ranges of tokens. Block b leaves its counts in row b of the histogram.
template <class Config, class BlockT, class TileT, class Problem>
MOEB_HOST_DEVICE inline void forward_and_count_kernel(const BlockT& block, const TileT& tile, const Problem& given,
                                                      const Totals& given_totals, const Histogram& histogram) {
  const auto& problem = specialised<Config>(given);
  ForwardPass<Config, BlockT, TileT, Problem> pass(block, tile, problem);
  using Balancer = decltype(problem.balancer);
  const SavedView row = row_of_block<Balancer>(block, problem.logits.columns, given_totals);
  Totals totals = given_totals;
  if (row.counts != nullptr) totals.saved = {};
  const bool adds = problem.segments.count() != 1;  // else a row is written once: memory is far away
  const auto clear_row = [&]() MOEB_LAMBDA {
    MOEB_NO_UNROLL
    for (int e = block.thread(); e < histogram.columns; e += block.threads()) histogram.set(block.index(), e, 0);
  };
  if (adds) clear_row();
  ItemRange range{histogram.first_token(block.index()), histogram.first_token(block.index() + 1)};
  const int tiles = block.threads() / TileT::width;
  for (std::int64_t segment = 0; segment < problem.segments.count(); ++segment) {
    const ItemRange items = items_of_segment(problem.segments, segment, range);
    if (items.first >= items.last) {
      if (!adds) clear_row();
      if (row.counts != nullptr) {
        MOEB_NO_UNROLL
        for (int e = block.thread(); e < pass.experts; e += block.threads()) {
          set_expert_row<Balancer>(row, pass.experts, e, {});
        }
        if (block.thread() == 0) set_token_row(row, TokenTotals<BalancerTraits<Balancer>::token_losses>{});
      }
      continue;
    }
    const auto sink =
        forward_tokens<Config>(pass, problem, segment, items.first + tile_in_block(block, tile), items.last, tiles);
    pass.finish_segment(sink, totals, segment, false, row);
    MOEB_NO_UNROLL
    for (int e = block.thread(); e < histogram.columns; e += block.threads()) {
      const std::int32_t count = pass.shared.counts()[e];
      if (adds)
        histogram.add(block.index(), e, count);
      else
        histogram.set(block.index(), e, count);
    }
    // Offsets in device memory may be wrong: no token may be counted twice, or the permutation would need more rows than there are.
    if (problem.segments.sequences.layout == Sequences::Layout::offsets) {
      range.first = problem.segments.token(segment, items.last - 1) + 1;
    }
  }
}

/// A place that routes as `place` does, and leaves the counts of the histogram's ranges of tokens.
template <class Place, class Tag = EngineTagOf<Place>>
struct CountingPlace {
  Place place;
  Histogram histogram;
  RowsOfSums* sums;  ///< memory for rows; what is to be added up once routing is enqueued
};

/// Router's calls on a CountingPlace launch the kernel that routes and counts.
template <class Place, class Tag>
struct Engine<CountingPlace<Place, Tag>> {
  using Counting = CountingPlace<Place, Tag>;
  static constexpr bool serves_float64 = false;
  static constexpr int most_experts = Engine<Place>::most_experts;

  static void check(const char* call, const Counting& counting) { Engine<Place>::check(call, counting.place); }
  template <class Problem>
  static void check_fits(const char* call, const Problem& problem, const Counting& counting)
    requires requires { Engine<Place>::check_fits(call, problem, counting.place); }
  {
    Engine<Place>::check_fits(call, problem, counting.place);
  }
  static void clear(void* data, std::size_t bytes, const Counting& counting) {
    Engine<Place>::clear(data, bytes, counting.place);
  }
  static void clear_sums(std::int64_t* words, std::int64_t word_count, std::int64_t* counts, int count_count,
                         const Counting& counting) requires requires {
    Engine<Place>::clear_sums(words, word_count, counts, count_count, counting.place);
  }
  { Engine<Place>::clear_sums(words, word_count, counts, count_count, counting.place); }
  /// For forward: rows that blocks leave their sums in, so that no launch has to clear.
  static void add_up_in_rows(Totals& totals, std::int64_t* saved, std::int64_t words, const Counting& counting) {
    totals.rows_of_sums = counting.sums->rows;
    counting.sums->sums = saved;
    counting.sums->words = words;
  }
  static void copy(void* to, const void* from, std::size_t bytes, const Counting& counting) {
    Engine<Place>::copy(to, from, bytes, counting.place);
  }
  static void publish(std::int64_t* load, std::int64_t* counts, int experts, bool accumulate, const Counting& counting) {
    Engine<Place>::publish(load, counts, experts, accumulate, counting.place);
  }
  template <class Real, class Problem>
  static void forward(const Problem& problem, const Totals& totals, const Counting& counting) {
    DispatchEngine<Place>::forward_and_count(problem, totals, counting.histogram, counting.place);
  }
  template <class Real, class Problem>
  static void count_margins(const Problem& problem, const Counting& counting) {
    Engine<Place>::template count_margins<Real>(problem, counting.place);
  }
};

template <class Place, class Tag>
struct EngineTag<CountingPlace<Place, Tag>> {
  using type = Tag;
};

/// A Sync that sums where a CountingPlace routes.
template <class Sync>
struct CountingSync {
  Sync sync;

  [[nodiscard]] int ranks() const { return sync.ranks(); }
  template <class Place, class Tag>
    requires SyncPolicyOn<Sync, Place>
  void start(std::int64_t* counts, std::int64_t n, const CountingPlace<Place, Tag>& counting) const {
    sync.start(counts, n, counting.place);
  }
  template <class Place, class Tag>
    requires SyncPolicyOn<Sync, Place>
  void finish(std::int64_t* counts, const CountingPlace<Place, Tag>& counting) const { sync.finish(counts, counting.place); }
};
template <class Sync>
CountingSync(Sync) -> CountingSync<Sync>;

MOEB_NAMESPACE_END
