// CONTRACT.md line 14 on the CPU.
#include "engine_host.hpp"

#include "bodies/errors.hpp"
#include "bodies/router_overlaps.hpp"

#include <cstdint>
#include <limits>
#include <string>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(errors_null, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_misaligned, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_shape, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_views, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_types, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_sequences, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_groups, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_options, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_options_of_zero, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_replay, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_left_out, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_route, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_backward, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_one, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_loss, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_update, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_margins, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_none, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(router_overlaps, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(router_overlaps_in_part, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(router_interleaved, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(router_in_place, HostEngine);

/// A rule of the user's that does not look at its own bins.
struct UnwaryBins {
  int bins;
  [[nodiscard]] int bin_of(float /*margin*/) const { return 0; }
  [[nodiscard]] float next_bias(float bias, int /*expert*/, const mb::LoadView&, const mb::MarginView&) const {
    return bias;
  }
};

/// A rule of the user's that knows how many experts there may be.
struct OddBias {
  void check(const char* call, int experts) const {
    MOEB_EXPECTS(experts % 2 == 1, call, "experts that compute", experts, "an odd number");
  }
  [[nodiscard]] float next_bias(float bias, int /*expert*/, const mb::LoadView&) const { return bias; }
};

TEST_CASE("errors: options that no balancer has are refused by their names") {
  const auto refuses = [](const auto& balancer, const std::string& message) {
    CHECK_THROWS_WITH_AS(mb::check_options("forward", balancer), ("moe_balance: forward: " + message).c_str(),
                         mb::InvalidArgument);
  };
  refuses(mb::AuxLoss{.scale = mb::LossScale(9)}, "AuxLoss.scale is 9; allowed: per_assignment, per_token");
  refuses(mb::FromPlainTopK{mb::SequenceLoss{.scale = mb::LossScale(9)}},
          "SequenceLoss.scale is 9; allowed: per_assignment, per_token");
  refuses(mb::GlobalBatchLoss{.scale = mb::LossScale(2)}, "GlobalBatchLoss.scale is 2; allowed: per_assignment, per_token");
  refuses(mb::GlobalBatchLoss{.global_scale = mb::GlobalBatchScale(2)},
          "GlobalBatchLoss.global_scale is 2; allowed: paper, megatron_core");
  refuses(mb::GlobalBatchLoss{.window = mb::GlobalBatchWindow(2)},
          "GlobalBatchLoss.window is 2; allowed: step, micro_batch");
  refuses(mb::Combine{mb::ZLoss{}, mb::LossFreeBias{.centring = mb::Centring(3)}},
          "LossFreeBias.centring is 3; allowed: none, bias, step");
  refuses(mb::ProportionalBias{.unit = mb::ErrorUnit(3)},
          "ProportionalBias.unit is 3; allowed: mean_load, total_load, token");
  refuses(mb::ProportionalBias{.centring = mb::Centring(3)}, "ProportionalBias.centring is 3; allowed: none, bias, step");
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  refuses(mb::ProportionalBias{.update_rate = infinity}, "ProportionalBias.update_rate is inf; allowed: finite numbers");
  refuses(mb::SmebuBias{.update_rate = nan}, "SmebuBias.update_rate is nan; allowed: finite numbers");
  refuses(mb::SmebuBias{.momentum = 1.0f}, "SmebuBias.momentum is 1.000000; allowed: 0 to below 1");
  refuses(mb::SmebuBias{.momentum = nan}, "SmebuBias.momentum is nan; allowed: 0 to below 1");
  refuses(mb::SmebuBias{.momentum = -0.5f}, "SmebuBias.momentum is -0.500000; allowed: 0 to below 1");
  refuses(mb::SmebuBias{.slope = infinity}, "SmebuBias.slope is inf; allowed: finite numbers");
  refuses(mb::SmebuBias{.centring = mb::Centring(3)}, "SmebuBias.centring is 3; allowed: none, bias, step");
  refuses(mb::Combine{mb::ZLoss{}, mb::PidBias{.proportional = nan}},
          "PidBias.proportional is nan; allowed: finite numbers");
  refuses(mb::PidBias{.integral = infinity}, "PidBias.integral is inf; allowed: finite numbers");
  refuses(mb::PidBias{.derivative = -infinity}, "PidBias.derivative is -inf; allowed: finite numbers");
  refuses(mb::PidBias{.centring = mb::Centring(3)}, "PidBias.centring is 3; allowed: none, bias, step");
  refuses(mb::Combine{mb::ZLoss{}, mb::ImportanceLoss{.coefficient = nan}},
          "ImportanceLoss.coefficient is nan; allowed: finite numbers");
  refuses(mb::DeviceLoss{mb::ImportanceLoss{.coefficient = infinity}, 2},
          "ImportanceLoss.coefficient is inf; allowed: finite numbers");
  refuses(mb::EntropyLoss{.coefficient = -infinity}, "EntropyLoss.coefficient is -inf; allowed: finite numbers");
  refuses(mb::MutualInformationLoss{.coefficient = nan},
          "MutualInformationLoss.coefficient is nan; allowed: finite numbers");
  refuses(mb::ThresholdBias{.experts_per_token = 0.0f},
          "ThresholdBias.experts_per_token is 0.000000; allowed: more than 0, at most K, here 32");
  refuses(mb::ThresholdBias{.experts_per_token = nan},
          "ThresholdBias.experts_per_token is nan; allowed: more than 0, at most K, here 32");
  refuses(mb::ThresholdBias{.experts_per_token = 33.0f},
          "ThresholdBias.experts_per_token is 33.000000; allowed: more than 0, at most K, here 32");
  CHECK_THROWS_WITH_AS(
      mb::check_options("forward", mb::ThresholdBias{.experts_per_token = 2.5f}, 8, 2),
      "moe_balance: forward: ThresholdBias.experts_per_token is 2.500000; allowed: more than 0, at most K, here 2",
      mb::InvalidArgument);
  refuses(mb::ThresholdBias{.momentum = 1.0f}, "ThresholdBias.momentum is 1.000000; allowed: 0 to below 1");
  refuses(mb::ThresholdBias{.bins = 0}, "ThresholdBias.bins is 0; allowed: 1 to 65536");
  refuses(mb::ThresholdBias{.spacing = mb::MarginBins::even, .high = -1.0f},
          "ThresholdBias.high is -1.000000; allowed: more than low, which is 0.000000, by a finite number");
  refuses(mb::QuantileBias{.momentum = 1.0f}, "QuantileBias.momentum is 1.000000; allowed: 0 to below 1");
  refuses(mb::QuantileBias{.momentum = nan}, "QuantileBias.momentum is nan; allowed: 0 to below 1");
  refuses(mb::QuantileBias{.momentum = -0.5f}, "QuantileBias.momentum is -0.500000; allowed: 0 to below 1");
  refuses(mb::QuantileBias{.spacing = mb::MarginBins::even, .low = nan}, "QuantileBias.low is nan; allowed: finite numbers");
  refuses(mb::QuantileBias{.spacing = mb::MarginBins::even, .low = -infinity},
          "QuantileBias.low is -inf; allowed: finite numbers");
  const std::string above = "; allowed: more than low, which is 0.500000, by a finite number";
  refuses(mb::QuantileBias{.spacing = mb::MarginBins::even, .low = 0.5f, .high = 0.5f},
          "QuantileBias.high is 0.500000" + above);
  refuses(mb::QuantileBias{.spacing = mb::MarginBins::even, .low = 0.5f, .high = nan}, "QuantileBias.high is nan" + above);
  refuses(mb::QuantileBias{.spacing = mb::MarginBins::even, .low = 0.5f, .high = infinity},
          "QuantileBias.high is inf" + above);
  refuses(mb::QuantileBias{.bins = 0}, "QuantileBias.bins is 0; allowed: 3 to 65536");
  refuses(mb::QuantileBias{.bins = 65537}, "QuantileBias.bins is 65537; allowed: 3 to 65536");
  refuses(mb::QuantileBias{.spacing = mb::MarginBins::even, .bins = 0}, "QuantileBias.bins is 0; allowed: 1 to 65536");
  refuses(mb::QuantileBias{.spacing = mb::MarginBins(2)}, "QuantileBias.spacing is 2; allowed: octaves, even");
  for (const int bins : {-1, 0, 65537})
    refuses(UnwaryBins{bins}, "balancer's bins is " + std::to_string(bins) + "; allowed: 1 to 65536");
  refuses(mb::QuantileBias{.centring = mb::Centring(3)}, "QuantileBias.centring is 3; allowed: none, bias, step");
  refuses(mb::DeviceLoss{mb::AuxLoss{.scale = mb::LossScale(9)}, 2},
          "AuxLoss.scale is 9; allowed: per_assignment, per_token");
  refuses(mb::WithZeroComputation{mb::AuxLoss{.scale = mb::LossScale(9)}, 2, 1.0f},
          "AuxLoss.scale is 9; allowed: per_assignment, per_token");
  refuses(mb::WithZeroComputation{mb::LossFreeBias{}, 0, 1.0f}, "WithZeroComputation.zero_experts is 0; allowed: 1 or more");
  for (const float computed : {0.0f, -1.0f, nan, infinity}) {
    refuses(mb::WithZeroComputation{mb::LossFreeBias{}, 1, computed},
            "WithZeroComputation.computed_per_token is " + std::to_string(computed) + "; allowed: above 0 and below K");
  }
  refuses(mb::WithZeroComputation{mb::SmebuBias{}, 2, 1.0f},
          "WithZeroComputation.centring is 2; allowed: none: what the biases have in common steers how much is computed");
}

