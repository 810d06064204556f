// What every Sync on the CPU must give: identities between many ranks, each with a part of the tokens, and one that holds them all.
// The bodies take this rank's Sync and one of the same kind that is alone; thread_sync_test.cpp runs them on threads, mpi/ on processes.
#pragma once

#include "oracle.hpp"
#include "random.hpp"

#include <moe_balance/moe_balance.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace testing {

namespace mb = moe_balance;
using Counts = std::vector<std::int64_t>;

inline constexpr int rank_experts = 12;
inline constexpr int rank_k = 2;

/// Tokens of each micro-batch and rank. The whole batch has micro-batch by micro-batch, and in each rank by rank.
struct Split {
  std::vector<std::vector<int>> tokens;  ///< [micro-batches][ranks]
  [[nodiscard]] int micro_batches() const { return static_cast<int>(tokens.size()); }
  [[nodiscard]] int of(int micro_batch, int rank) const {
    return tokens[static_cast<std::size_t>(micro_batch)][static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] int of_all(int micro_batch) const {
    const std::vector<int>& row = tokens[static_cast<std::size_t>(micro_batch)];
    return std::accumulate(row.begin(), row.end(), 0);
  }
  [[nodiscard]] int total() const {
    int sum = 0;
    for (int m = 0; m < micro_batches(); ++m) sum += of_all(m);
    return sum;
  }
  /// The first token of a rank's part in the whole batch.
  [[nodiscard]] int first(int micro_batch, int rank) const {
    int sum = 0;
    for (int m = 0; m < micro_batch; ++m) sum += of_all(m);
    for (int r = 0; r < rank; ++r) sum += of(micro_batch, r);
    return sum;
  }
};

inline Split equal_split(int tokens, int ranks, int micro_batches) {
  const std::vector<int> row(static_cast<std::size_t>(ranks), tokens / ranks / micro_batches);
  return {std::vector<std::vector<int>>(static_cast<std::size_t>(micro_batches), row)};
}

/// Every rank with a number of tokens of its own, the last rank of every other micro-batch with none.
inline Split ragged_split(std::uint64_t seed, int ranks, int micro_batches) {
  Random random(seed);
  Split split = equal_split(0, ranks, micro_batches);
  for (std::size_t m = 0; m < split.tokens.size(); ++m) {
    for (int& tokens : split.tokens[m]) tokens = random.integer(0, 17);
    if (ranks > 1 && m % 2 == 0) split.tokens[m].back() = 0;
  }
  return split;
}

inline std::vector<Split> splits_for(int ranks) {
  return {equal_split(64, ranks, 1), equal_split(64, ranks, 2), ragged_split(1, ranks, 1), ragged_split(2, ranks, 3),
          ragged_split(3, ranks, 5)};
}

/// How often the oracle chooses each expert, among tokens [first, first + count) of a batch.
inline Counts oracle_counts(const std::vector<float>& logits, int first, int count, const std::vector<double>& bias,
                            const oracle::Scoring& scoring) {
  oracle::Problem problem;
  problem.tokens = count;
  problem.experts = rank_experts;
  problem.k = rank_k;
  problem.logits.assign(logits.begin() + first * rank_experts, logits.begin() + (first + count) * rank_experts);
  problem.bias = bias;
  problem.scoring = scoring;
  Counts counts(rank_experts, 0);
  for (const int expert : oracle::choose(problem)) ++counts[static_cast<std::size_t>(expert)];
  return counts;
}

/// One forward of tokens [first, first + tokens) of a batch and what came out of it.
template <class Router, class Place = mb::Host>
class RankCall {
 public:
  RankCall(const Router& router, const std::vector<float>& logits, int first, int tokens, Place place = {})
      : router_(router),
        place_(place),
        logits_(logits.begin() + first * rank_experts, logits.begin() + (first + tokens) * rank_experts),
        tokens_(tokens),
        experts_(static_cast<std::size_t>(tokens * rank_k)),
        weights_(static_cast<std::size_t>(tokens * rank_k)),
        grad_logits_(static_cast<std::size_t>(tokens * rank_experts)),
        saved_(router.saved_bytes({tokens, rank_experts}) / sizeof(std::int64_t)) {}

  std::vector<std::uint8_t> active;  ///< [T], or empty: all are

