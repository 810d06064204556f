// forward_and_permute gives what forward and permutation give, bit for bit, on any engine: ids, weights, saved, load, loss, gradient and rows.
#pragma once

#include "../engine_host.hpp"
#include "everything.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace testing {

/// All that a training step with dispatch wrote.
struct TrainedAndPermuted {
  Outcome outcome;
  std::vector<std::int64_t> counts;
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> row_of_slot;
  std::vector<std::int64_t> slot_of_row;
};

inline void check_same(const TrainedAndPermuted& got, const TrainedAndPermuted& want) {
  CHECK(same_bits(got.outcome, want.outcome));
  CHECK(got.outcome.saved == want.outcome.saved);
  CHECK(got.outcome.parts == want.outcome.parts);
  CHECK(got.outcome.padding_untouched);
  CHECK(got.counts == want.counts);
  CHECK(got.offsets == want.offsets);
  CHECK(got.row_of_slot == want.row_of_slot);
  CHECK(got.slot_of_row == want.slot_of_row);
}

template <class Engine, class Router>
TrainedAndPermuted trained_and_permuted(const Engine& engine, const Router& router, const Inputs& inputs, bool fused) {
  using Longs = typename Engine::template Array<std::int64_t>;
  constexpr std::int64_t align = 4;
  const mb::Shape shape = shape_of(inputs);
  const std::int64_t tokens = inputs.tokens;
  const std::int64_t rows = mb::permutation_rows(tokens, Router::k, inputs.experts, align);
  const std::size_t bytes = mb::route_and_permute_workspace_bytes(router, shape);
  const auto filled = [&](std::int64_t size) { return std::vector<std::int64_t>(static_cast<std::size_t>(size), 77); };
  Memory<Engine> memory(engine, inputs, Router::k, bytes, router.saved_bytes(shape),
                        mb::is_replaying<decltype(router.top_k)>);
  typename Engine::template Array<std::int32_t> chosen_ids(
      engine, std::vector<std::int32_t>(static_cast<std::size_t>(tokens * Router::k)));
  Longs counts(engine, filled(inputs.experts)), offsets(engine, filled(inputs.experts + 1));
  Longs row_of_slot(engine, filled(tokens * Router::k)), slot_of_row(engine, filled(rows));
  mb::ForwardArgs args = memory.forward_args();
  if constexpr (mb::looks_across_tokens<decltype(router.top_k)>)
    args.chosen = {chosen_ids.data(), tokens, Router::k};
  else
    args.counts = nullptr;  // the permutation's are the same
  const mb::PermutationArgs order{.experts = args.experts,
                                  .offsets = {offsets.data(), inputs.experts + 1},
                                  .row_of_slot = {row_of_slot.data(), tokens, Router::k},
                                  .slot_of_row = {slot_of_row.data(), rows},
                                  .align = align,
                                  .counts = counts.data()};
  if (fused) {
    mb::forward_and_permute(router, args, order, memory.workspace(), engine.place());
  } else {
    router.forward(args, memory.workspace(), engine.place());
    mb::permutation(order, memory.workspace(), engine.place());
  }
  if constexpr (Router::loss_count > 0) router.loss(memory.loss_args(), {}, engine.place());
  mb::BackwardArgs backward = memory.backward_args();
  backward.chosen = args.chosen;
  router.backward(backward, memory.workspace(), engine.place());
  return {memory.outcome(), counts.values(), offsets.values(), row_of_slot.values(), slot_of_row.values()};
}

/// On this engine in one call = on the CPU in two.
template <class Engine, class Router>
void check_fused(const Router& router, const Inputs& inputs) {
  check_same(trained_and_permuted(Engine{}, router, inputs, true),
             trained_and_permuted(HostEngine{}, router, inputs, false));
}

TEST_CASE_TEMPLATE_DEFINE(
    "forward_and_permute = forward, then permutation, with every balancer and every layout of sequences", Engine,
    forward_and_permute_same) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
  using Layout = mb::Sequences::Layout;
  for (const int experts : {24, 200, 600}) {
    for (const Layout layout : {Layout::sequence_major, Layout::token_major, Layout::offsets}) {
      CAPTURE(experts);
      CAPTURE(static_cast<int>(layout));
      Inputs inputs = full_inputs(static_cast<std::uint64_t>(experts), 180, experts, 4);
      inputs.layout = layout;
      inputs.sequences = 6;
      if (layout == Layout::offsets) inputs.offsets = {0, 1, 1, 70, 150, 150, 180};
      check_fused<Engine>(router, inputs);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("forward_and_permute: no tokens, one, fewer than rows, more parts than one; no accumulation",
                          Engine, forward_and_permute_sizes) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, everything()};
  for (const std::int64_t tokens : {0, 1, 7, 600}) {
    CAPTURE(tokens);
    Inputs inputs = full_inputs(31, tokens, 24, 4);
    inputs.accumulate = tokens != 7;
    if (tokens == 600) {
      inputs.tokens_on_device = 417;
      inputs.layout = mb::Sequences::Layout::token_major;
      inputs.sequences = 6;
    }
    check_fused<Engine>(router, inputs);
  }
}

