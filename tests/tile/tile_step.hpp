// One training step of a few tokens by the per-token functions alone, on tiles of any width, compared bit for bit with the one-lane tile.
#pragma once

#include "fiber_tile.hpp"

#include <moe_balance/moe_balance.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <utility>
#include <vector>

namespace testing {

namespace mb = moe_balance;

inline constexpr int step_capacity = 128;

/// Three tokens, each a sequence of its own where that matters; the second is inactive, the first replayed where the router replays.
struct TileInputs {
  static constexpr int tokens = 3;
  int experts;
  std::vector<float> logits;
  std::vector<float> grad_weights;
  std::vector<float> bias = std::vector<float>(step_capacity);
  std::vector<std::int32_t> replay;
  std::vector<std::uint8_t> active{1, 0, 1};
  std::vector<std::uint8_t> replayed{1, 1, 0};

  TileInputs(std::uint64_t seed, int expert_count, int k, bool awkward) : experts(expert_count) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const float odd[] = {0.0f, -0.0f, 1.0f, 1.0f, INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 1e-40f, -88.0f, 89.0f};
    for (int i = 0; i < tokens * experts; ++i) {
      const float ordinary = normal(random);
      logits.push_back(awkward && random() % 3 == 0 ? odd[random() % std::size(odd)] : ordinary);
    }
    for (int i = 0; i < tokens * k; ++i) {
      grad_weights.push_back(normal(random));
      replay.push_back(static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(experts + 3)) - 2);
    }
    for (int e = 0; e < experts; ++e) bias[static_cast<std::size_t>(e)] = 0.1f * normal(random);
  }
};

struct TileOutputs {
  std::vector<std::int32_t> experts;
  std::vector<float> weights, slope, grad, losses, bias;
  std::vector<std::int64_t> counts, saved;
  mb::Status status;

  [[nodiscard]] bool operator==(const TileOutputs& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
    };
    return same(experts, other.experts) && same(weights, other.weights) && same(slope, other.slope) &&
           same(grad, other.grad) && same(losses, other.losses) && same(bias, other.bias) && same(counts, other.counts) &&
           same(saved, other.saved) && status.non_finite_tokens == other.status.non_finite_tokens &&
           status.invalid_experts == other.status.invalid_experts;
  }
};

/// Sums of one token, as plain arrays that all lanes share.
template <class Balancer>
struct ArraySums {
  using Traits = mb::BalancerTraits<Balancer>;
  std::int64_t counts[step_capacity] = {};
  std::int64_t load_counts[step_capacity] = {};
  std::int64_t loss_counts[step_capacity] = {};
  std::int64_t arrivals[step_capacity] = {};
  std::int64_t probabilities[step_capacity] = {};
  mb::TokenTotals<Traits::token_losses> tokens{};

  void flush(const mb::Totals& totals, std::int64_t segment, int experts) const {
    const auto add = [](std::int64_t* to, std::int64_t value) { *to += value; };
    for (int e = 0; e < experts; ++e) {
      const std::int64_t load_count = Traits::marks_tokens ? load_counts[e] : counts[e];
      const mb::ExpertSums of_expert{.count = counts[e],
                                     .load_count = load_count,
                                     .loss_count = Traits::plain_losses > 0 ? loss_counts[e] : load_count,
                                     .arrivals = arrivals[e],
                                     .probability = probabilities[e]};
      mb::add_expert_totals<Balancer>(totals, segment, experts, e, of_expert, add);
    }
    mb::add_token_totals<Balancer>(totals, segment, tokens, add);
  }
};

/// One lane's view of them.
template <class Balancer, class LayoutT>
struct ArraySink {
  ArraySums<Balancer>& sums;
  const LayoutT& layout;

  void token() { sums.tokens.tokens += layout.lane == 0 ? 1 : 0; }
  void token_with_losses() {}
  void non_finite_token() { sums.tokens.non_finite_tokens += layout.lane == 0 ? 1 : 0; }
  void invalid_expert() { ++sums.tokens.invalid_experts; }
  void token_loss(int index, std::int64_t fixed) { sums.tokens.token_losses[index] += fixed; }
  void count(std::int32_t expert) { ++sums.counts[expert]; }
  void load_count(std::int32_t expert) { ++sums.load_counts[expert]; }
  void loss_count(std::int32_t expert) { ++sums.loss_counts[expert]; }
  void arrival(std::int32_t expert) { ++sums.arrivals[expert]; }
  void probability(int slot, std::int64_t fixed) {
    if (layout.holds_expert(slot)) sums.probabilities[layout.expert(slot)] += fixed;
  }
};

