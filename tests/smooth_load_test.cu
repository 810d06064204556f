// The smooth load and its loss, on a GPU.
#include "cuda_graph.cuh"
#include "engine_cuda.cuh"

#include "bodies/smooth_load.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(smooth_load_values, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_meaning, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_gradients, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_bits, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_types, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_padding, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_corners, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_extremes, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_parts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_errors, CudaEngine);

TEST_CASE("contract 12 and 13: smooth_load and its loss are captured in a CUDA graph, which serves other batches and counts") {
  const CudaEngine engine;
  constexpr std::int64_t rows = 600, experts = 40;
  CudaEngine::Array<float> logits(engine, std::vector<float>(rows * experts)), noisy(engine, std::vector<float>(rows * experts));
  CudaEngine::Array<float> grad_load(engine, std::vector<float>(experts, 77)), loss(engine, {77.0f});
  CudaEngine::Array<float> grad_logits(engine, std::vector<float>(rows * experts, 77)), grad_noisy(engine, std::vector<float>(rows * experts, 77));
  CudaEngine::Array<std::int64_t> tokens(engine, {0}), load(engine, std::vector<std::int64_t>(experts, 77));
  const auto enqueue = [&] {
    mb::NoisyChoice choice{.logits = mb::MatrixView<const float>(logits.data(), rows, experts),
                           .noisy = mb::MatrixView<const float>(noisy.data(), rows, experts),
                           .top_k = 2,
                           .scale = 0.75f};
    choice.tokens_on_device = tokens.data();
    mb::smooth_load({.choice = choice, .load = {load.data(), experts}}, {}, engine.place());
    mb::load_loss({.load = {load.data(), experts}, .grad_load = {grad_load.data(), experts}, .coefficient = 1.0f, .loss = loss.data()},
                  {}, engine.place());
    mb::smooth_load_backward({.choice = choice,
                              .grad_load = {grad_load.data(), experts},
                              .grad_logits = mb::MatrixView<float>(grad_logits.data(), rows, experts),
                              .grad_noisy = mb::MatrixView<float>(grad_noisy.data(), rows, experts)},
                             {}, engine.place());
  };
  CHECK(kernels_of(graph_of(engine, enqueue)) == 3);
  const auto graph = captured(engine, enqueue);
  CHECK(loss.values()[0] == 77.0f);  // captured, not run
  for (const std::int64_t count : {600, 0, 123, 599}) {
    CAPTURE(count);
    ChoiceCase given = choice_case(431 + static_cast<std::uint64_t>(count), rows, experts, 2, false);
    given.tokens_on_device = count;
    const std::vector<float> clean(given.logits.begin(), given.logits.end()), with_noise(given.noisy.begin(), given.noisy.end());
    engine.upload(logits.data(), clean.data(), clean.size() * sizeof(float));
    engine.upload(noisy.data(), with_noise.data(), with_noise.size() * sizeof(float));
    engine.upload(tokens.data(), &count, sizeof(count));
    replay(engine, graph);
    const auto as_doubles = [](const std::vector<float>& values) { return std::vector<double>(values.begin(), values.end()); };
    CHECK(LoadAnswer{load.values(), loss.values()[0], grad_load.values(), {as_doubles(grad_logits.values()), as_doubles(grad_noisy.values()), {}}} ==
          load_of(HostEngine{}, given));
  }
}

}  // namespace testing
