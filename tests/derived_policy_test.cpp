// Classes that are derived from the library's policies and do otherwise, and a user's scoring that is a softmax of something else than the logits: whatever the
// number of tokens, nothing that holds for the library's own class is taken to hold for them.
#include "engine_host.hpp"
#include "make_inputs.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

namespace mb = moe_balance;

template <class Top>
struct EvenOnly : Top {
  template <class Real, class TileT, class LayoutT, class Keys>
  MOEB_INLINE void narrow(const TileT& /*tile*/, const LayoutT& layout, Keys& keys) const {
    mb::for_each_slot(
        layout, [&](int slot) MOEB_LAMBDA { keys[slot] = slot % 2 != 0 ? mb::excluded_key<mb::Key<Real>> : keys[slot]; });
  }
};

/// Between -1/2 and 1/2.
struct Centred : mb::Sigmoid {
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real operator()(Real logit) const {
    return mb::sub(mb::sigmoid(logit), Real(0.5));
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real derivative(Real /*logit*/, Real score) const {
    return mb::sub(Real(0.25), mb::mul(score, score));
  }
};

/// softmax(x / 2), by the library's softmax_row.
struct Tempered {
  static constexpr bool normalised = true;
  template <class Real>
  using Row = mb::SoftmaxRow<Real>;

  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE mb::SoftmaxRow<Real> prepare(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                                           mb::Slots<Real, LayoutT>& scores) const {
    mb::Slots<Real, LayoutT> halves;
    mb::for_each_slot(layout, [&](int slot) MOEB_LAMBDA { halves[slot] = mb::mul(logits[slot], Real(0.5)); });
    const mb::SoftmaxRow<Real> row = mb::softmax_row(tile, layout, halves, scores);
    mb::for_each_slot(layout, [&](int slot) MOEB_LAMBDA { scores[slot] = mb::mul(scores[slot], row.inverse_sum); });
    return row;
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real score(Real logit, const mb::SoftmaxRow<Real>& row) const {
    return row.probability(mb::mul(logit, Real(0.5)));
  }
  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE void backward(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                            const mb::Slots<Real, LayoutT>& scores, mb::Slots<Real, LayoutT>& grad,
                            const mb::SoftmaxRow<Real>& row) const {
    mb::Softmax{}.backward(tile, layout, logits, scores, grad, row);
    mb::for_each_slot(layout, [&](int slot) MOEB_LAMBDA { grad[slot] = mb::mul(grad[slot], Real(0.5)); });
  }
};

/// The same as a class derived from Softmax.
struct DerivedTempered : mb::Softmax {
  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE mb::SoftmaxRow<Real> prepare(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                                           mb::Slots<Real, LayoutT>& scores) const {
    return Tempered{}.prepare(tile, layout, logits, scores);
  }
  template <class Real>
  [[nodiscard]] MOEB_INLINE Real score(Real logit, const mb::SoftmaxRow<Real>& row) const {
    return Tempered{}.score(logit, row);
  }
  template <class TileT, class LayoutT, class Real>
  MOEB_INLINE void backward(const TileT& tile, const LayoutT& layout, const mb::Slots<Real, LayoutT>& logits,
                            const mb::Slots<Real, LayoutT>& scores, mb::Slots<Real, LayoutT>& grad,
                            const mb::SoftmaxRow<Real>& row) const {
    Tempered{}.backward(tile, layout, logits, scores, grad, row);
  }
};

/// Twice the loss of ZLoss{1}, and a slope that is not its derivative.
struct TwiceZLoss : mb::ZLoss {
  [[nodiscard]] MOEB_HOST_DEVICE float token_loss(float log_sum_exp) const { return 2.0f * log_sum_exp * log_sum_exp; }
  [[nodiscard]] MOEB_HOST_DEVICE float token_slope(float /*log_sum_exp*/) const { return 3.0f; }
};

constexpr std::int64_t token_counts[] = {1, 4, 15, 16, 33};

template <class Router>
void check_even(const Router& router) {
  for (const std::int64_t tokens : token_counts) {
    for (const int experts : {8, 64, 100}) {
      CAPTURE(tokens);
      CAPTURE(experts);
      testing::Inputs inputs = testing::normal_inputs(3, tokens, experts, Router::k);
      inputs.backward = false;
      if constexpr (mb::is_replaying<decltype(Router::top_k)>) {
        inputs.replay_experts.assign(static_cast<std::size_t>(tokens * Router::k), 1);
        inputs.replay_tokens.assign(static_cast<std::size_t>(tokens), 0);
      }
      const testing::Outcome outcome = testing::train(testing::HostEngine{}, router, inputs);
      for (const std::int32_t expert : outcome.experts) CHECK(expert % 2 == 0);
    }
  }
}

double log_sum_exp_of(const testing::Inputs& inputs, std::int64_t token) {
  double sum = 0;
  for (int e = 0; e < inputs.experts; ++e)
    sum += std::exp(inputs.logits[static_cast<std::size_t>(token * inputs.experts + e)]);
  return std::log(sum);
}

/// The token losses' value and gradient, where nothing else has one.
template <class Scoring, class Balancer, class Loss, class Slope>
void check_token_loss(const Scoring& scoring, const Balancer& balancer, const Loss& loss, const Slope& slope) {
  for (const std::int64_t tokens : token_counts) {
    for (const int experts : {5, 64, 70}) {
      CAPTURE(tokens);
      CAPTURE(experts);
      testing::Inputs inputs = testing::normal_inputs(5, tokens, experts, 2);
      std::fill(inputs.grad_weights.begin(), inputs.grad_weights.end(), 0.0);
      const testing::Outcome outcome =
          testing::train(testing::HostEngine{}, mb::Router{scoring, mb::TopK<2>{}, balancer}, inputs);
      double mean = 0;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const double z = log_sum_exp_of(inputs, t);
        mean += loss(z) / static_cast<double>(tokens);
        for (int e = 0; e < experts; ++e) {
          const auto at = static_cast<std::size_t>(t * experts + e);
          const double want = slope(z) * std::exp(inputs.logits[at] - z) / static_cast<double>(tokens);
          CHECK(outcome.grad_logits[at] == doctest::Approx(want).epsilon(1e-5).scale(0));
        }
      }
      CHECK(static_cast<double>(outcome.loss) == doctest::Approx(mean).epsilon(1e-6).scale(0));
    }
  }
}

}  // namespace

