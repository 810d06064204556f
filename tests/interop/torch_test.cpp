// The operators through libtorch, as a C++ program has them: plain functions of at::Tensor, and with autograd through the dispatcher.
#include <doctest/doctest.h>
#include <torch/torch.h>
#include <moe_balance/interop/torch.hpp>

#include "../count_threads.hpp"
#include "torch_routers.hpp"

#include <string>
#include <tuple>
#include <vector>

namespace mb = moe_balance;

namespace {

// An object that changes while the program runs, as a schedule of coefficients would.
mb::Router scaled{mb::Softmax{}, mb::TopK<2>{.renormalise = true}};
using Scaled = mb::pytorch::Ops<scaled>;
mb::Router quantile{mb::Sigmoid{}, mb::TopK<2>{}, mb::QuantileBias{.momentum = 0.0f, .spacing = mb::MarginBins::even}};
using Quantile = mb::pytorch::Ops<quantile>;

using ForwardSchema = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
    const at::Tensor&, const c10::optional<at::Tensor>&, const c10::optional<at::Tensor>&, bool,
    const c10::optional<at::Tensor>&, std::int64_t, const c10::optional<at::Tensor>&, const c10::optional<at::Tensor>&,
    const c10::optional<at::Tensor>&, const c10::optional<at::Tensor>&, bool);

at::Tensor logits_far_from_ties() {
  torch::manual_seed(3);
  std::vector<at::Tensor> rows;
  for (int t = 0; t < 10; ++t) rows.push_back(torch::linspace(-2, 2, 8).index_select(0, torch::randperm(8)));
  return torch::stack(rows).to(torch::kDouble);
}

}  // namespace

TEST_CASE("without autograd the operators are functions of tensors, and read the router as it is") {
  const at::Tensor x = logits_far_from_ties();
  const auto [values, indices] = torch::softmax(x, 1).topk(2, 1);
  for (const float factor : {1.0f, 2.5f}) {
    scaled.top_k.scaling_factor = factor;
    const auto [ids, weights, counts] = Scaled::route(x, {}, {});
    CHECK(torch::equal(ids.to(torch::kLong), indices));
    CHECK(torch::allclose(weights, double{factor} * values / values.sum(1, true), 1e-12));
    CHECK(torch::equal(counts, torch::bincount(indices.flatten(), {}, 8)));
  }
}

TEST_CASE("through the dispatcher weights and loss have the gradients of the formulas") {
  const at::Tensor x = logits_far_from_ties().requires_grad_();
  const at::Tensor y = x.detach().clone().requires_grad_();
  const at::Tensor bias = torch::linspace(0.0, 0.01, 8);
  const auto forward =
      c10::Dispatcher::singleton().findSchemaOrThrow("moeb_test::balanced_forward", "").typed<ForwardSchema>();
  const auto [ids, weights, counts, loss, saved] = forward.call(x, bias, {}, true, {}, 1, {}, {}, {}, {}, false);
  (weights.select(1, 0).sum() + 3 * loss).backward();

  const at::Tensor scores = torch::softmax(y, 1);
  const at::Tensor chosen = std::get<1>((scores + bias).topk(2, 1));
  const at::Tensor picked = scores.gather(1, chosen);
  const at::Tensor share = torch::bincount(chosen.flatten(), {}, 8) / 20.0;
  const at::Tensor balance = 8 * (share * scores.mean(0)).sum() + 0.5 * torch::logsumexp(y, 1).square().mean();
  ((picked / picked.sum(1, true)).select(1, 0).sum() + 3 * balance).backward();

  CHECK(torch::equal(ids.to(torch::kLong), chosen));
  CHECK(torch::allclose(loss.to(torch::kDouble), balance, 1e-6));
  CHECK(torch::allclose(x.grad(), y.grad(), 1e-6, 2e-8));
}

