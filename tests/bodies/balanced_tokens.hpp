// BalancedTokens: tokens that are routed as all are, and that the load, the losses and the margins do not see.
#pragma once

#include "capacity_router.hpp"
#include "everything.hpp"
#include "forward_and_permute.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

namespace testing {

/// With a mask of padding, too, and some rows whose logits are not all numbers, balanced or not.
inline Inputs marked_inputs(std::uint64_t seed, std::int64_t tokens, int experts, int k, double left_out = 0.5) {
  Inputs inputs = full_inputs(seed, tokens, experts, k);
  inputs.loss_parts = 0;
  inputs.balanced = Random(seed + 3).flags(static_cast<std::size_t>(tokens), left_out);
  for (std::int64_t t = 5; t < tokens; t += 11) {
    const auto row = inputs.logits.begin() + t * experts;
    *(row + t % experts) = std::numeric_limits<double>::quiet_NaN();
    *(row + (t + 1) % experts) = -std::numeric_limits<double>::infinity();
  }
  return inputs;
}

TEST_CASE_TEMPLATE_DEFINE("BalancedTokens: every loss, load and gradient is that of the balanced, weights and counts of all",
                          Engine, balanced_agreement) {
  const auto check = [](const auto& scoring, const Inputs& inputs) {
    agrees(Engine(), scoring, mb::TopK<4>{}, inputs, mb::Combine{everything(), mb::BalancedTokens{}});
  };
  for (const int experts : {4, 24, 60, 200, 264, 520}) {
    CAPTURE(experts);
    Inputs inputs = marked_inputs(static_cast<std::uint64_t>(1800 + experts), 43, experts, 4);
    check(mb::Softmax{}, inputs);
    inputs.sequences = 3;
    inputs.layout = mb::Sequences::Layout::offsets;
    inputs.offsets = {0, 10, 10, 43};
    check(mb::Sigmoid{}, inputs);
  }
}

TEST_CASE_TEMPLATE_DEFINE(
    "BalancedTokens: all, none, one sequence without any, a token's own losses, 16-bit types, rows apart", Engine,
    balanced_edges) {
  const mb::Combine losses{mb::AuxLoss{.coefficient = 0.5f}, mb::ZLoss{.coefficient = 0.1f},
                           mb::EntropyLoss{.coefficient = 0.3f}, mb::LossFreeBias{}, mb::BalancedTokens{}};
  Inputs inputs = marked_inputs(1810, 45, 24, 4);
  const auto check = [&] {
    agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs, losses);
    agrees(Engine(), mb::SoftmaxOverSelected{}, mb::TopK<4>{}, inputs, losses);
  };
  check();
  inputs.balanced.assign(45, 1);
  check();
  inputs.balanced.assign(45, 0);
  check();
  inputs.balanced.clear();
  check();
  for (std::int64_t t = 0; t < 45; ++t) inputs.balanced.push_back(t < 15 || t == 30 ? 255 : 0);
  inputs.grad_weights.clear();
  inputs.accumulate = false;
  inputs.tokens_on_device = 31;
  inputs.row_padding = 3;
  inputs = with_types(inputs, mb::DataType::bfloat16, mb::DataType::bfloat16, mb::DataType::float32);
  check();
  inputs.sequences = 15;
  inputs.layout = mb::Sequences::Layout::token_major;
  agrees(Engine(), mb::Softmax{}, mb::TopK<4>{}, inputs,
         mb::Combine{mb::SequenceLoss{.coefficient = 0.5f}, mb::BalancedTokens{}});
}

/// The same row.
inline bool same_row(const Outcome& a, const Outcome& b, std::size_t row) {
  const std::size_t columns = a.counts.size();
  const auto first = static_cast<std::ptrdiff_t>(row * columns), last = static_cast<std::ptrdiff_t>((row + 1) * columns);
  return std::equal(a.grad_logits.begin() + first, a.grad_logits.begin() + last, b.grad_logits.begin() + first);
}