namespace {
template <class Call>
void refuses(const std::string& name, const std::string& problem, const Call& call) {
  CHECK_THROWS_WITH_AS(call(), ("moe_balance: " + name + ": " + problem).c_str(), mb::InvalidArgument);
}
/// By forward, backward and loss.
template <class Router>
void refuses_to_train(const Router& router, Memory<HostEngine>& memory, const std::string& problem) {
  const mb::Host host;
  refuses("forward", problem, [&] { router.forward(memory.forward_args(), memory.workspace(), host); });
  refuses("backward", problem, [&] { router.backward(memory.backward_args(), memory.workspace(), host); });
  refuses("loss", problem, [&] { router.loss(memory.loss_args(), memory.workspace(), host); });
}
}  // namespace

TEST_CASE("errors: devices that do not divide the experts are refused by each call that reads them") {
  const HostEngine engine;
  for (const int devices : {-1, 0, 5, 48}) {
    const mb::Router router{mb::Softmax{}, mb::TopK<2>{},
                            mb::Combine{mb::ZLoss{}, mb::LossFreeBias{}, mb::DeviceLoss{mb::AuxLoss{}, devices}}};
    Inputs inputs = normal_inputs(59, 4, 24, 2);
    inputs.bias = normal_bias(60, 24);
    inputs.load = zero_load(24);
    Memory<HostEngine> memory = memory_for(engine, router, inputs);
    refuses_to_train(router, memory,
                     "DeviceLoss.devices is " + std::to_string(devices) + "; allowed: a divisor of the 24 experts");
    const Outcome untouched = memory_for(engine, router, inputs).outcome();
    CHECK(same_bits(memory.outcome(), untouched));
    const mb::ForwardArgs args = memory.forward_args();
    router.update(args.bias, args.load, memory.workspace(), engine.place());  // reads no loss
  }
}

