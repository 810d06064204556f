// The pass that counts margins: its kernel's body on fibers, for every tier; and broken on purpose.
#include "engine_fibers.hpp"

#include "bodies/margins.hpp"

#include <set>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(margins_softmax, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_over_selected, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_sigmoid, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_scores, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_of_many, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_nan, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(margins_user, FiberEngine);

namespace {

struct FaultyFibers : FiberEngine {
  Faults faults;
  explicit FaultyFibers(const Faults& its_faults) : faults(its_faults) {}
  [[nodiscard]] Fibers place() const {
    Fibers result = FiberEngine::place();
    result.faults = faults;
    return result;
  }
};

/// Whether the kernel gives other margins than the CPU, or is stopped, in some order of its lanes.
bool is_caught(const Faults& faults, int experts) {
  Inputs inputs = normal_inputs(11, 90, experts, 1, 0.5);
  inputs.bias = normal_bias(12, experts, 0.5);
  const mb::Sigmoid scoring;
  const mb::TopK<4> top_k;
  const mb::QuantileBias rule{.bins = 50};
  const std::vector<std::int32_t> ids = ids_of(scoring, top_k, inputs);
  const std::vector<std::int64_t> want = histogram_of<float>(HostEngine{}, scoring, top_k, rule, inputs, ids);
  for (int order = 0; order < 4; ++order) {
    try {
      if (histogram_of<float>(FaultyFibers(faults), scoring, top_k, rule, inputs, ids) != want) return true;
    } catch (const FiberError&) {
      return true;
    }
  }
  return false;
}

}  // namespace

TEST_CASE("a barrier left out, and loops that start or step one too far are caught") {
  for (const int experts : {64, 520}) {
    CAPTURE(experts);
    std::set<std::uint_least32_t> lines;
    Faults seen;
    seen.block_barriers.seen = &lines;
    CHECK(!is_caught(seen, experts));
    CHECK(lines.size() == 1);
    for (const std::uint_least32_t line : lines) CHECK(is_caught(Faults{.block_barriers = {.skipped = line}}, experts));
    CHECK(is_caught(Faults{.more_blocks = 1}, experts));
    CHECK(is_caught(Faults{.later_block = 1}, experts));
    CHECK(is_caught(Faults{.more_threads = 32}, experts));
  }
}

}  // namespace testing
