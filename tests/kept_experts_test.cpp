// Selections that keep fewer than K experts, on the CPU.
#include "engine_host.hpp"

#include "bodies/kept_experts.hpp"
#include "side_by_side.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(top_p_softmax, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(top_p_renormalised, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(top_p_sigmoid, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(top_p_over_selected, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(top_p_by_hand, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_agreement, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_by_hand, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_many, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_user, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_replay, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_nan, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_by_hand, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_of_all, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(threshold_bias_balances, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_types, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_balanced, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(kept_capacity, HostEngine);

TEST_CASE("the gradient of what is kept, float64, against differences of the oracle's objective") {
  const auto balancer = everything();
  check_central_differences(mb::Softmax{}, mb::TopP<3>{.p = 0.3f}, balancer);
  check_central_differences(mb::Softmax{}, mb::TopP<3>{.p = 0.3f, .renormalise = true}, balancer);
  check_central_differences(mb::Sigmoid{}, mb::TopP<3>{.p = 1.8f, .renormalise = true}, balancer);
  check_central_differences(mb::SoftmaxOverSelected{}, mb::TopP<3>{.p = 0.6f}, balancer);
  check_central_differences(mb::Sigmoid{}, mb::Threshold<3>{}, balancer);
  check_central_differences(mb::Softmax{}, users::MinP<3>{}, balancer);
}

TEST_CASE("side by side: what is kept has the bits of tokens one by one") {
  for (const side_by_side::Kind kind : side_by_side::kinds) {
    CAPTURE(static_cast<int>(kind));
    const auto seed = static_cast<std::uint64_t>(1670 + static_cast<int>(kind));
    for (const int experts : {4, 16, 61}) {
      CAPTURE(experts);
      Inputs inputs = side_by_side::make_inputs(kind, experts, 4, seed);
      side_by_side::check(mb::Router{mb::Softmax{}, mb::TopP<4>{.p = 0.4f}, mb::AuxLoss{}}, inputs);
      side_by_side::check(mb::Router{mb::SoftmaxOverSelected{}, mb::TopP<4>{.p = 0.4f, .renormalise = true}}, inputs);
      side_by_side::check(mb::Router{mb::Softmax{}, users::MinP<4>{.part = 0.5f}}, inputs);
      side_by_side::check(mb::Router{mb::Softmax{}, users::NotTheThird<4>{}}, inputs);
      inputs.bias = normal_bias(seed, experts);
      for (float& bias : inputs.bias) bias -= 0.6f;
      inputs.load = zero_load(experts);
      side_by_side::check(mb::Router{mb::Sigmoid{}, mb::Threshold<4>{.renormalise = true}, mb::LossFreeBias{}}, inputs);
    }
  }
}

TEST_CASE("TopP and Threshold refuse what is out of range") {
  const auto message_of = [](const auto& selection) -> std::string {
    const mb::Router router{mb::Softmax{}, selection};
    const std::vector<float> logits(8);
    std::vector<std::int32_t> ids(4, 77);
    std::vector<float> weights(4, 7.0f);
    try {
      router.route({.logits = mb::MatrixView(logits.data(), 1, 8),
                    .experts = {ids.data(), 1, 4},
                    .weights = mb::MatrixView(weights.data(), 1, 4)},
                   {}, mb::Host{});
    } catch (const mb::InvalidArgument& error) {
      CHECK(ids == std::vector<std::int32_t>(4, 77));
      return error.what();
    }
    return "";
  };
  CHECK(message_of(mb::TopP<4>{.p = 4.0f}).empty());
  CHECK(message_of(mb::TopP<4>{.p = 0.0f}) == "moe_balance: route: top_k.p is 0.000000; allowed: more than 0, at most 4");
  CHECK(message_of(mb::TopP<4>{.p = 4.5f}).find("top_k.p is 4.5") != std::string::npos);
  CHECK(message_of(mb::TopP<4>{.p = mb::quiet_nan<float>}).find("top_k.p is ") != std::string::npos);
  CHECK(message_of(mb::TopP<4>{.scaling_factor = mb::infinity<float>}).find("top_k.scaling_factor is inf") !=
        std::string::npos);
  CHECK(message_of(mb::Threshold<4>{.scaling_factor = mb::infinity<float>}).find("top_k.scaling_factor is inf") !=
        std::string::npos);
}

}  // namespace testing
