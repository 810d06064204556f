// Dispatch on a GPU: against plain loops, and bit for bit as the CPU engine.
#include "engine_cuda.cuh"
#include "engine_host.hpp"

#include "bodies/dispatch.hpp"
#include "bodies/permute.hpp"

#include <moe_balance/dispatch/many_experts.cuh>

#include <exception>
#include <thread>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_random, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_corners, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_identity, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_identity_anywhere, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_many, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_most_experts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sorting, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_very_many_experts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_most_sorted_experts, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_fixed_rows, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sum_order, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_round_trip, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_hidden_sizes, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_copies, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_disagreeing, CudaEngine);

TEST_CASE("dispatch: what CUB asks for fits what permutation_workspace_bytes reserves for it") {
  for (const std::int64_t slots : {0, 1, 1000, 100'000, 3'000'000, 1 << 28}) {
    for (const std::int64_t experts : {1, 4097, 70'000, mb::max_dispatch_experts}) {
      CAPTURE(slots);
      CAPTURE(experts);
      CHECK_NOTHROW(mb::CudaDispatchEngine::check_sort(slots, {"permutation", static_cast<int>(experts)}, CudaEngine{}.place()));
    }
  }
}

TEST_CASE("dispatch: threads that permute over different numbers of experts do not take shared memory from each other") {
  constexpr int rounds = 100;
  const auto differing = [](std::int64_t experts) {
    const DispatchProblem p = dispatch_problem(53, 2000, 2, experts, 1, 1);
    const DispatchResults want = run_dispatch(HostEngine{.threads = 1}, p);
    const CudaEngine engine;
    int count = 0;
    for (int round = 0; round < rounds; ++round) {
      try {
        count += run_dispatch(engine, p) == want ? 0 : 1;
      } catch (const std::exception&) {
        ++count;
      }
    }
    return count;
  };
  int many = 0;
  std::thread other([&] { many = differing(2048); });
  const int few = differing(1024);
  other.join();
  CHECK(many == 0);
  CHECK(few == 0);
}

TEST_CASE("dispatch: as many blocks as there are, for few and many experts") {
  for (const std::int64_t experts : {1, 6, 64, 256, 2048}) {
    for (const std::int64_t tokens : {8192, 16384}) {
      CAPTURE(experts);
      CAPTURE(tokens);
      const DispatchProblem p = dispatch_problem(54, tokens, experts < 8 ? 1 : 8, experts, 1, 8);
      CHECK(run_dispatch(CudaEngine{}, p) == run_dispatch(HostEngine{}, p));
    }
  }
}

TEST_CASE("dispatch: GPU = CPU, bit for bit") {
  for (const mb::DataType type : {mb::DataType::float32, mb::DataType::bfloat16, mb::DataType::float16}) {
    for (const std::int64_t hidden : {72, 1024, 7}) {
      const bool is_wide = hidden > 100;  // fewer rows then: to compare each element took most of this program's time
      DispatchProblem p = dispatch_problem(51, is_wide ? 200 : 3000, 8, 64, hidden, is_wide ? 16 : 128);
      p.type = type;
      Random random(52);
      fill_values(p, random);
      CHECK(run_dispatch(CudaEngine{}, p) == run_dispatch(HostEngine{}, p));
    }
  }
}

}  // namespace testing
