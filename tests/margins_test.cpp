// The pass that counts margins on the CPU.
#include "engine_host.hpp"

#include "bodies/margins.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(margins_softmax, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_over_selected, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_sigmoid, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_scores, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_of_many, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_nan, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_user, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_of_many_tokens, HostEngine);

TEST_CASE("margins of float64 logits, and of many tokens on several threads") {
  const mb::QuantileBias rule{.bins = 50};
  Inputs inputs = in_float64(normal_inputs(7, 40, 70, 1, 0.5));
  check_counted<double>(HostEngine{}, mb::Sigmoid{}, mb::TopK<4>{}, rule, bins_of(rule), inputs);
  inputs = normal_inputs(8, 4000, 128, 1, 0.5);  // as many logits as are worth more than one thread
  CHECK(mb::thread_count(mb::Host{.threads = 3}, inputs.tokens, inputs.experts) == 3);
  const oracle::Problem problem = problem_of(mb::Sigmoid{}, mb::TopK<4>{}, inputs);
  const std::vector<std::int32_t> ids = ids_of(mb::Sigmoid{}, mb::TopK<4>{}, inputs);
  const auto on_threads = [&](int threads) {
    return histogram_of<float>(HostEngine{.threads = threads}, mb::Sigmoid{}, mb::TopK<4>{}, rule, inputs, ids);
  };
  check_histogram(on_threads(1), problem, bins_of(rule));
  CHECK(on_threads(3) == on_threads(1));
  for (const mb::InstructionSet set :
       {mb::InstructionSet::baseline, mb::InstructionSet::x86_64_v3, mb::InstructionSet::x86_64_v4}) {
    CHECK(histogram_of<float>(HostEngine{.instructions = set}, mb::Sigmoid{}, mb::TopK<4>{}, rule, inputs, ids) ==
          on_threads(1));
  }
}

TEST_CASE("margins of more tokens than a thread's own counts hold, and of more cells than it has memory for") {
  const mb::QuantileBias one_bin{.spacing = mb::MarginBins::even, .bins = 1};  // of all tokens
  Inputs inputs = normal_inputs(9, 140000, 3, 1, 0.5);
  CHECK(histogram_of<float>(HostEngine{.threads = 1}, mb::Sigmoid{}, mb::TopK<1>{}, one_bin, inputs,
                            ids_of(mb::Sigmoid{}, mb::TopK<1>{}, inputs)) == std::vector<std::int64_t>(3, inputs.tokens));
  const mb::QuantileBias rule{.bins = 353};
  inputs = normal_inputs(10, 800, 2048, 1, 0.5);
  static_assert(2048 * 353 * sizeof(std::uint16_t) > mb::host_tuning.most_margin_bytes);
  const std::vector<std::int32_t> ids = ids_of(mb::Sigmoid{}, mb::TopK<4>{}, inputs);
  const auto on_threads = [&](int threads) {
    return histogram_of<float>(HostEngine{.threads = threads}, mb::Sigmoid{}, mb::TopK<4>{}, rule, inputs, ids);
  };
  check_histogram(on_threads(1), problem_of(mb::Sigmoid{}, mb::TopK<4>{}, inputs), bins_of(rule));
  CHECK(on_threads(2) == on_threads(1));
}

}  // namespace testing