/// The step of one router and one set of inputs. Every lane of a tile calls run.
template <class Scoring, class Selection, class Balancer>
class TileStep {
 public:
  TileStep(const Scoring& scoring, const Selection& selection, const Balancer& balancer, const TileInputs& inputs)
      : in_(inputs), experts_(inputs.experts) {
    const auto e = static_cast<std::size_t>(experts_);
    const mb::Sequences sequences{.count = Traits::reads_sequences ? tokens : 1};
    const mb::Segments segments(sequences, tokens);
    const mb::SavedLayout<Balancer> saved_layout{experts_, sequences.count};
    out.experts.assign(static_cast<std::size_t>(tokens * k), 77);
    out.weights.assign(static_cast<std::size_t>(tokens * k), 7.0f);
    out.grad.assign(tokens * e, 7.0f);
    out.counts.assign(e, 3);
    out.losses.assign(8, 0.0f);
    out.slope.assign(step_capacity, 7.0f);
    out.saved.assign(static_cast<std::size_t>(saved_layout.words()), 0);
    out.bias = inputs.bias;
    saved_ = saved_layout.view(out.saved.data());
    const mb::MatrixView<const float> logits(inputs.logits.data(), tokens, experts_);
    const mb::MatrixView<std::int32_t> ids(out.experts.data(), tokens, k);
    forward_ = {scoring,
                selection,
                balancer,
                logits,
                ids,
                mb::MatrixView<float>(out.weights.data(), tokens, k),
                out.bias.data(),
                inputs.active.data(),
                nullptr,
                {{inputs.replay.data(), tokens, k}, inputs.replayed.data()},
                segments,
                false};
    loss_ = {balancer, saved_, experts_, k, 1, false, sequences.count, out.losses.data(), out.losses.data() + 1};
    backward_ = {scoring,
                 selection,
                 balancer,
                 logits,
                 ids,
                 mb::MatrixView<const float>(inputs.grad_weights.data(), tokens, k),
                 mb::MatrixView<float>(out.grad.data(), tokens, experts_),
                 saved_,
                 inputs.active.data(),
                 nullptr,
                 nullptr,
                 0.7f,
                 1,
                 segments,
                 false,
                 false};
    update_ = {balancer, {out.bias.data(), experts_}, {out.counts.data(), experts_}, k, 1, nullptr};
  }

  template <class TileT>
  void run(const TileT& tile) {
    const mb::Layout<TileT, step_capacity> layout{experts_, tile.lane()};
    for (int token = 0; token < tokens; ++token) forward(tile, layout, token);
    mb::evaluate_losses(loss_, tile);
    for (int token = 0; token < tokens; ++token) backward(tile, layout, token);
    mb::update_layer(update_, tile, 0);
  }

  TileOutputs out;

 private:
  using Traits = mb::BalancerTraits<Balancer>;
  static constexpr int k = Selection::k;
  static constexpr int tokens = TileInputs::tokens;

  [[nodiscard]] static std::int64_t segment_of(int token) { return Traits::reads_sequences ? token : 0; }

  template <class TileT, class LayoutT>
  void forward(const TileT& tile, const LayoutT& layout, int token) {
    ArraySink<Balancer, LayoutT> sink{sums_, layout};
    mb::forward_token<float>(forward_, tile, layout, token, in_.bias.data(), sink);
    tile.barrier();
    if (tile.lane() == 0) {
      sums_.flush({out.counts.data(), nullptr, saved_, &out.status}, segment_of(token), experts_);
      sums_ = {};
      if (Traits::reads_global_batch) std::copy(out.counts.begin(), out.counts.end(), saved_.global_counts);
    }
    tile.barrier();
  }

  template <class TileT, class LayoutT>
  void backward(const TileT& tile, const LayoutT& layout, int token) {
    mb::prepare_slopes(backward_, tile, segment_of(token), tile.lane(), TileT::width, step_capacity, out.slope.data());
    tile.barrier();
    const mb::LossSlopes<float> slopes{out.slope.data(), mb::token_loss_factor(backward_)};
    mb::backward_token(backward_, tile, layout, token, slopes);
    tile.barrier();
  }

  const TileInputs& in_;
  int experts_;
  mb::SavedView saved_;
  ArraySums<Balancer> sums_{};
  mb::ForwardProblem<Scoring, Selection, Balancer> forward_{};
  mb::LossProblem<Balancer> loss_{};
  mb::BackwardProblem<Scoring, Selection, Balancer> backward_{};
  mb::UpdateProblem<Balancer> update_{};
};

/// On W fibers, in the order that `seed` decides.
template <int W, class Step>
TileOutputs outputs_on_fibers(Step&& step, std::uint64_t seed) {
  FiberGroup group(W, seed);
  group.run([&](int lane) { step.run(FiberTile<W>{&group, lane}); });
  return std::move(step.out);
}

/// The same where the fibers share memory.
template <int W, class Step>
TileOutputs outputs_on_fibers_with_memory(Step&& step, std::uint64_t seed) {
  FiberGroup group(W, seed);
  std::uint32_t memory[2 * W];
  std::fill(std::begin(memory), std::end(memory), 0xdeadbeefu);
  group.run([&](int lane) { step.run(mb::TileWithMemory<FiberTile<W>>{{&group, lane}, memory}); });
  return std::move(step.out);
}

template <class Scoring, class Selection, class Balancer>
void check_all_widths(const Scoring& scoring, const Selection& selection, const Balancer& balancer, bool replays = true) {
  using Step = TileStep<Scoring, Selection, Balancer>;
  for (const int experts : {8, 60, 128}) {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      CAPTURE(experts);
      CAPTURE(seed);
      TileInputs inputs(seed, experts, Selection::k, seed > 1);
      if (!replays) inputs.replayed = {0, 0, 0};
      Step serial(scoring, selection, balancer, inputs);
      serial.run(mb::SerialTile{});
      const auto fresh = [&] { return Step(scoring, selection, balancer, inputs); };
      CHECK(outputs_on_fibers<1>(fresh(), seed) == serial.out);
      CHECK(outputs_on_fibers<2>(fresh(), seed) == serial.out);
      CHECK(outputs_on_fibers<4>(fresh(), seed) == serial.out);
      CHECK(outputs_on_fibers<8>(fresh(), seed) == serial.out);
      CHECK(outputs_on_fibers<16>(fresh(), seed) == serial.out);
      CHECK(outputs_on_fibers<32>(fresh(), seed) == serial.out);
      CHECK(outputs_on_fibers_with_memory<32>(fresh(), seed) == serial.out);
    }
  }
}

}  // namespace testing