  void forward(mb::BiasRef bias, mb::LoadRef load, bool accumulate = true) {
    router_.forward({.logits = matrix(logits_.data(), rank_experts),
                     .experts = {experts_.data(), tokens_, rank_k},
                     .weights = matrix(weights_.data(), rank_k),
                     .bias = bias,
                     .load = load,
                     .saved = saved(),
                     .active = active.empty() ? nullptr : active.data(),
                     .accumulate = accumulate},
                    {}, place_);
  }
  /// Its value, there when the call has run.
  const float& loss() {
    router_.loss({.saved = saved(), .experts = rank_experts, .value = &loss_}, {}, place_);
    return loss_;
  }
  const std::vector<float>& backward(float loss_scale) {
    router_.backward({.logits = matrix(logits_.data(), rank_experts),
                      .experts = {experts_.data(), tokens_, rank_k},
                      .grad_logits = matrix(grad_logits_.data(), rank_experts),
                      .saved = saved(),
                      .active = active.empty() ? nullptr : active.data(),
                      .loss_scale = loss_scale},
                     {}, place_);
    return grad_logits_;
  }
  [[nodiscard]] float last_loss() const { return loss_; }
  [[nodiscard]] const std::vector<float>& last_gradient() const { return grad_logits_; }
  [[nodiscard]] Counts global_counts() const { return copy_of(view().global_counts); }
  /// Active tokens and fixed-point probability sums: what, besides F, the loss is made of.
  [[nodiscard]] Counts tokens_and_probabilities() const {
    Counts sums = copy_of(view().probabilities);
    sums.push_back(*view().tokens);
    return sums;
  }

 private:
  mb::MatrixView<float> matrix(float* data, int columns) const { return {data, tokens_, columns}; }
  mb::SavedRef saved() { return {saved_.data(), saved_.size() * sizeof(std::int64_t)}; }
  [[nodiscard]] mb::SavedView view() const {
    using Balancer = decltype(router_.balancer);
    return mb::SavedLayout<std::remove_cvref_t<Balancer>>{rank_experts, 1}.view(const_cast<std::int64_t*>(saved_.data()));
  }
  static Counts copy_of(const std::int64_t* data) { return Counts(data, data + rank_experts); }

  Router router_;
  Place place_;
  float loss_ = -1;
  std::vector<float> logits_;
  int tokens_;
  std::vector<std::int32_t> experts_;
  std::vector<float> weights_, grad_logits_;
  Counts saved_;
};

/// The sum of `counts` over ranks.
template <class Sync>
Counts sum_of(const Sync& sync, Counts counts) {
  sync.start(counts.data(), static_cast<std::int64_t>(counts.size()), mb::Host{});
  sync.finish(counts.data(), mb::Host{});
  return counts;
}

/// Everyone's value.
template <class Sync>
std::vector<float> gathered(const Sync& sync, float value) {
  Counts bits(static_cast<std::size_t>(sync.ranks()), 0);
  bits[static_cast<std::size_t>(sync.rank())] = std::bit_cast<std::uint32_t>(value);
  std::vector<float> values;
  for (const std::int64_t word : sum_of(sync, bits))
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(word)));
  return values;
}

/// All tokens in one call.
template <class Router>
void forward_as(const Router& whole, const std::vector<float>& logits, const mb::BiasRef& bias, const mb::LoadRef& load) {
  RankCall(whole, logits, 0, static_cast<int>(logits.size()) / rank_experts).forward(bias, load);
}
/// The tokens of the router's rank, micro-batch by micro-batch.
template <class Router>
void forward_as(const Router& router, const Split& split, const std::vector<float>& logits, const mb::BiasRef& bias,
                const mb::LoadRef& load) {
  const int rank = router.sync.rank();
  for (int m = 0; m < split.micro_batches(); ++m)
    RankCall(router, logits, split.first(m, rank), split.of(m, rank)).forward(bias, load);
}

