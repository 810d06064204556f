// A file whose kernels serve 40 to 100 experts, beside one whose kernels serve all.
#define MOE_BALANCE_CUDA_MIN_EXPERTS 40
#define MOE_BALANCE_CUDA_MAX_EXPERTS 100
#include "engine_cuda.cuh"
#include "engine_host.hpp"

#include "limited_experts.hpp"

#include <doctest/doctest.h>

namespace testing {

TEST_CASE("kernels for 40 to 100 experts serve these and fewer, with the CPU's bits") {
  for (const int experts : {4, 32, 39, 40, 64, 65, 100}) {
    CAPTURE(experts);
    const Inputs inputs = full_inputs(171, 50, experts, 4);
    CHECK(same_bits(train(CudaEngine(), limited_router(), inputs), train(HostEngine(), limited_router(), inputs)));
  }
}

TEST_CASE("more are refused here, and served by another file's kernels") {
  for (const int experts : {101, 128, 300}) {
    CAPTURE(experts);
    const Inputs inputs = full_inputs(172, 50, experts, 4);
    CHECK_THROWS_WITH_AS(train(CudaEngine(), limited_router(), inputs), doctest::Contains("MOE_BALANCE_CUDA_MAX_EXPERTS"),
                         mb::InvalidArgument);
    CHECK(same_bits(trained_without_limits(inputs), train(HostEngine(), limited_router(), inputs)));
  }
}

}  // namespace testing