namespace {
/// A loss of the user's that counts arrivals and checks nothing itself.
struct Arrivals {
  static constexpr bool counts_arrivals = true;
  int devices = 0;
  [[nodiscard]] MOEB_INLINE float slope(int expert, const mb::LoadView& load) const { return load.share(expert); }
};
}  // namespace

TEST_CASE("errors: devices of arrivals that do not divide the experts, or that no token reaches so many of") {
  const HostEngine engine;
  const auto check = [&](const auto& balancer, const std::string& problem) {
    const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::Combine{mb::ZLoss{}, balancer}};
    const Inputs inputs = normal_inputs(59, 4, 24, 2);
    Memory<HostEngine> memory = memory_for(engine, router, inputs);
    refuses_to_train(router, memory, problem);
    CHECK(same_bits(memory.outcome(), memory_for(engine, router, inputs).outcome()));
  };
  const mb::AuxLoss loss{};
  for (const int devices : {-1, 0, 5, 48}) {
    const std::string allowed = " is " + std::to_string(devices) + "; allowed: a divisor of the 24 experts";
    check(mb::CommunicationLoss{loss, devices, 1}, "CommunicationLoss.devices" + allowed);
    check(Arrivals{devices}, "balancer's devices" + allowed);
  }
  for (const int reached : {-1, 0, 3}) {
    check(mb::CommunicationLoss{loss, 4, reached}, "CommunicationLoss.devices_per_token is " + std::to_string(reached) +
                                                       "; allowed: 1 to 2, the smaller of the devices and K");
  }
  check(mb::CommunicationLoss{loss, 1, 2},
        "CommunicationLoss.devices_per_token is 2; allowed: 1 to 1, the smaller of the devices and K");
  CHECK_THROWS_WITH_AS(mb::check_options("sizes", mb::CommunicationLoss{mb::AuxLoss{.scale = mb::LossScale(9)}, 4, 2}),
                       "moe_balance: sizes: AuxLoss.scale is 9; allowed: per_assignment, per_token", mb::InvalidArgument);
  check(mb::CommunicationLoss{mb::AuxLoss{.scale = mb::LossScale(9)}, 4, 2},
        "AuxLoss.scale is 9; allowed: per_assignment, per_token");
}