template <class Sync>
void check_biases(const Sync& sync, const Sync& alone, const Split& split) {
  constexpr int layers = 3;
  constexpr float rate = 0.0078125f;
  const mb::LossFreeBias balancer{.update_rate = rate};
  const mb::Router router{mb::Sigmoid{}, mb::TopK<rank_k>{}, balancer, sync};
  const mb::Router whole{mb::Sigmoid{}, mb::TopK<rank_k>{}, balancer, alone};
  const mb::Bias bias(rank_experts, layers), whole_bias(rank_experts, layers);
  const mb::Load load(rank_experts, layers), whole_load(rank_experts, layers);
  std::vector<std::vector<double>> want(layers, std::vector<double>(rank_experts, 0.0));
  for (int step = 0; step < 50; ++step) {
    for (int layer = 0; layer < layers; ++layer) {
      const std::vector<float> logits = Random(static_cast<std::uint64_t>(100 * step + layer + 7))
                                            .normals(static_cast<std::size_t>(split.total() * rank_experts));
      forward_as(whole, logits, whole_bias.ref().layer(layer), whole_load.ref().layer(layer));
      forward_as(router, split, logits, bias.ref().layer(layer), load.ref().layer(layer));
      std::vector<double>& next = want[static_cast<std::size_t>(layer)];
      next = oracle::next_bias(next, oracle_counts(logits, 0, split.total(), next, oracle::sigmoid()), rate,
                               oracle::Centring::none);
    }
    const Counts own(load.data(), load.data() + rank_experts * layers);
    CHECK(sum_of(sync, own) == Counts(whole_load.data(), whole_load.data() + rank_experts * layers));
    whole.update(whole_bias.ref(), whole_load.ref(), {}, mb::Host{});
    router.start_update(load.ref(), {}, mb::Host{});
    router.finish_update(bias.ref(), load.ref(), {}, mb::Host{});
  }
  for (int layer = 0; layer < layers; ++layer) {
    for (int e = 0; e < rank_experts; ++e) {
      const float got = bias.data()[layer * rank_experts + e];
      CHECK(std::bit_cast<std::uint32_t>(got) == std::bit_cast<std::uint32_t>(whole_bias.data()[layer * rank_experts + e]));
      CHECK(static_cast<double>(got) == want[static_cast<std::size_t>(layer)][static_cast<std::size_t>(e)]);
    }
  }
}

/// Histograms of margins add up over ranks and micro-batches: the biases are those of a rank that has all tokens.
template <class Sync>
void check_quantiles(const Sync& sync, const Sync& alone, const Split& split) {
  constexpr int layers = 2, bins = 50;
  const mb::QuantileBias balancer{.momentum = 0.5f, .bins = bins};
  const mb::Router router{mb::Sigmoid{}, mb::TopK<rank_k>{}, balancer, sync};
  const mb::Router whole{mb::Sigmoid{}, mb::TopK<rank_k>{}, balancer, alone};
  const mb::Bias bias(router, rank_experts, layers), whole_bias(whole, rank_experts, layers);
  const mb::Load load(router, rank_experts, layers), whole_load(whole, rank_experts, layers);
  constexpr std::size_t cells = rank_experts * layers * (1 + bins);
  for (int step = 0; step < 5; ++step) {
    for (int layer = 0; layer < layers; ++layer) {
      const std::vector<float> logits = Random(static_cast<std::uint64_t>(100 * step + layer + 9))
                                            .normals(static_cast<std::size_t>(split.total() * rank_experts));
      forward_as(whole, logits, whole_bias.ref().layer(layer), whole_load.ref().layer(layer));
      forward_as(router, split, logits, bias.ref().layer(layer), load.ref().layer(layer));
    }
    CHECK(sum_of(sync, Counts(load.data(), load.data() + cells)) == Counts(whole_load.data(), whole_load.data() + cells));
    whole.update(whole_bias.ref(), whole_load.ref(), {}, mb::Host{});
    router.update(bias.ref(), load.ref(), {}, mb::Host{});
    CHECK(Counts(load.data(), load.data() + cells) == Counts(cells, 0));
    const auto all = static_cast<std::ptrdiff_t>(rank_experts * layers);
    const std::vector<float> own(bias.data(), bias.data() + all);
    CHECK(own == std::vector<float>(whole_bias.data(), whole_bias.data() + all));
    CHECK(own != std::vector<float>(own.size(), 0.0f));
  }
}