/// One call = one that routes all tokens and balances none, and one to which only the balanced ones are active: the same numbers.
template <class Engine, class Scoring, class TopKT, class Balancer>
void same_as_two_calls(const Scoring& scoring, const TopKT& top_k, const Balancer& balancer, const Inputs& inputs) {
  const auto run = [&](const auto& of, const Inputs& with) {
    const mb::Router router{scoring, top_k, of};
    if constexpr (mb::looks_across_tokens<TopKT>)
      return limited(Engine(), router, with).outcome;
    else
      return train(Engine(), router, with);
  };
  Inputs routing = inputs;
  routing.balanced.clear();
  routing.load.clear();
  Inputs balancing = inputs;
  balancing.balanced.clear();
  if (balancing.active.empty()) balancing.active.assign(inputs.balanced.size(), 1);
  for (std::size_t t = 0; t < inputs.balanced.size(); ++t)
    balancing.active[t] = balancing.active[t] != 0 && inputs.balanced[t] != 0 ? 1 : 0;
  const Outcome one = run(mb::Combine{balancer, mb::BalancedTokens{}}, inputs);
  const Outcome all = run(mb::NoBalancer{}, routing);
  const Outcome some = run(balancer, balancing);

  CHECK(one.experts == all.experts);
  CHECK(one.weights_bytes == all.weights_bytes);
  CHECK(one.counts == all.counts);
  CHECK(one.status.non_finite_tokens == all.status.non_finite_tokens);
  CHECK(one.status.invalid_experts == all.status.invalid_experts);
  CHECK(one.status.dropped_slots == all.status.dropped_slots);
  CHECK(one.load == some.load);
  CHECK(one.loss == some.loss);
  CHECK(one.saved == some.saved);
  CHECK(one.padding_untouched);
  std::size_t wrong_rows = 0, unbalanced = 0;
  for (std::size_t t = 0; t < inputs.balanced.size(); ++t) {
    const bool balanced = inputs.balanced[t] != 0;
    unbalanced += balanced ? 0 : 1;
    wrong_rows += same_row(one, balanced ? some : all, t) ? 0 : 1;
  }
  CHECK(wrong_rows == 0);
  CHECK(unbalanced > 0);
  CHECK(unbalanced < inputs.balanced.size());
}

TEST_CASE_TEMPLATE_DEFINE(
    "BalancedTokens: a plain top-k for losses, with and without a bias, arrivals, groups, fewer than K", Engine,
    balanced_two_calls) {
  for (const int experts : {8, 64, 264}) {
    if (experts > mb::Engine<std::remove_cvref_t<decltype(Engine().place())>>::most_experts) continue;
    CAPTURE(experts);
    Inputs inputs = marked_inputs(static_cast<std::uint64_t>(1820 + experts), 75, experts, 4);
    inputs.sequences = 5;
    same_as_two_calls<Engine>(
        mb::Softmax{}, mb::TopK<4>{},
        mb::Combine{mb::FromPlainTopK<mb::AuxLoss, 2>{mb::AuxLoss{.coefficient = 0.5f}}, mb::LossFreeBias{}}, inputs);
    same_as_two_calls<Engine>(
        mb::Sigmoid{}, mb::GroupLimitedTopK<4>{.groups = 4, .groups_kept = 2},
        mb::Combine{mb::CommunicationLoss{mb::SequenceLoss{.coefficient = 0.3f}, 4, 1}, mb::AuxLoss{}, mb::LossFreeBias{}},
        inputs);
    inputs.replay_experts = replayed_ids(1830, 75, experts, 4);
    inputs.replay_tokens = Random(1831).flags(75, 0.5);
    inputs.replay_experts[3] = -7;
    same_as_two_calls<Engine>(mb::Softmax{}, mb::Replay{mb::TopP<4>{.p = 0.4f}},
                              mb::Combine{mb::LossFreeBias{}, mb::ImportanceLoss{}, mb::ZLoss{}}, inputs);
  }
}