TEST_CASE(
    "errors: zero-computation experts that are all experts, or have no slot to spare, are refused by each call that knows") {
  const HostEngine engine;
  const auto check = [&](int zero_experts, float computed, const std::string& problem, bool is_of_rule = true) {
    const mb::Router router{mb::Softmax{}, mb::TopK<2>{},
                            mb::Combine{mb::WithZeroComputation{mb::LossFreeBias{}, zero_experts, computed},
                                        mb::WithZeroComputation{mb::DeviceLoss{mb::AuxLoss{}, 4}, zero_experts, computed}}};
    Inputs inputs = normal_inputs(59, 4, 24, 2);
    inputs.bias = normal_bias(60, 24);
    inputs.load = zero_load(24);
    Memory<HostEngine> memory = memory_for(engine, router, inputs);
    refuses_to_train(router, memory, problem);
    if (is_of_rule) {  // update reads no loss
      const mb::ForwardArgs args = memory.forward_args();
      refuses("update", problem, [&] { router.update(args.bias, args.load, memory.workspace(), engine.place()); });
    }
    CHECK(same_bits(memory.outcome(), memory_for(engine, router, inputs).outcome()));
  };
  check(24, 1.0f, "WithZeroComputation.zero_experts is 24; allowed: 1 to 23: one expert at least computes");
  check(4, 2.5f, "WithZeroComputation.computed_per_token is 2.500000; allowed: above 0, at most K = 2");
  check(4, 2.0f, "WithZeroComputation.computed_per_token is 2.000000; allowed: above 0 and below K = 2", false);
  check(3, 1.0f, "DeviceLoss.devices is 4; allowed: a divisor of the 21 experts", false);
  // A layer of fewer experts, all of which would compute nothing.
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::WithZeroComputation{mb::LossFreeBias{}, 3, 1.0f}};
  std::vector<float> bias(12, 1.0f);
  std::vector<std::int64_t> load(12, 5);
  const std::vector<std::int32_t> experts{6, 3};
  mb::LoadRef loads{load.data(), 6, 2};
  loads.experts_of_layer = experts.data();
  CHECK_THROWS_WITH_AS(
      router.update({bias.data(), 6, 2}, loads, {}, engine.place()),
      "moe_balance: update: WithZeroComputation.zero_experts is 3; allowed: 1 to 2: one expert at least computes",
      mb::InvalidArgument);
  CHECK(load == std::vector<std::int64_t>(12, 5));
  // Rows that are longer than any layer say nothing.
  const std::vector<std::int32_t> fewer{5, 4};
  loads.experts_of_layer = fewer.data();
  const mb::Router other{mb::Softmax{}, mb::TopK<2>{}, mb::WithZeroComputation{OddBias{}, 2, 1.0f}};
  CHECK_THROWS_WITH_AS(other.update({bias.data(), 6, 2}, loads, {}, engine.place()),
                       "moe_balance: update: experts that compute is 2; allowed: an odd number", mb::InvalidArgument);
  const std::vector<std::int32_t> odd{5, 3};
  loads.experts_of_layer = odd.data();
  other.update({bias.data(), 6, 2}, loads, {}, engine.place());
  CHECK(load[0] == 0);
}