/// All micro-batches forward, then all backward, as a pipeline runs them: many sums are under way at once.
template <class Sync>
void check_global_batch(const Sync& sync, const Sync& alone, const Split& split, bool equal) {
  const mb::GlobalBatchLoss balancer{.coefficient = 0.5f};
  const mb::Router router{mb::Softmax{}, mb::TopK<rank_k>{}, balancer, sync};
  const mb::Router whole{mb::Softmax{}, mb::TopK<rank_k>{}, balancer, alone};
  const std::vector<float> logits = Random(41).normals(static_cast<std::size_t>(split.total() * rank_experts));
  const mb::Load load(rank_experts), whole_load(rank_experts);
  std::vector<RankCall<decltype(whole)>> everything;
  std::vector<RankCall<decltype(router)>> parts;
  for (int m = 0; m < split.micro_batches(); ++m) {
    everything.emplace_back(whole, logits, split.first(m, 0), split.of_all(m)).forward({}, whole_load.ref());
    parts.emplace_back(router, logits, split.first(m, sync.rank()), split.of(m, sync.rank())).forward({}, load.ref());
  }
  for (int m = split.micro_batches() - 1; m >= 0; --m) {
    CAPTURE(m);
    auto& part = parts[static_cast<std::size_t>(m)];
    auto& all = everything[static_cast<std::size_t>(m)];
    const float ranks = static_cast<float>(sync.ranks());
    const std::vector<float> gradient = part.backward(1.0f / ranks);
    const std::vector<float> losses = gathered(sync, part.loss());
    const float whole_loss = all.loss();
    const int seen = split.first(m, 0) + split.of_all(m);
    CHECK(part.global_counts() == oracle_counts(logits, 0, seen, {}, oracle::softmax()));
    CHECK(part.global_counts() == all.global_counts());
    CHECK(sum_of(sync, part.tokens_and_probabilities()) == all.tokens_and_probabilities());
    if (!equal) continue;
    double mean = 0;
    for (const float loss : losses) mean += static_cast<double>(loss) / static_cast<double>(ranks);
    CHECK(std::abs(mean - static_cast<double>(whole_loss)) <= 1e-6 * static_cast<double>(whole_loss));
    const std::vector<float>& whole_gradient = all.backward(1.0f);  // powers of two: 1 / ranks * 1 / tokens is exact
    const auto first = static_cast<std::ptrdiff_t>((split.first(m, sync.rank()) - split.first(m, 0)) * rank_experts);
    CHECK(gradient == std::vector<float>(whole_gradient.begin() + first,
                                         whole_gradient.begin() + first + static_cast<std::ptrdiff_t>(gradient.size())));
  }
}

/// A bias and a global-batch loss share the load: the bias moves by the counts of all ranks, once.
template <class Sync>
void check_bias_beside_loss(const Sync& sync) {
  const mb::Router router{mb::Softmax{}, mb::TopK<rank_k>{},
                          mb::Combine{mb::GlobalBatchLoss{}, mb::LossFreeBias{.update_rate = 0.25f}}, sync};
  const mb::Bias bias(rank_experts);
  const mb::Load load(rank_experts);
  const Split split = ragged_split(5, sync.ranks(), 2);
  const std::vector<float> logits = Random(42).normals(static_cast<std::size_t>(split.total() * rank_experts));
  for (int m = 0; m < 2; ++m) {
    RankCall part(router, logits, split.first(m, sync.rank()), split.of(m, sync.rank()));
    part.forward(bias.ref(), load.ref());
    CHECK(part.loss() >= 0);
    part.forward(bias.ref(), load.ref(), false);  // recomputed: counted once, and F is again that of all ranks
    CHECK(part.loss() >= 0);
    const std::vector<double> no_bias(rank_experts, 0.0);
    CHECK(part.global_counts() == oracle_counts(logits, 0, split.first(m, 0) + split.of_all(m), no_bias, oracle::softmax()));
  }
  const Counts counts = oracle_counts(logits, 0, split.total(), std::vector<double>(rank_experts, 0.0), oracle::softmax());
  CHECK(sum_of(sync, Counts(load.data(), load.data() + rank_experts)) == counts);
  router.update(bias.ref(), load.ref(), {}, mb::Host{});
  const std::vector<double> want =
      oracle::next_bias(std::vector<double>(rank_experts, 0.0), counts, 0.25, oracle::Centring::none);
  CHECK(std::vector<double>(bias.data(), bias.data() + rank_experts) == want);
  CHECK(Counts(load.data(), load.data() + rank_experts) == Counts(rank_experts, 0));
}

