// The smooth load and its loss, on the CPU.
#include "engine_host.hpp"

#include "bodies/smooth_load.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(smooth_load_values, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_meaning, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_gradients, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_bits, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_types, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_padding, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_corners, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_extremes, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_parts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_errors, HostEngine);

TEST_CASE("smooth_load: the same bits from any vector instructions") {
  const ChoiceCase given = choice_case(420, 500, 75, 4, true);
  const LoadAnswer want = load_of(HostEngine{}, given);
  for (const mb::InstructionSet set :
       {mb::InstructionSet::baseline, mb::InstructionSet::x86_64_v3, mb::InstructionSet::x86_64_v4}) {
    CHECK(load_of(HostEngine{.instructions = set}, given) == want);
  }
}

TEST_CASE("normal_at: probabilities and densities of the normal distribution") {
  double worst = 0, worst_of_tail = 0, worst_density = 0;
  for (float z = -12.9f; z <= 12.9f; z += 0.000732f) {
    const auto wide = static_cast<long double>(z);
    const mb::NormalAt<float> got = mb::normal_at(z);
    const long double below = std::erfc(-wide / std::sqrt(2.0L)) / 2;
    const long double density = std::exp(-wide * wide / 2) / std::sqrt(2 * 3.14159265358979323846L);
    const auto error = [](float value, long double exact) { return std::abs(static_cast<double>(value - exact)); };
    worst = std::max(worst, error(got.below, below));
    if (z < 0) worst_of_tail = std::max(worst_of_tail, error(got.below, below) / static_cast<double>(below));
    worst_density = std::max(worst_density, error(got.density, density) / static_cast<double>(density));
  }
  CHECK(worst < 1.8e-7);
  CHECK(worst_of_tail < 5e-6);  // of exp, whose argument has an error of half a unit of z * z
  CHECK(worst_density < 5e-6);
  CHECK(mb::normal_at(0.0f).below == doctest::Approx(0.5).epsilon(1e-7));
  CHECK(mb::normal_at(64.0f).below == 1.0f);
  CHECK(mb::normal_at(-64.0f).below == 0.0f);
}

TEST_CASE("smooth_load in float64: to the last digits of the load, gradients to a part in 10^9") {
  for (const WinningLogit winning : {WinningLogit::best_of_others, WinningLogit::last_chosen}) {
    ChoiceCase given = choice_case(421, 6, 21, 3, true);
    given.type = mb::DataType::float64;
    given.winning = winning;
    const LoadAnswer got = load_of(HostEngine{}, given);
    const SmoothLoadOracle want(given);
    for (std::size_t e = 0; e < 21; ++e)
      CHECK(std::abs(got.tokens_of(e) - static_cast<double>(want.load[e])) <= 6 * 0x1p-33 + 1e-14);
    // The gradient of the load that was found, in float32.
    const std::vector<long double> upstream(got.grad_load.begin(), got.grad_load.end());
    check_gradient(given, got.grad.logits, &ChoiceCase::logits, upstream, 1e-9);
    check_gradient(given, got.grad.noisy, &ChoiceCase::noisy, upstream, 1e-9);
    check_gradient(given, got.grad.scales, &ChoiceCase::scales, upstream, 1e-9);
  }
}

// Both of a logit's ways to the loss, by the library's own calls in float64: through add_noise, and beside it.
TEST_CASE("smooth_load behind add_noise: the gradient of both together is the derivative of both together") {
  constexpr std::int64_t tokens = 4, experts = 7;
  constexpr std::size_t size = 28;
  const mb::NoiseSource noise{.kind = mb::NoiseKind::normal, .scale = 0.5f, .seed = 422};
  std::vector<double> logits = Random(423).normals<double>(size), scales(size);
  Random random(424);
  for (double& scale : scales) scale = 0.5 + random.uniform();
  std::vector<double> noisy(size);
  std::vector<std::int64_t> load(experts);
  std::vector<float> upstream = Random(425).normals<float>(experts);
  const auto view = [](auto& values) { return mb::MatrixView(values.data(), tokens, experts); };
  const auto choice = [&] {
    mb::NoisyChoice result{.logits = view(logits), .noisy = view(noisy), .top_k = 2, .scale = noise.scale};
    result.scales = view(scales);
    return result;
  };
  const auto value = [&] {
    mb::add_noise({.logits = view(logits), .noisy = view(noisy), .noise = noise, .scales = view(scales)}, {}, mb::Host{});
    mb::smooth_load({.choice = choice(), .load = {load.data(), experts}}, {}, mb::Host{});
    double sum = 0;
    for (std::size_t e = 0; e < experts; ++e) {
      sum += static_cast<double>(upstream[e]) * static_cast<double>(load[e]) / static_cast<double>(mb::smooth_load_unit);
    }
    return sum;
  };
  (void)value();
  std::vector<double> grad_logits(size), grad_noisy(size), grad_scales(size), through_noise(size);
  mb::smooth_load_backward({.choice = choice(),
                            .grad_load = {upstream.data(), experts},
                            .grad_logits = view(grad_logits),
                            .grad_noisy = view(grad_noisy),
                            .grad_scales = view(grad_scales)},
                           {}, mb::Host{});
  mb::add_noise_backward({.grad_noisy = view(grad_noisy), .grad_scales = view(through_noise), .noise = noise}, {},
                         mb::Host{});
  constexpr double step = 1e-3;
  const auto derivative = [&](double& number) {
    const double before = number;
    number = before + step;
    const double above = value();
    number = before - step;
    const double below = value();
    number = before;
    return (above - below) / (2 * step);
  };
  for (std::size_t i = 0; i < size; ++i) {
    CAPTURE(i);
    CHECK(derivative(logits[i]) == doctest::Approx(grad_logits[i] + grad_noisy[i]).epsilon(1e-5).scale(1));
    CHECK(derivative(scales[i]) == doctest::Approx(grad_scales[i] + through_noise[i]).epsilon(1e-5).scale(1));
  }
}

}  // namespace testing
