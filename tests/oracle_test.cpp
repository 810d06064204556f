// The oracle against the recorded cases of other systems, and its gradients against its own values by central differences.
#include "golden_cases.hpp"
#include "golden_oracle.hpp"
#include "random.hpp"

#include <doctest/doctest.h>

#include <filesystem>

namespace {

#if defined(MOE_BALANCE_GOLDEN_DIR)
const std::filesystem::path folder = MOE_BALANCE_GOLDEN_DIR;
#else
const std::filesystem::path folder = std::filesystem::path(__FILE__).parent_path() / "golden";
#endif

}  // namespace

TEST_CASE("the oracle passes every recorded case that golden_test runs") {
  golden::OracleSubject subject;
  golden::Tally tally;
  golden::run_folder(subject, folder, tally);
  CHECK(tally.failed == 0);
  CHECK(tally.passed >= 162);
}

TEST_CASE("the oracle's gradients are the central differences of its own values") {
  const std::vector<std::pair<const char*, oracle::Scoring>> scorings{
      {"softmax", oracle::softmax()},
      {"softmax_over_selected", oracle::softmax_over_selected()},
      {"sigmoid", oracle::sigmoid()},
      {"sqrt_softplus", oracle::sqrt_softplus()},
      {"identity", oracle::identity()}};
  testing::Random random(11);
  for (const auto& [name, scoring] : scorings) {
    CAPTURE(name);
    for (const bool renormalise : {false, true}) {
      oracle::Problem problem;
      problem.tokens = 6;
      problem.experts = 9;
      problem.k = 3;
      problem.scoring = scoring;
      problem.renormalise = renormalise;
      problem.scaling_factor = 1.7;
      problem.logits = random.normals<double>(54, 0.7, 2.0);
      problem.active = {1, 1, 0, 1, 1, 1};
      const std::vector<int> ids = oracle::choose(problem);
      const std::vector<double> grad_weights = random.normals<double>(18);
      oracle::Surroundings around;
      around.sequences = 2;
      around.sequence_of_token = {0, 1, 0, 1, 0, 1};
      around.accumulated = {5, 1, 2, 9, 4, 4, 0, 3, 2};
      const std::vector<oracle::Loss> losses{oracle::aux_loss(0.3, 9, 3), oracle::sequence_loss(0.2, 9, 3, true),
                                             oracle::global_batch_loss(0.5, 9, 3), oracle::z_loss(0.1)};
      const std::vector<double> exact = oracle::gradient(problem, ids, grad_weights, losses, around, 1.3);
      const std::vector<double> numeric = oracle::gradient_by_differences(problem, ids, grad_weights, losses, around, 1.3);
      for (std::size_t i = 0; i < exact.size(); ++i) {
        CAPTURE(i);
        CHECK(std::abs(exact[i] - numeric[i]) <= 1e-8 * (1 + std::abs(exact[i])));
      }
    }
  }
}

TEST_CASE("the oracle's check of a selection accepts the right one and no other") {
  oracle::Problem problem;
  problem.tokens = 1;
  problem.experts = 4;
  problem.k = 2;
  problem.scoring = oracle::sigmoid();
  problem.logits = {0.5, 2.0, 2.0, -1.0};
  CHECK(oracle::check_selection(problem, {1, 2}, oracle::float32_resolution).first_difference.empty());
  for (const std::vector<int>& wrong : {std::vector<int>{2, 1}, {1, 0}, {1, 1}, {1, 4}, {-1, 1}, {1, 3}}) {
    CHECK_FALSE(oracle::check_selection(problem, wrong, oracle::float32_resolution).first_difference.empty());
  }
}