TEST_CASE("errors: what was saved for other experts or sequences is refused by each call that takes it") {
  constexpr std::int64_t tokens = 8, experts = 8, k = 2;
  const mb::Router router{mb::Softmax{}, mb::TopK<k>{}, mb::SequenceLoss{}};
  const mb::Saved saved{router, mb::Shape{.tokens = tokens, .experts = experts, .sequences = 2}};
  std::vector<float> x(tokens * experts, 0.5f), w(tokens * k, 77.0f), dx(tokens * experts, 77.0f);
  std::vector<std::int32_t> ids(tokens * k, -7);
  float value = 77;
  const mb::MatrixView<const float> logits(x.data(), tokens, experts);
  mb::ForwardArgs forward{
      .logits = logits, .experts = {ids.data(), tokens, k}, .weights = mb::MatrixView(w.data(), tokens, k)};
  mb::BackwardArgs backward{
      .logits = logits, .experts = {ids.data(), tokens, k}, .grad_logits = mb::MatrixView(dx.data(), tokens, experts)};
  mb::LossArgs loss{.experts = experts, .value = &value};
  forward.saved = backward.saved = loss.saved = saved.ref();
  const mb::Host host;
  const std::string sequences = "sequences.count is 1; allowed: 2 (those that saved was made for)";
  refuses("forward", sequences, [&] { router.forward(forward, {}, host); });
  refuses("backward", sequences, [&] { router.backward(backward, {}, host); });
  refuses("loss", sequences, [&] { router.loss(loss, {}, host); });
  forward.sequences.count = backward.sequences.count = loss.sequences.count = 2;
  loss.experts = 4;
  refuses("loss", "experts is 4; allowed: 8 (those that saved was made for)", [&] { router.loss(loss, {}, host); });
  forward.logits.columns = 7;
  refuses("forward", "saved.experts is 8; allowed: 7 (the call's experts)", [&] { router.forward(forward, {}, host); });
  CHECK(ids == std::vector<std::int32_t>(tokens * k, -7));
  CHECK(dx == std::vector<float>(tokens * experts, 77.0f));
  CHECK(value == 77);
  forward.logits.columns = loss.experts = experts;
  router.forward(forward, {}, host);
  router.loss(loss, {}, host);
  router.backward(backward, {}, host);
  CHECK(value == doctest::Approx(1e-4));
  // Ids before dropping, of a router that drops none.
  const std::vector<std::int32_t> chosen(tokens * k, 0);
  backward.chosen = {chosen.data(), tokens, k};
  refuses("backward", "chosen is given; allowed: null, unless the selection is WithCapacity",
          [&] { router.backward(backward, {}, host); });
  // Where only the memory is known, it has to be large enough.
  backward.chosen = {};
  backward.saved = {saved.ref().data, saved.ref().bytes};
  router.backward(backward, {}, host);
}

TEST_CASE("errors: what forward saved of more tokens than backward has is refused on the CPU") {
  constexpr std::int64_t tokens = 8, experts = 4;
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{}};
  const mb::Saved saved{router, mb::Shape{.tokens = tokens, .experts = experts}};
  std::vector<float> x(tokens * experts, 0.5f), w(tokens * 2), dx(tokens * experts, 77.0f);
  std::vector<std::int32_t> ids(tokens * 2);
  router.forward({.logits = mb::MatrixView<const float>(x.data(), tokens, experts),
                  .experts = {ids.data(), tokens, 2},
                  .weights = mb::MatrixView(w.data(), tokens, std::int64_t{2}),
                  .saved = saved.ref()},
                 {}, mb::Host{});
  const auto backward = [&](std::int64_t rows) {
    router.backward({.logits = mb::MatrixView<const float>(x.data(), rows, experts),
                     .experts = mb::MatrixView<const std::int32_t>(ids.data(), rows, 2),
                     .grad_logits = mb::MatrixView(dx.data(), rows, experts),
                     .saved = saved.ref()},
                    {}, mb::Host{});
  };
  for (const std::int64_t rows : {std::int64_t{7}, std::int64_t{0}}) {
    refuses("backward",
            "saved.tokens is 8; allowed: " + std::string(rows > 0 ? "0 to 7" : "0") +
                " (those of logits: saved has the sums of another call)",
            [&] { backward(rows); });
  }
  CHECK(dx == std::vector<float>(tokens * experts, 77.0f));
  backward(tokens);
}

