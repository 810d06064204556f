// Dispatch on a GPU: against plain loops, and bit for bit as the CPU engine.
#include "engine_cuda.cuh"
#include "engine_host.hpp"

#include "bodies/dispatch.hpp"

#include <moe_balance/dispatch/many_experts.cuh>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_random, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_corners, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_many, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_most_experts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sorting, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_very_many_experts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_most_sorted_experts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_fixed_rows, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sum_order, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_hidden_sizes, CudaEngine);

TEST_CASE("dispatch: what CUB asks for fits what permutation_workspace_bytes reserves for it") {
  for (const std::int64_t slots : {0, 1, 1000, 100'000, 3'000'000, 1 << 28}) {
    for (const std::int64_t experts : {1, 4097, 70'000, mb::max_dispatch_experts}) {
      CAPTURE(slots);
      CAPTURE(experts);
      CHECK_NOTHROW(mb::CudaDispatchEngine::check_sort("permutation", slots, experts, CudaEngine{}.place()));
    }
  }
}

TEST_CASE("dispatch: GPU = CPU, bit for bit") {
  for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16}) {
    for (const std::int64_t hidden : {72, 1024, 7}) {
      DispatchProblem p = dispatch_problem(51, 3000, 8, 64, hidden, 128);
      p.type = type;
      Random random(52);
      fill_values(p, random);
      CHECK(run_dispatch(CudaEngine{}, p) == run_dispatch(HostEngine{}, p));
    }
  }
}

}  // namespace testing