TEST_CASE("a narrow of its own in a class derived from TopK, whatever wraps it") {
  using Even = EvenOnly<mb::TopK<2>>;
  check_even(mb::Router{mb::Softmax{}, Even{}});
  check_even(mb::Router{mb::Sigmoid{}, Even{}, mb::AuxLoss{}});
  check_even(mb::Router{mb::SoftmaxOverSelected{}, Even{}});
  check_even(mb::Router{mb::Sigmoid{}, mb::Replay<Even>{}});
  check_even(mb::Router{mb::Sigmoid{}, EvenOnly<mb::Replay<mb::TopK<2>>>{}});
  check_even(mb::Router{mb::Sigmoid{}, EvenOnly<mb::TopP<2>>{{.p = 2.0f}}});  // which keeps all, as the next does
  check_even(mb::Router{mb::Sigmoid{}, EvenOnly<mb::Threshold<2>>{}});
}

TEST_CASE("scores below 0 in a class derived from Sigmoid") {
  for (const std::int64_t tokens : token_counts) {
    for (const int experts : {5, 64, 70}) {
      CAPTURE(tokens);
      CAPTURE(experts);
      testing::Inputs inputs = testing::normal_inputs(7, tokens, experts, 2);
      for (double& logit : inputs.logits) logit = std::min(logit - 3, -0.5);
      inputs.backward = false;
      const testing::Outcome outcome =
          testing::train(testing::HostEngine{}, mb::Router{Centred{}, mb::TopK<2>{.renormalise = false}}, inputs);
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::vector<int> order;
        for (int e = 0; e < experts; ++e) order.push_back(e);
        const auto logit = [&](int e) {
          return static_cast<float>(inputs.logits[static_cast<std::size_t>(t * experts + e)]);
        };
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logit(a) > logit(b); });
        for (int k = 0; k < 2; ++k) {
          const auto slot = static_cast<std::size_t>(2 * t + k);
          const double score = 1 / (1 + std::exp(-static_cast<double>(logit(order[static_cast<std::size_t>(k)])))) - 0.5;
          CHECK(outcome.weights[slot] == doctest::Approx(score).epsilon(1e-5).scale(0));
        }
      }
    }
  }
}

TEST_CASE("ZLoss beside a softmax that is not the logits'") {
  const auto loss = [](double z) { return z * z; };
  const auto slope = [](double z) { return 2 * z; };
  check_token_loss(Tempered{}, mb::ZLoss{.coefficient = 1}, loss, slope);
  check_token_loss(DerivedTempered{}, mb::ZLoss{.coefficient = 1}, loss, slope);
  check_token_loss(mb::Softmax{}, mb::ZLoss{.coefficient = 1}, loss, slope);
}

TEST_CASE("a token loss of its own in a class derived from ZLoss") {
  check_token_loss(
      mb::Softmax{}, TwiceZLoss{}, [](double z) { return 2 * z * z; }, [](double /*z*/) { return 3.0; });
}

TEST_CASE("token losses do not wrap around") {
  testing::Inputs inputs;
  inputs.tokens = 1 << 17;
  inputs.experts = 2;
  inputs.logits.assign(static_cast<std::size_t>(2 * inputs.tokens), 50.0);
  inputs.backward = false;
  const double z = 50 + std::log(2.0);
  const mb::Router router{mb::Softmax{}, mb::TopK<1>{}, mb::ZLoss{.coefficient = 1}};
  CHECK(static_cast<double>(testing::train(testing::HostEngine{}, router, inputs).loss) ==
        doctest::Approx(z * z).epsilon(1e-6));
  inputs.logits.assign(inputs.logits.size(), 300.0);  // a token's value counts as 2^30 / T
  CHECK(testing::train(testing::HostEngine{}, router, inputs).loss == doctest::Approx(8192.0).epsilon(1e-6));
}
