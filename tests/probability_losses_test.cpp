// Losses of probabilities, on the CPU.
#include "engine_host.hpp"

#include "bodies/probability_losses.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(probability_losses_softmax, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_sigmoid, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_over_selected, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_many, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_alone, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_by_hand, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(probability_losses_faults, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(token_slope_overflow, HostEngine);

TEST_CASE("losses of probabilities: the gradient, float64, against differences of the oracle's objective") {
  check_central_differences(mb::Softmax{}, mb::TopK<3>{}, mb::ImportanceLoss{.coefficient = 0.5f});
  check_central_differences(mb::Softmax{}, mb::TopK<3>{}, mb::EntropyLoss{.coefficient = 0.5f});
  check_central_differences(mb::Softmax{}, mb::TopK<3>{}, mb::MutualInformationLoss{.coefficient = 0.5f});
  check_central_differences(mb::Softmax{}, mb::TopK<3>{}, probability_losses());
  check_central_differences(mb::Sigmoid{}, mb::TopK<3>{.renormalise = false}, probability_losses());
  check_central_differences(mb::SoftmaxOverSelected{}, mb::TopK<3>{}, probability_losses());
}

TEST_CASE("losses of probabilities: any number of threads and every set of instructions have the same bits") {
  const Inputs inputs = probability_inputs(1740, 1000, 60, 4);
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, probability_losses()};
  const Outcome expected = train(HostEngine{.threads = 1, .instructions = mb::InstructionSet::baseline}, router, inputs);
  for (const mb::InstructionSet set :
       {mb::InstructionSet::baseline, mb::InstructionSet::x86_64_v3, mb::InstructionSet::automatic}) {
    for (const int threads : {1, 3}) {
      CHECK(same_bits(train(HostEngine{.threads = threads, .instructions = set}, router, inputs), expected));
    }
  }
}

}  // namespace testing
