// The smooth load and its loss, as a GPU finds them, on fibers.
#include "tile/fiber_dispatch.hpp"

#include "bodies/smooth_load.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(smooth_load_values, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_meaning, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_gradients, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_bits, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_types, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_padding, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_extremes, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_parts, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(smooth_load_errors, FiberEngine);

TEST_CASE("smooth_load on fibers: the same bits from any number of blocks, in any order") {
  const ChoiceCase given = choice_case(430, 29, 70, 5, true);
  const LoadAnswer want = load_of(HostEngine{}, given);
  for (const int blocks : {1, 2, 5}) {
    for (const std::uint64_t seed : {1, 2, 3})
      CHECK(load_of(FiberEngine{.seed = seed, .multiprocessors = blocks}, given) == want);
  }
}

}  // namespace testing
