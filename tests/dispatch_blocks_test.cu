// Routing and its permutation in one call, with as many tokens as fill a GPU. A file of its own, so that it compiles beside the others. GPU only.
#include "engine_cuda.cuh"

#include "bodies/forward_and_permute.hpp"

namespace testing {

TEST_CASE("blocks that route have up to three times the threads of their tier, for which there are tokens, registers and shared memory") {
  using Problem = mb::ForwardProblem<mb::Softmax, mb::TopK<4>, mb::AuxLoss>;
  for (const std::size_t available : {65536u, 101376u, 232448u}) {
    CHECK(mb::routing_threads<mb::KernelConfig<3, true>, Problem>(24, available) == 768);
    CHECK(mb::routing_threads<mb::KernelConfig<3, true>, Problem>(23, available) == 512);
    CHECK(mb::routing_threads<mb::KernelConfig<3, true>, Problem>(15, available) == 256);
    CHECK(mb::routing_threads<mb::KernelConfig<3, true>, Problem>(0, available) == 256);
    CHECK(mb::routing_threads<mb::KernelConfig<4, true>, Problem>(64, available) == (available < 70000 ? 256 : 512));
    CHECK(mb::routing_threads<mb::KernelConfig<0, true>, Problem>(95, available) == 512);
    CHECK(mb::routing_threads<mb::KernelConfig<5, false>, Problem>(64, available) == 128);
  }
}

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
