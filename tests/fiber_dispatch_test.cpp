// The dispatch kernels on fibers: against plain loops, and bit for bit as the CPU engine, in several orders of lanes and blocks.
#include "tile/fiber_dispatch.hpp"
#include "engine_host.hpp"

#include "bodies/dispatch.hpp"
#include "bodies/dispatch_errors.hpp"
#include "bodies/route_and_permute.hpp"
#include "engine_host.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_fixed_rows, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_permutation, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_overlap, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_rows, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_indices, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_same, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_errors, FiberEngine);

TEST_CASE("dispatch: fibers = CPU, bit for bit") {
  Random random(41);
  for (int round = 0; round < 12; ++round) {
    const auto seed = static_cast<std::uint64_t>(round);
    const std::int64_t aligns[] = {1, 3, 8};
    const std::int64_t hidden_sizes[] = {264, 7, 300, 128, 512, 33};  // with full spans of packs, with tails, and unaligned
    DispatchProblem p = dispatch_problem(seed, random.integer(0, 90), random.integer(1, 5), random.integer(1, 70),
                                         hidden_sizes[round % 6], aligns[round % 3], round % 4 == 3 ? 1 : 0);
    p.type = round % 2 == 0 ? mb::DataType::float32 : mb::DataType::bfloat16;
    p.stride_excess = round % 5 == 4 ? 3 : 0;
    p.padding = round % 4 == 0 ? mb::Padding::untouched : mb::Padding::zero;
    fill_values(p, random);
    CAPTURE(round);
    const DispatchResults host = run_dispatch(HostEngine{.threads = 1}, p);
    CHECK(run_dispatch(FiberEngine{.seed = seed + 1, .multiprocessors = 1 + round % 3}, p) == host);
  }
}

TEST_CASE("dispatch: fibers = CPU with more parts than one") {
  const DispatchProblem p = dispatch_problem(42, 2600, 2, 9, 1, 4);
  const DispatchResults host = run_dispatch(HostEngine{.threads = 1}, p);
  for (const int blocks : {2, 5}) {
    CHECK(run_dispatch(FiberEngine{.seed = 7, .multiprocessors = blocks}, p) == host);
  }
}

}  // namespace testing