TEST_CASE("errors: a GPU whose blocks have too little shared memory is told so by the experts") {
  const mb::Validator check{"forward"};
  check.shared_memory(2048, 101376, 101376);
  refuses("forward",
          "logits.columns is 2048; allowed: fewer: this balancer needs 106528 bytes of shared memory for so many, and the "
          "device's blocks have 101376",
          [&] { check.shared_memory(2048, 106528, 101376); });
}

TEST_CASE("errors: an instruction set that is none is refused by every call") {
  const mb::Host host{.instructions = mb::InstructionSet(4)};
  std::vector<float> x(4), w(2), bias(2);
  std::vector<std::int32_t> ids(2);
  std::vector<std::int64_t> offsets(3), row(2), slot(2);
  const mb::Router router{mb::Softmax{}, mb::TopK<1>{}};
  const std::string what = "host.instructions is 4; allowed: automatic, baseline, x86_64_v3, x86_64_v4";
  refuses("route", what, [&] {
    router.route({.logits = mb::MatrixView<const float>(x.data(), 2, 2),
                  .experts = {ids.data(), 2, 1},
                  .weights = mb::MatrixView<float>(w.data(), 2, 1)},
                 {}, host);
  });
  std::vector<std::max_align_t> scratch(mb::permutation_workspace_bytes(2, 1, 2) / sizeof(std::max_align_t) + 1);
  refuses("permutation", what, [&] {
    mb::permutation({.experts = {ids.data(), 2, 1},
                     .offsets = {offsets.data(), 3},
                     .row_of_slot = {row.data(), 2, 1},
                     .slot_of_row = {slot.data(), 2}},
                    {scratch.data(), scratch.size() * sizeof(std::max_align_t)}, host);
  });
}

TEST_CASE("errors: more sequences than a call takes need more saved memory than there is") {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const mb::Router sequence_loss{mb::Softmax{}, mb::TopK<2>{}, mb::SequenceLoss{}};
  CHECK(sequence_loss.saved_bytes({.experts = 64, .sequences = most}) == 8 * (1 + 2 * 64 + most * (1 + 2 * 64)));
  for (const std::int64_t sequences : {most + 1, std::int64_t{1} << 60, std::numeric_limits<std::int64_t>::max()}) {
    CHECK(sequence_loss.saved_bytes({.experts = 64, .sequences = sequences}) == SIZE_MAX);
    const mb::Router loss{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{}};
    CHECK(loss.saved_bytes({.experts = 64, .sequences = sequences}) == 8 * (1 + 2 * 64));
  }
  CHECK(sequence_loss.saved_bytes({.experts = 2048, .sequences = most}) == 8 * (1 + 2 * 2048 + most * (1 + 2 * 2048)));
  CHECK(sequence_loss.saved_bytes({.experts = std::numeric_limits<int>::max(), .sequences = most}) == SIZE_MAX);
  CHECK(sequence_loss.saved_bytes({.experts = 1 << 30, .sequences = std::int64_t{1} << 30}) == SIZE_MAX);
  CHECK(sequence_loss.saved_bytes({.experts = 64, .sequences = -5}) == SIZE_MAX);
  CHECK(sequence_loss.saved_bytes({.experts = -5, .sequences = 1}) == SIZE_MAX);
  CHECK(mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::LossFreeBias{}}.saved_bytes({.experts = -5, .sequences = -5}) == 0);
}

}  // namespace testing
