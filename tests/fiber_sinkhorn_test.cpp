// Sinkhorn's scales, as a GPU finds them, on fibers.
#include "tile/fiber_dispatch.hpp"

#include "bodies/sinkhorn.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(sinkhorn_values, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_balance, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_bits, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_types, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_padding, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_sizes, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_iterations, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(sinkhorn_errors, FiberEngine);

TEST_CASE("sinkhorn on fibers: the same bits from any number of blocks, in any order") {
  const SinkhornCase given = sinkhorn_case(178, 29, 70, 2, 1);
  const Scales want = scales_of(HostEngine{}, given);
  for (const int blocks : {1, 2, 5}) {
    for (const std::uint64_t seed : {1, 2, 3})
      CHECK(scales_of(FiberEngine{.seed = seed, .multiprocessors = blocks}, given) == want);
  }
}

}  // namespace testing
