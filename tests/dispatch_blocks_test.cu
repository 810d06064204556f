// Routing and its permutation in one call, with as many tokens as fill a GPU. A file of its own, so that it compiles beside the others. GPU only.
#include "engine_cuda.cuh"

#include "bodies/forward_and_permute.hpp"

namespace testing {

// Blocks that route have up to three times the threads of their tier, for which there are tokens, registers and shared memory.
template <int Tier, bool Usual>
constexpr int threads_for(std::int64_t tokens, std::size_t available) {
  using Problem = mb::ForwardProblem<mb::Softmax, mb::TopK<4>, mb::AuxLoss>;
  return mb::routing_threads<mb::KernelConfig<Tier, Usual>, Problem>(tokens, available);
}
static_assert(threads_for<3, true>(24, 65536) == 768 && threads_for<3, true>(24, 232448) == 768);
static_assert(threads_for<3, true>(23, 65536) == 512 && threads_for<3, true>(15, 65536) == 256 && threads_for<3, true>(0, 65536) == 256);
static_assert(threads_for<4, true>(64, 65536) == 256 && threads_for<4, true>(64, 101376) == 512);
static_assert(threads_for<0, true>(95, 101376) == 512 && threads_for<0, true>(96, 101376) == 768);
static_assert(threads_for<5, false>(64, 101376) == 128);

TEST_CASE("forward_and_permute of few and many tokens in every size of kernel: GPU = CPU, bit for bit") {
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, mb::AuxLoss{.coefficient = 0.1f}};
  for (const int experts : {32, 64, 128, 256, 512}) {
    for (const std::int64_t tokens : {500, 4096, 5000}) {
      CAPTURE(experts);
      CAPTURE(tokens);
      Inputs inputs = normal_inputs(41, tokens, experts, 4, 0.5);
      inputs.loss_parts = 1;
      check_fused<CudaEngine>(router, inputs);
      inputs.row_padding = 4;  // not a usual call
      check_fused<CudaEngine>(router, inputs);
    }
  }
}

TEST_CASE("the same with padding tokens, kernels that experts fill in part, and 16-bit logits: GPU = CPU, bit for bit") {
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, mb::AuxLoss{.coefficient = 0.1f}};
  for (const int experts : {24, 48, 96, 200, 384}) {
    for (const std::int64_t tokens : {500, 4096}) {
      CAPTURE(experts);
      CAPTURE(tokens);
      Inputs inputs = normal_inputs(43, tokens, experts, 4, 0.5);
      inputs.loss_parts = 1;
      for (std::int64_t t = 0; t < tokens; ++t) inputs.active.push_back(t % 5 == 3 ? 0 : 1);
      check_fused<CudaEngine>(router, inputs);
      inputs.active.clear();
      inputs.logits_type = mb::DataType::bfloat16;
      check_fused<CudaEngine>(router, inputs);
    }
  }
}

}  // namespace testing