TEST_CASE_TEMPLATE_DEFINE("BalancedTokens: a probability that is no number reaches no token whose losses are not asked",
                          Engine, balanced_infinities) {
  Inputs inputs = normal_inputs(1835, 75, 24, 2);
  inputs.balanced = Random(1836).flags(75, 0.5);
  for (std::size_t t = 0; t < 75; ++t) {  // scores of both signs that add up to nothing, beside which they are infinite
    if (inputs.balanced[t] != 0) continue;
    for (std::size_t e = 0; e < 24; ++e) inputs.logits[t * 24 + e] = e == 0 ? 1e30 : e == 1 ? -1e30 : 0.0;
  }
  same_as_two_calls<Engine>(mb::Identity{}, mb::TopK<2>{.renormalise = false}, mb::AuxLoss{}, inputs);
}

TEST_CASE_TEMPLATE_DEFINE("BalancedTokens: margins are those of the balanced tokens, of both kinds of rules", Engine,
                          balanced_margins) {
  Inputs inputs = marked_inputs(1840, 75, 24, 4);
  const mb::QuantileBias quantile{.bins = 33};
  inputs.load = random_load(1841, 24 * 34, 50);
  same_as_two_calls<Engine>(mb::Softmax{}, mb::TopK<4>{}, quantile, inputs);
  same_as_two_calls<Engine>(mb::Sigmoid{}, mb::Threshold<4>{}, mb::ThresholdBias{.bins = 33}, inputs);
}

TEST_CASE_TEMPLATE_DEFINE("BalancedTokens: a capacity drops tokens of either kind, and losses see what balanced ones chose",
                          Engine, balanced_capacity) {
  const mb::WithCapacity<mb::TopK<2>> top_k{.capacity_factor = 0.8};
  const mb::Combine losses{mb::AuxLoss{.coefficient = 0.5f}, mb::LossFreeBias{}};
  Inputs inputs = marked_inputs(1850, 75, 8, 2);
  const Inputs with_weights = inputs;
  inputs.grad_weights.clear();  // what is dropped depends on all tokens, and is another half's in two calls
  same_as_two_calls<Engine>(mb::Softmax{}, top_k, losses, inputs);
  inputs = with_weights;
  inputs.balanced.assign(75, 0);
  const Outcome none =
      limited(Engine(), mb::Router{mb::Softmax{}, top_k, mb::Combine{losses, mb::BalancedTokens{}}}, inputs).outcome;
  inputs.balanced.clear();
  inputs.load.clear();
  const Outcome all = limited(Engine(), mb::Router{mb::Softmax{}, top_k}, inputs).outcome;
  CHECK(none.status.dropped_slots > 0);
  CHECK(none.grad_logits == all.grad_logits);
  CHECK(none.counts == all.counts);
  CHECK(none.load == with_weights.load);
  CHECK(none.loss == 0);
}

TEST_CASE_TEMPLATE_DEFINE("BalancedTokens: forward_and_permute is forward and permutation", Engine, balanced_and_permuted) {
  for (const std::int64_t tokens : {1, 75, 400}) {
    const Inputs inputs = marked_inputs(1860, tokens, 24, 4);
    check_fused<Engine>(mb::Router{mb::Softmax{}, mb::TopK<4>{},
                                   mb::Combine{mb::AuxLoss{}, mb::ZLoss{}, mb::LossFreeBias{}, mb::BalancedTokens{}}},
                        inputs);
    check_fused<Engine>(mb::Router{mb::Sigmoid{}, mb::TopK<4>{},
                                   mb::Combine{mb::FromPlainTopK<mb::AuxLoss>{}, mb::LossFreeBias{}, mb::BalancedTokens{}}},
                        inputs);
  }
}

}  // namespace testing