/// Of this micro-batch only: F counts what all ranks have now; the load still gets it all, and is not asked for without a bias.
template <class Sync>
void check_window(const Sync& sync) {
  const mb::Router router{mb::Softmax{}, mb::TopK<rank_k>{},
                          mb::GlobalBatchLoss{.window = mb::GlobalBatchWindow::micro_batch}, sync};
  const mb::Load load(rank_experts);
  const Split split = ragged_split(6, sync.ranks(), 3);
  const std::vector<float> logits = Random(43).normals(static_cast<std::size_t>(split.total() * rank_experts));
  for (int m = 0; m < 3; ++m) {
    RankCall part(router, logits, split.first(m, sync.rank()), split.of(m, sync.rank()));
    part.forward({}, m == 0 ? mb::LoadRef{} : load.ref());
    CHECK(part.loss() >= 0);
    CHECK(part.global_counts() == oracle_counts(logits, split.first(m, 0), split.of_all(m), {}, oracle::softmax()));
  }
  const int second = split.first(1, 0);
  CHECK(sum_of(sync, Counts(load.data(), load.data() + rank_experts)) ==
        oracle_counts(logits, second, split.total() - second, {}, oracle::softmax()));
}

/// A sum every third micro-batch: the two before it sum nothing, and it sees what all ranks have counted in all three.
template <class Sync>
void check_every_third(const Sync& sync) {
  const mb::Router summing{mb::Softmax{}, mb::TopK<rank_k>{}, mb::GlobalBatchLoss{}, sync};
  const mb::Router alone{mb::Softmax{}, mb::TopK<rank_k>{}, mb::GlobalBatchLoss{}};
  const mb::Load load(rank_experts);
  const Split split = ragged_split(8, sync.ranks(), 6);
  const std::vector<float> logits = Random(46).normals(static_cast<std::size_t>(split.total() * rank_experts));
  for (int m = 0; m < 6; ++m) {
    const int first = split.first(m, sync.rank());
    if (m % 3 != 2) {
      RankCall(alone, logits, first, split.of(m, sync.rank())).forward({}, load.ref());
      continue;
    }
    RankCall part(summing, logits, first, split.of(m, sync.rank()));
    part.forward({}, load.ref());
    CHECK(part.loss() >= 0);
    CHECK(part.global_counts() == oracle_counts(logits, 0, split.first(m, 0) + split.of_all(m), {}, oracle::softmax()));
  }
}

/// Each rank's tokens like experts of their own: unbalanced rank by rank, balanced over all of them.
template <class Sync>
void check_skew(const Sync& sync) {
  constexpr int tokens = 48;
  std::vector<float> logits(static_cast<std::size_t>(tokens * rank_experts), 0.0f);
  for (int t = 0; t < tokens; ++t) {
    const int chosen = (sync.rank() * rank_experts / sync.ranks() + t % 2) % rank_experts;
    for (int k = 0; k < rank_k; ++k) logits[static_cast<std::size_t>(t * rank_experts + (chosen + k) % rank_experts)] = 2.0f;
  }
  const mb::Load load(rank_experts);
  RankCall global(mb::Router{mb::Softmax{}, mb::TopK<rank_k>{}, mb::GlobalBatchLoss{.coefficient = 1.0f}, sync}, logits, 0,
                  tokens);
  RankCall local(mb::Router{mb::Softmax{}, mb::TopK<rank_k>{}, mb::AuxLoss{.coefficient = 1.0f}, sync}, logits, 0, tokens);
  global.forward({}, load.ref());
  local.forward({}, {});
  if (sync.ranks() == 1) {
    CHECK(global.loss() == local.loss());
  } else {
    CHECK(local.loss() > 1.3f * global.loss());
  }
}

/// Memory of a forward that nobody read, taken by the next.
template <class Sync>
void check_reuse(const Sync& sync) {
  const mb::Router router{mb::Softmax{}, mb::TopK<rank_k>{}, mb::GlobalBatchLoss{}, sync};
  const mb::Load load(rank_experts);
  const std::vector<float> logits = Random(44).normals(static_cast<std::size_t>(sync.ranks() * 20 * rank_experts));
  RankCall part(router, logits, sync.rank() * 20, 20);
  for (int i = 0; i < 5; ++i) part.forward({}, load.ref());
  CHECK(part.loss() >= 0);
  CHECK(part.loss() == part.loss());
  Counts want = oracle_counts(logits, 0, sync.ranks() * 20, {}, oracle::softmax());
  for (std::int64_t& count : want) count *= 5;
  CHECK(part.global_counts() == want);

  Counts counts{1, 2};
  sync.start(counts.data(), 2, mb::Host{});
  CHECK(sync.is_started(counts.data()));
  counts = {5, 6};
  sync.start(counts.data(), 2, mb::Host{});
  sync.finish(counts.data(), mb::Host{});
  CHECK(counts == Counts{5 * sync.ranks(), 6 * sync.ranks()});
  CHECK(!sync.is_started(counts.data()));
  sync.finish(counts.data(), mb::Host{});
  CHECK(counts == Counts{5 * sync.ranks(), 6 * sync.ranks()});
}