TEST_CASE_TEMPLATE_DEFINE(
    "forward_and_permute: sums that a GPU's blocks add up apart, and a kernel of the permutation together", Engine,
    forward_and_permute_sums) {
  using Layout = mb::Sequences::Layout;
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{},
                          mb::Combine{mb::FromPlainTopK{mb::AuxLoss{.coefficient = 0.5f}},
                                      mb::FromPlainTopK{mb::SequenceLoss{.coefficient = 0.25f}},
                                      mb::ZLoss{.coefficient = 0.125f}, mb::LossFreeBias{}}};
  for (const std::int64_t tokens : {0, 1, 7, 100, 600, 1100}) {
    for (const int experts : {5, 32}) {
      for (const int sequences : {1, 2}) {  // of two, all add up in one place
        for (const Layout layout : {Layout::sequence_major, Layout::token_major, Layout::offsets}) {
          if (tokens % sequences != 0) continue;
          CAPTURE(tokens);
          CAPTURE(experts);
          CAPTURE(sequences);
          CAPTURE(static_cast<int>(layout));
          Inputs inputs = full_inputs(37, tokens, experts, 4);
          inputs.loss_parts = 3;
          inputs.layout = layout;
          inputs.sequences = sequences;
          if (layout == Layout::offsets) {
            for (int i = 0; i <= sequences; ++i) inputs.offsets.push_back(tokens * i / sequences);
          }
          inputs.accumulate = tokens != 7;
          if (tokens == 600) inputs.tokens_on_device = 417;
          check_fused<Engine>(router, inputs);
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("forward_and_permute: tokens that reach a device, of a micro-batch and of sequences", Engine,
                          forward_and_permute_arrivals) {
  const auto check = [&](const auto& loss, std::int64_t tokens, int sequences) {
    CAPTURE(tokens);
    CAPTURE(sequences);
    const mb::Router router{
        mb::Softmax{}, mb::TopK<4>{},
        mb::Combine{mb::CommunicationLoss{loss, 4, 3}, mb::AuxLoss{.coefficient = 0.25f}, mb::LossFreeBias{}}};
    Inputs inputs = full_inputs(38, tokens, 32, 4);
    inputs.loss_parts = 2;
    inputs.sequences = sequences;
    if (tokens == 600) inputs.tokens_on_device = 417;
    check_fused<Engine>(router, inputs);
  };
  for (const std::int64_t tokens : {0, 1, 100, 600, 1100}) {
    check(mb::AuxLoss{.coefficient = 0.5f}, tokens, 1);
    for (const int sequences : {1, 2}) {
      if (tokens % sequences == 0) check(mb::SequenceLoss{.coefficient = 0.5f}, tokens, sequences);
    }
  }
}

TEST_CASE_TEMPLATE_DEFINE("forward_and_permute: losses that count a plain top-k, replayed ids", Engine,
                          forward_and_permute_replay) {
  const mb::Router router{mb::Softmax{}, mb::Replay{mb::TopK<4>{}},
                          mb::FromPlainTopK{mb::GlobalBatchLoss{.coefficient = 0.5f}}};
  Inputs inputs = full_inputs(32, 150, 40, 4);
  inputs.loss_parts = 1;
  Random random(33);
  for (std::int64_t t = 0; t < 150; ++t) {
    for (const int id : random.distinct_ids(4, 40)) inputs.replay_experts.push_back(random.chance(0.2) ? -1 : id);
  }
  inputs.replay_tokens = random.flags(150, 0.5);
  check_fused<Engine>(router, inputs);
}

TEST_CASE_TEMPLATE_DEFINE("forward_and_permute: a capacity, whose rows are those of the slots that stayed", Engine,
                          forward_and_permute_capacity) {
  const mb::Router router{mb::Softmax{}, mb::WithCapacity<mb::TopK<4>>{.capacity_factor = 0.8},
                          mb::AuxLoss{.coefficient = 0.3f}};
  Inputs inputs = full_inputs(34, 150, 40, 4, 1.0);
  inputs.loss_parts = 1;
  check_fused<Engine>(router, inputs);
  const TrainedAndPermuted result = trained_and_permuted(Engine{}, router, inputs, true);
  const auto sum = [](const std::vector<std::int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), 0L); };
  CHECK(sum(result.outcome.counts) > sum(result.counts));  // what was chosen, and what stayed
}

TEST_CASE_TEMPLATE_DEFINE("forward_and_permute counts margins, too", Engine, forward_and_permute_margins) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::QuantileBias{.bins = 30}};
  Inputs inputs = full_inputs(36, 150, 40, 4, 1.0);
  inputs.loss_parts = 0;
  inputs.load.resize(40 * 31, 2);
  check_fused<Engine>(router, inputs);
  const std::vector<std::int64_t> load = trained_and_permuted(Engine{}, router, inputs, true).outcome.load;
  const auto active = std::count_if(inputs.active.begin(), inputs.active.end(), [](std::uint8_t a) { return a != 0; });
  for (std::size_t e = 0; e < 40; ++e) {
    std::int64_t margins = 0;
    for (std::size_t b = 0; b < 30; ++b) margins += load[40 + e * 30 + b] - 2;
    CHECK(margins == active);
  }
  // What a GPU keeps of tokens lies behind the memory of a capacity.
  check_fused<Engine>(mb::Router{mb::Softmax{}, mb::WithCapacity<mb::TopK<4>>{.capacity_factor = 0.8}, router.balancer},
                      inputs);
}

TEST_CASE_TEMPLATE_DEFINE("forward_and_permute refuses counts that have a place of their own", Engine,
                          forward_and_permute_errors) {
  const Engine engine;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::AuxLoss{}};
  const Inputs inputs = full_inputs(35, 3, 8, 4);
  Memory<Engine> memory = memory_for(engine, router, inputs);
  typename Engine::template Array<std::int64_t> offsets(engine, std::vector<std::int64_t>(9));
  CHECK_THROWS_WITH_AS(
      mb::forward_and_permute(router, memory.forward_args(),
                              {.experts = {}, .offsets = {offsets.data(), 9}, .row_of_slot = {}, .slot_of_row = {}}, {},
                              engine.place()),
      doctest::Contains("forward_and_permute: counts is given; allowed: null"), mb::InvalidArgument);
  CHECK(memory.outcome().load == inputs.load);
}

}  // namespace testing
