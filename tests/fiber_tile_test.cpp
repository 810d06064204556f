// The per-token algorithm on tiles of 1, 2, 4, 8, 16 and 32 lanes gives the bits of the one-lane tile, forward and backward, for every scoring,
// selection and kind of loss.
#include "tile/fiber_tile.hpp"

#include <moe_balance/moe_balance.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace testing {

namespace mb = moe_balance;

namespace {

constexpr int capacity = 128;

/// Sums of one token, as plain arrays.
struct ArraySink {
  std::vector<std::int64_t>* counts;
  std::vector<std::int64_t>* probabilities;
  std::vector<std::int64_t>* tokens;
  int base = 0;
  int width = 1;

  void token() { ++(*tokens)[0]; }
  void non_finite_token() { ++(*tokens)[1]; }
  void invalid_expert() { ++(*tokens)[2]; }
  void token_loss(int index, std::int64_t fixed) { (*tokens)[static_cast<std::size_t>(3 + index)] += fixed; }
  void count(std::int32_t expert) { ++(*counts)[static_cast<std::size_t>(expert)]; }
  void probability(int slot, std::int64_t fixed) {
    const int expert = width == 1 ? slot : base + 4 * width * (slot / 4) + slot % 4;
    if (expert < static_cast<int>(probabilities->size())) (*probabilities)[static_cast<std::size_t>(expert)] += fixed;
  }
};

struct Result {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<float> grad;
  std::vector<std::int64_t> counts, probabilities, tokens;

  [[nodiscard]] bool operator==(const Result& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
    };
    return same(experts, other.experts) && same(weights, other.weights) && same(grad, other.grad) && counts == other.counts &&
           probabilities == other.probabilities && tokens == other.tokens;
  }
};

/// One token of `row` through forward and backward; `run(f)` calls f(tile, layout) on every lane.
template <class Scoring, class Selection, class Balancer, class Run>
Result route(const Scoring& scoring, const Selection& selection, const Balancer& balancer, const std::vector<float>& row,
             const Run& run) {
  constexpr int k = Selection::k;
  const int experts = static_cast<int>(row.size());
  Result out;
  out.experts.assign(k, 77);
  out.weights.assign(k, 7.0f);
  out.grad.assign(row.size(), 7.0f);
  out.counts.assign(row.size(), 0);
  out.probabilities.assign(row.size(), 0);
  out.tokens.assign(8, 0);
  float bias[capacity] = {};
  float slope[capacity] = {};
  for (int e = 0; e < experts; ++e) {
    bias[e] = 0.01f * static_cast<float>(e % 7);
    slope[e] = 0.1f * static_cast<float>(e % 5) - 0.2f;
  }
  std::vector<float> grad_weights(k);
  for (int i = 0; i < k; ++i) grad_weights[static_cast<std::size_t>(i)] = 0.5f * static_cast<float>(i) - 1.0f;
  const mb::MatrixView<const float> logits(row.data(), 1, experts);
  const mb::MatrixView<std::int32_t> ids(out.experts.data(), 1, k);

  const mb::ForwardProblem<Scoring, Selection, Balancer> forward{scoring, selection, balancer, logits, ids,
                                                                 mb::MatrixView<float>(out.weights.data(), 1, k), bias, nullptr,
                                                                 nullptr, {}, mb::Segments({}, 1), false};
  run([&](const auto& tile, const auto& layout) {
    ArraySink sink{&out.counts, &out.probabilities, &out.tokens, layout.base(), tile.width};
    mb::forward_token<float>(forward, tile, layout, 0, static_cast<const float*>(bias), sink);
  });
  const mb::BackwardProblem<Scoring, Selection, Balancer> backward{
      scoring, selection, balancer, logits, ids, mb::MatrixView<const float>(grad_weights.data(), 1, k),
      mb::MatrixView<float>(out.grad.data(), 1, experts), {}, nullptr, nullptr, nullptr, 1.0f, 1, mb::Segments({}, 1), false, false};
  const mb::LossSlopes<float> slopes{slope, 0.25f};
  run([&](const auto& tile, const auto& layout) { mb::backward_token(backward, tile, layout, 0, slopes); });
  return out;
}

template <int W, class... Policies>
Result route_on_fibers(const std::vector<float>& row, std::uint64_t seed, const Policies&... policies) {
  return route(policies..., row, [&](const auto& f) {
    FiberGroup group(W, seed);
    group.run([&](int lane) {
      const FiberTile<W> tile{&group, lane};
      f(tile, mb::Layout<FiberTile<W>, capacity>{static_cast<int>(row.size()), lane});
    });
  });
}

std::vector<float> random_row(std::uint64_t seed, int experts, bool awkward) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row;
  for (int e = 0; e < experts; ++e) {
    const float ordinary = normal(random);
    const float odd[] = {0.0f, -0.0f, 1.0f, 1.0f, INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 1e-40f, -88.0f, 89.0f};
    row.push_back(awkward && random() % 3 == 0 ? odd[random() % std::size(odd)] : ordinary);
  }
  return row;
}

template <class... Policies>
void check_all_widths(const Policies&... policies) {
  for (const int experts : {8, 16, 60, 96, 128}) {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      CAPTURE(experts);
      CAPTURE(seed);
      const std::vector<float> row = random_row(seed, experts, seed > 2);
      const Result serial = route(policies..., row, [&](const auto& f) {
        f(mb::SerialTile{}, mb::Layout<mb::SerialTile, capacity>{static_cast<int>(row.size()), 0});
      });
      CHECK(route_on_fibers<1>(row, seed, policies...) == serial);
      CHECK(route_on_fibers<2>(row, seed, policies...) == serial);
      CHECK(route_on_fibers<4>(row, seed, policies...) == serial);
      CHECK(route_on_fibers<8>(row, seed, policies...) == serial);
      CHECK(route_on_fibers<16>(row, seed, policies...) == serial);
      CHECK(route_on_fibers<32>(row, seed, policies...) == serial);
    }
  }
}

using Losses = mb::Combine<mb::AuxLoss, mb::ZLoss>;

}  // namespace

TEST_CASE("tile widths agree: Softmax") {
  check_all_widths(mb::Softmax{}, mb::TopK<3>{}, mb::NoBalancer{});
  check_all_widths(mb::Softmax{}, mb::TopK<8>{.scaling_factor = 2.0f}, Losses{});
}
TEST_CASE("tile widths agree: SoftmaxOverSelected") { check_all_widths(mb::SoftmaxOverSelected{}, mb::TopK<4>{}, Losses{}); }
TEST_CASE("tile widths agree: Sigmoid in groups") {
  check_all_widths(mb::Sigmoid{}, mb::GroupLimitedTopK<2>{.groups = 4, .groups_kept = 2, .group_score_top = 2}, Losses{});
}
TEST_CASE("tile widths agree: SqrtSoftplus") { check_all_widths(mb::SqrtSoftplus{}, mb::TopK<8>{.renormalise = false}, Losses{}); }
TEST_CASE("tile widths agree: Identity") { check_all_widths(mb::Identity{}, mb::TopK<1>{}, Losses{}); }

}  // namespace testing