TEST_CASE(
    "counts of a rule that reads margins have as many bins behind them as the router has when it is called, and move the "
    "bias where they say") {
  const at::Tensor x = logits_far_from_ties();
  const at::Tensor margins = torch::sigmoid(x) - std::get<0>(torch::sigmoid(x).topk(3, 1)).select(1, 2).unsqueeze(1);
  // Of 10 tokens, each with 2 of 8 experts, two margins are larger than the one that the bias undoes.
  const at::Tensor quantiles = std::get<0>(margins.topk(3, 0)).select(0, 2);
  for (const int bins : {1, 20, 4000}) {
    quantile.balancer.bins = bins;
    const at::Tensor bias = torch::zeros({8});
    const auto [ids, weights, counts, loss, saved] = Quantile::forward(x, bias, {}, true, {}, 1);
    CHECK(counts.sizes() == at::IntArrayRef({(1 + bins) * 8}));
    CHECK(counts.slice(0, 8).view({8, bins}).sum(1).eq(10).all().item<bool>());
    Quantile::update(bias, counts);
    CHECK(torch::allclose(bias.to(torch::kDouble), quantiles.mean() - quantiles, 0, 4.0 / bins));
    CHECK_FALSE(counts.any().item<bool>());
  }
}

#ifdef INTRA_OP_PARALLEL
TEST_CASE("parts of a call run on PyTorch's own threads, which it has already") {
  const int threads_before = at::get_num_threads();
  at::set_num_threads(2);
  const mb::Host host = mb::pytorch::host();
  REQUIRE(host.threads == 2);
  std::vector<pthread_t> thread_of(2);
  const auto note_thread = [](const void* threads, int part) {
    (*static_cast<std::vector<pthread_t>* const*>(threads))->at(static_cast<std::size_t>(part)) = pthread_self();
  };
  std::vector<pthread_t>* const threads = &thread_of;
  host.executor.run(host.executor.context, 2, note_thread, &threads);
  CHECK(pthread_equal(thread_of[0], thread_of[1]) == 0);

  const at::Tensor x = torch::randn({60000, 8});  // enough for two threads (tuning.hpp)
  testing::threads_started = 0;
  const auto [ids, weights, counts] = Scaled::route(x, {}, {});
  CHECK(testing::threads_started == 0);
  at::set_num_threads(1);
  const auto [ids_alone, weights_alone, counts_alone] = Scaled::route(x, {}, {});
  CHECK(torch::equal(ids, ids_alone));
  CHECK(torch::equal(weights, weights_alone));
  CHECK(torch::equal(counts, counts_alone));

  std::vector<std::int64_t> by_own_threads(8);
  scaled.route({.logits = mb::MatrixView<const float>(x.data_ptr<float>(), 60000, 8),
                .experts = mb::MatrixView(ids.data_ptr<std::int32_t>(), 60000, 2),
                .weights = mb::MatrixView(weights.data_ptr<float>(), 60000, 2),
                .counts = by_own_threads.data()},
               {}, mb::Host{.threads = 2});
  CHECK(testing::threads_started == 1);  // so the check above can fail
  at::set_num_threads(threads_before);
}
#endif

TEST_CASE("errors are InvalidArgument and leave state alone") {
  const at::Tensor bias = torch::ones({8});
  const at::Tensor load = torch::ones({2, 8}, torch::kLong);
  using Balanced = mb::pytorch::Ops<routers::balanced>;
  CHECK_THROWS_WITH_AS(Balanced::update(bias, load),
                       "moe_balance: update: bias.layers is 1; allowed: 2 (the layers of load)", mb::InvalidArgument);
  CHECK(torch::equal(bias, torch::ones({8})));
  CHECK(torch::equal(load, torch::ones({2, 8}, torch::kLong)));
  for (const int bins : {-5, 0, 65537}) {
    quantile.balancer.bins = bins;
    const std::string is = ": QuantileBias.bins is " + std::to_string(bins) + "; allowed: 1 to 65536";
    CHECK_THROWS_WITH_AS(Quantile::forward(torch::zeros({3, 8}), bias, {}, true, {}, 1),
                         ("moe_balance: forward" + is).c_str(), mb::InvalidArgument);
    CHECK_THROWS_WITH_AS(Quantile::update(bias, load), ("moe_balance: update" + is).c_str(), mb::InvalidArgument);
    CHECK_THROWS_WITH_AS(Quantile::sizes(8, 1), ("moe_balance: sizes" + is).c_str(), mb::InvalidArgument);
  }
  CHECK_THROWS_WITH_AS(Scaled::route(torch::zeros({3, 8}).to_sparse(), {}, {}), doctest::Contains("allowed: strided"),
                       c10::Error);
}
