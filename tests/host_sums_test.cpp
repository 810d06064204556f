// The CPU engine's sums of probabilities over more tokens than their 32-bit halves hold: what one expert gets of every token is known exactly.
#include <moe_balance/moe_balance.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

namespace mb = moe_balance;

/// The loss, with coefficient 0.5, of tokens that all give expert `favourite` this logit and the others 0; every fourth gives it infinity, if so asked.
float loss_of_favourite(int tokens, int experts, int favourite, float logit, int threads, bool some_infinite = false) {
  const auto cells = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(experts);
  std::vector<float> logits(cells);
  for (int t = 0; t < tokens; ++t) {
    logits[static_cast<std::size_t>(t * experts + favourite)] =
        some_infinite && t % 4 == 1 ? std::numeric_limits<float>::infinity() : logit;
  }
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  std::vector<float> weights(static_cast<std::size_t>(tokens));
  const mb::Router router{mb::Softmax{}, mb::TopK<1>{}, mb::AuxLoss{.coefficient = 0.5f}};
  std::vector<std::int64_t> saved(router.saved_bytes({tokens, experts, 1}) / sizeof(std::int64_t));
  const mb::Host place{.threads = threads};
  const mb::SavedRef kept{saved.data(), saved.size() * sizeof(std::int64_t)};
  router.forward({.logits = mb::MatrixView<const float>(logits.data(), tokens, experts),
                  .experts = {ids.data(), tokens, 1},
                  .weights = mb::MatrixView(weights.data(), tokens, 1),
                  .saved = kept},
                 {}, place);
  float loss = 0;
  router.loss({.saved = kept, .experts = experts, .value = &loss}, {}, place);
  return loss;
}

TEST_CASE("probabilities of more tokens than 32-bit halves hold add up exactly") {
  for (const int tokens : {1, 511, 512, 513, 1024, 1700}) {
    CAPTURE(tokens);
    for (const int threads : {1, 3}) {
      for (const int experts : {8, 33, 256}) {  // probability 1: f = P = 1 there, so coefficient * experts
        CAPTURE(experts);
        CHECK(loss_of_favourite(tokens, experts, experts - 1, 400.0f, threads) == 0.5f * static_cast<float>(experts));
      }
      // Of all halves' remainders 1 / 683 has nearly the largest. f is 1 for the first expert, so coefficient * 683 / 683.
      CHECK(loss_of_favourite(tokens, 683, 0, 0.0f, threads) == doctest::Approx(0.5).epsilon(1e-6));
      CHECK(loss_of_favourite(tokens, 23, 0, 0.0f, threads) ==
            doctest::Approx(0.5).epsilon(1e-6));  // and of few experts 1 / 23
    }
  }
}

TEST_CASE("tokens that are not finite add no probability, between others and where halves are carried") {
  for (const int tokens : {4, 508, 512, 516, 1024, 1700}) {
    CAPTURE(tokens);
    for (const int threads : {1, 3}) {
      for (const int experts : {8, 33, 256}) {  // P = 3 / 4
        CAPTURE(experts);
        CHECK(loss_of_favourite(tokens, experts, experts - 1, 400.0f, threads, true) ==
              0.375f * static_cast<float>(experts));
      }
    }
  }
}

}  // namespace