/// Layers with different numbers of experts in one block, one sum.
template <class Sync>
void check_different_layers(const Sync& sync) {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<1>{}, mb::LossFreeBias{.update_rate = 0.5f}, sync};
  const std::int32_t experts[] = {4, 2, 3};
  Counts load{sync.rank() + 1, 0, 0, 0, /**/ 1, 1, 77, 77, /**/ 0, 5, 0, 77};
  std::vector<float> bias(12, 0.0f);
  bias[6] = bias[7] = bias[11] = 9.0f;
  mb::LoadRef block{load.data(), 4, 3};
  block.experts_of_layer = experts;
  router.update(mb::BiasRef{bias.data(), 4, 3}, block, {}, mb::Host{});
  CHECK(bias == std::vector<float>{-0.5f, 0.5f, 0.5f, 0.5f, 0, 0, 9, 9, 0.5f, -0.5f, 0.5f, 9});
  CHECK(load == Counts(12, 0));
}

/// Padding differs from rank to rank, one has nothing else, and F is that of the tokens that are none.
template <class Sync>
void check_padding(const Sync& sync) {
  const mb::Router router{mb::Softmax{}, mb::TopK<rank_k>{}, mb::GlobalBatchLoss{.coefficient = 1.0f}, sync};
  const int tokens = 9 * sync.ranks();
  const std::vector<float> logits = Random(45).normals(static_cast<std::size_t>(tokens * rank_experts));
  Counts want(rank_experts, 0);
  for (int t = 0; t < tokens; ++t) {
    const int rank = t / 9;
    const bool is_active = rank == 0 ? sync.ranks() == 1 : t % 9 < rank;
    const Counts counts = oracle_counts(logits, t, is_active ? 1 : 0, {}, oracle::softmax());
    for (std::size_t e = 0; e < rank_experts; ++e) want[e] += counts[e];
  }
  const mb::Load load(rank_experts);
  RankCall part(router, logits, 9 * sync.rank(), 9);
  for (int t = 0; t < 9; ++t) {
    part.active.push_back(sync.rank() == 0 ? sync.ranks() == 1 : t < sync.rank());
  }
  part.forward({}, load.ref());
  CHECK(part.loss() >= 0);
  CHECK(part.global_counts() == want);
  const std::vector<float>& gradient = part.backward(1.0f);
  for (std::size_t i = 0; i < gradient.size(); ++i) CHECK((part.active[i / rank_experts] == 1 || gradient[i] == 0.0f));
}

/// Many sums under way, finished in another order.
template <class Sync>
void check_order(const Sync& sync) {
  std::vector<Counts> sums;
  for (int i = 0; i < 40; ++i) sums.push_back(Counts(static_cast<std::size_t>(i), sync.rank() + i));
  for (Counts& sum : sums) sync.start(sum.data(), static_cast<std::int64_t>(sum.size()), mb::Host{});
  const int of_ranks = sync.ranks() * (sync.ranks() - 1) / 2;
  for (int i = 39; i >= 0; --i) {
    Counts& sum = sums[static_cast<std::size_t>((i * 7 + sync.rank()) % 40)];
    sync.finish(sum.data(), mb::Host{});
    CHECK(sum == Counts(sum.size(), of_ranks + sync.ranks() * static_cast<std::int64_t>(sum.size())));
  }
}

template <class Sync>
void check_all_identities(const Sync& sync, const Sync& alone) {
  const std::vector<Split> splits = splits_for(sync.ranks());
  for (std::size_t i = 0; i < splits.size(); ++i) {
    CAPTURE(i);
    check_global_batch(sync, alone, splits[i], i < 2);
  }
  check_biases(sync, alone, splits[1]);
  check_biases(sync, alone, splits[3]);
  check_quantiles(sync, alone, splits[1]);
  check_quantiles(sync, alone, splits[3]);
  check_bias_beside_loss(sync);
  check_window(sync);
  check_every_third(sync);
  check_skew(sync);
  check_reuse(sync);
  check_different_layers(sync);
  check_padding(sync);
  check_order(sync);
}

}  // namespace testing
