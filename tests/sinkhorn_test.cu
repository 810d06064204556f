// Sinkhorn's scales, on a GPU.
#include "cuda_graph.cuh"
#include "engine_cuda.cuh"

#include "bodies/sinkhorn.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(sinkhorn_values, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_balance, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_bits, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_types, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_padding, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_corners, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_sizes, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_iterations, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_errors, CudaEngine);

TEST_CASE("contract 12 and 13: sinkhorn is captured in a CUDA graph, which serves other logits, counts and numbers of iterations") {
  const CudaEngine engine;
  constexpr std::int64_t rows = 700, experts = 90;
  constexpr int most = 40;
  CudaEngine::Array<float> logits(engine, std::vector<float>(rows * experts)), log_scale(engine, std::vector<float>(experts, 77));
  CudaEngine::Array<std::int64_t> tokens(engine, {0});
  CudaEngine::Array<std::int32_t> iterations(engine, {77});
  const std::size_t bytes = mb::sinkhorn_workspace_bytes(experts);
  CudaEngine::Array<std::int64_t> workspace(engine, std::vector<std::int64_t>(bytes / 8, 77));
  const auto enqueue = [&] {
    mb::sinkhorn({.logits = mb::MatrixView<const float>(logits.data(), rows, experts),
                  .log_scale = {log_scale.data(), experts},
                  .max_iterations = most,
                  .tokens_on_device = tokens.data(),
                  .iterations = iterations.data()},
                 {workspace.data(), bytes}, engine.place());
  };
  CHECK(kernels_of(graph_of(engine, enqueue)) == most + 1);
  const auto graph = captured(engine, enqueue);
  CHECK(iterations.values()[0] == 77);  // captured, not run
  for (const std::int64_t count : {700, 0, 123, 699}) {
    CAPTURE(count);
    SinkhornCase given = sinkhorn_case(182 + static_cast<std::uint64_t>(count), rows, experts, count == 123 ? 3 : 1, 0.5);
    given.max_iterations = most;
    given.tokens_on_device = count;
    const std::vector<float> values(given.logits.begin(), given.logits.end());
    engine.upload(logits.data(), values.data(), values.size() * sizeof(float));
    engine.upload(tokens.data(), &count, sizeof(count));
    replay(engine, graph);
    CHECK(Scales{log_scale.values(), iterations.values()[0]} == scales_of(HostEngine{}, given));
  }
}

}  // namespace testing
