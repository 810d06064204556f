// The dispatch kernels on fibers: against plain loops, and bit for bit as the CPU engine, in several orders of lanes and blocks.
#include "tile/fiber_dispatch.hpp"
#include "engine_host.hpp"

#include "bodies/dispatch.hpp"
#include "bodies/dispatch_errors.hpp"
#include "bodies/forward_and_permute.hpp"
#include "bodies/route_and_permute.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_fixed_rows, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sum_order, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sorting, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_very_many_experts, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_permutation, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_overlap, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_rows, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_indices, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_same, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_errors, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_same, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_sizes, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_replay, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_capacity, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_errors, FiberEngine);

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

/// Two ranks with the same tokens; only for memory that the host can read.
struct DoublingSync {
  int* sums;
  [[nodiscard]] int ranks() const { return 2; }
  template <class Place>
  void start(std::int64_t* counts, std::int64_t n, const Place&) const {
    for (std::int64_t i = 0; i < n; ++i) counts[i] *= 2;
    ++*sums;
  }
  template <class Place>
  void finish(std::int64_t*, const Place&) const {}
};

TEST_CASE("forward_and_permute sums over ranks as forward does") {
  int sums = 0;
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::GlobalBatchLoss{.coefficient = 0.5f}, DoublingSync{&sums}};
  Inputs inputs = full_inputs(36, 90, 24, 4);
  inputs.loss_parts = 1;
  check_fused<FiberEngine>(router, inputs);
  CHECK(sums == 2);
}

TEST_CASE("forward_and_permute: offsets of sequences that no check can see lead nowhere") {
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}, mb::SequenceLoss{}};
  Random random(37);
  for (int round = 0; round < 8; ++round) {
    Inputs inputs = full_inputs(38, 60, 24, 4);
    inputs.loss_parts = 1;
    inputs.layout = mb::Sequences::Layout::offsets;
    inputs.sequences = 5;
    for (int i = 0; i <= 5; ++i) inputs.offsets.push_back(random.integer(-40, 100));
    const TrainedAndPermuted got = trained_and_permuted(FiberEngine{}, router, inputs, true);
    CHECK(got.offsets[24] <= static_cast<std::int64_t>(got.slot_of_row.size()));
    for (const std::int64_t slot : got.slot_of_row) CHECK((slot >= -1 && slot < 240));
  }
}

TEST_CASE("dispatch: counts that disagree with ids lead to no row outside") {
  constexpr std::int64_t rows = 3;
  std::vector<std::int32_t> ids(40, 1), histogram(3, 0);
  std::vector<std::int64_t> offsets(4), row_of_slot(40, 77), slot_of_row(100, 77);
  mb::PermutationProblem problem = mb::detail::permutation_problem({.experts = mb::MatrixView(ids.data(), 20, 2),
                                                                    .offsets = {offsets.data(), 4},
                                                                    .row_of_slot = {row_of_slot.data(), 20, 2},
                                                                    .slot_of_row = {slot_of_row.data(), rows}});
  problem.histogram = histogram.data();
  problem.histogram_rows = 1;
  mb::detail::place_slots(problem, 1, FiberEngine{}.place());
  for (const std::int64_t row : row_of_slot) CHECK((row >= -1 && row < rows));
  for (std::size_t r = rows; r < slot_of_row.size(); ++r) CHECK(slot_of_row[r] == 77);
}

TEST_CASE("dispatch: fibers = CPU with more parts than one") {
  const DispatchProblem p = dispatch_problem(42, 2600, 2, 9, 1, 4);
  const DispatchResults host = run_dispatch(HostEngine{.threads = 1}, p);
  for (const int blocks : {2, 5}) {
    CHECK(run_dispatch(FiberEngine{.seed = 7, .multiprocessors = blocks}, p) == host);
  }
}

}  // namespace testing
