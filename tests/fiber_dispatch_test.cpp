// The dispatch kernels on fibers: against plain loops, and bit for bit as the CPU engine, in several orders of lanes and blocks.
#include "tile/fiber_dispatch.hpp"
#include "engine_host.hpp"

#include "bodies/dispatch.hpp"
#include "bodies/dispatch_errors.hpp"
#include "bodies/forward_and_permute.hpp"
#include "bodies/fused_overlaps.hpp"
#include "bodies/permute.hpp"
#include "bodies/route_and_permute.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_corners, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_identity, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_identity_anywhere, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_fixed_rows, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_hidden_sizes, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_copies, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_disagreeing, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sum_order, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_round_trip, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_sorting, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_very_many_experts, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_permutation, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_overlap, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_columns_of_one_table, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_every_overlap, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_rows, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_identity, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_indices, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_same, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_errors, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_same, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_sizes, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_sums, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_arrivals, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_replay, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_capacity, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_margins, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_errors, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_overlaps, FiberEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_overlaps, FiberEngine);

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
  std::vector<std::int32_t> ids(40, 1), histogram(8, 0);
  std::vector<std::int64_t> offsets(4), row_of_slot(40, 77), slot_of_row(100, 77);
  mb::PermutationProblem problem = mb::detail::permutation_problem({.experts = mb::MatrixView(ids.data(), 20, 2),
                                                                    .offsets = {offsets.data(), 4},
                                                                    .row_of_slot = {row_of_slot.data(), 20, 2},
                                                                    .slot_of_row = {slot_of_row.data(), rows}});
  problem.histogram = mb::Histogram::of(histogram.data(), 1, 20, 2, 3);
  mb::detail::place_slots(problem, 1, FiberEngine{}.place());
  for (const std::int64_t row : row_of_slot) CHECK((row >= -1 && row < rows));
  for (std::size_t r = rows; r < slot_of_row.size(); ++r) CHECK(slot_of_row[r] == 77);
}

TEST_CASE("dispatch: counts of 16 bits and of 32 lead to the same rows") {
  constexpr std::int64_t tokens = 600, k = 3, parts = 5;
  const Fibers place = FiberEngine{}.place();
  for (const int experts : {1, 3, 8, 40, 64, 300}) {
    CAPTURE(experts);
    Random random(static_cast<std::uint64_t>(experts));
    std::vector<std::int32_t> ids(tokens * k);
    for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.integer(-1, experts - 1));
    using Rows = std::vector<std::int64_t>;
    const auto permuted = [&](const auto& run) {
      std::tuple<Rows, Rows, Rows> out{Rows(static_cast<std::size_t>(experts + 1), 77), Rows(ids.size(), 77),
                                       Rows(ids.size(), 77)};
      run(mb::PermutationArgs{.experts = mb::MatrixView(ids.data(), tokens, k),
                              .offsets = {std::get<0>(out).data(), experts + 1},
                              .row_of_slot = {std::get<1>(out).data(), tokens, k},
                              .slot_of_row = {std::get<2>(out).data(), tokens * k}});
      return out;
    };
    const auto on_fibers = [&](bool narrow) {
      return permuted([&](const mb::PermutationArgs& args) {
        std::vector<std::int32_t> counts(mb::Histogram::bytes(parts, experts) / sizeof(std::int32_t), 77);
        mb::PermutationProblem problem = mb::detail::permutation_problem(args);
        problem.histogram = mb::Histogram::of(counts.data(), parts, tokens, k, experts);
        problem.histogram.narrow = narrow;
        mb::DispatchEngine<Fibers>::launch("test", {parts, 2, mb::CountSlots::shared_bytes(experts)}, mb::CountSlots{},
                                           problem, place);
        mb::detail::place_slots(problem, parts, place);
      });
    };
    const auto host = permuted([&](const mb::PermutationArgs& args) {
      std::vector<std::byte> workspace(mb::permutation_workspace_bytes(tokens, k, experts));
      mb::permutation(args, {workspace.data(), workspace.size()}, mb::Host{});
    });
    CHECK((on_fibers(true) == host));
    CHECK((on_fibers(false) == host));
  }
}

TEST_CASE("dispatch: fibers = CPU with more parts than one") {
  const DispatchProblem p = dispatch_problem(42, 2600, 2, 9, 1, 4);
  const DispatchResults host = run_dispatch(HostEngine{.threads = 1}, p);
  for (const int blocks : {2, 5}) {
    CHECK(run_dispatch(FiberEngine{.seed = 7, .multiprocessors = blocks}, p) == host);
  }
}

TEST_CASE("dispatch: fibers = CPU in blocks of one tile, four and eight, and with blocks that only mark padding") {
  struct Case {
    std::int64_t tokens, k, experts, align;
  };
  for (const Case c : {Case{2600, 2, 9, 4}, Case{1200, 2, 40, 128}, Case{700, 3, 40, 8}, Case{60, 2, 1, 256},
                       Case{0, 2, 5, 4}, Case{1500, 4, 700, 1}}) {
    CAPTURE(c.tokens);
    CAPTURE(c.experts);
    const DispatchProblem p = dispatch_problem(43, c.tokens, c.experts == 1 ? 1 : c.k, c.experts, 1, c.align);
    const DispatchResults host = run_dispatch(HostEngine{.threads = 1}, p);
    for (const int tiles : {1, 4, 8}) {
      CAPTURE(tiles);
      CHECK(run_dispatch(FiberEngine{.seed = 8, .multiprocessors = 3, .dispatch_tiles = tiles}, p) == host);
    }
  }
}

TEST_CASE("forward_and_permute: fibers = CPU in blocks with fewer tiles than tokens, and more") {
  const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, mb::AuxLoss{.coefficient = 0.1f}};
  for (const std::int64_t tokens : {40, 300, 1100}) {
    Inputs inputs = normal_inputs(44, tokens, 32, 4, 0.5);
    inputs.loss_parts = 1;
    CAPTURE(tokens);
    const TrainedAndPermuted want = trained_and_permuted(HostEngine{}, router, inputs, false);
    for (const int threads : {32, 256}) {
      CAPTURE(threads);
      const FiberEngine engine{.dispatch_tiles = 8, .routing_threads = threads};
      check_same(trained_and_permuted(engine, router, inputs, true), want);
    }
  }
}

TEST_CASE("forward_and_permute: losses of tokens beyond 2^44 of their units, of both signs") {
  for (const float coefficient : {1.0f, -1.0f}) {
    const mb::Router router{mb::Softmax{}, mb::TopK<4>{},
                            mb::Combine{mb::ZLoss{.coefficient = 1.0f}, mb::EntropyLoss{.coefficient = coefficient}}};
    for (const std::int64_t tokens : {3, 300}) {
      Inputs inputs = normal_inputs(44, tokens, 32, 4, 0.5);
      for (double& logit : inputs.logits) logit += 60.0;
      inputs.loss_parts = 2;
      check_fused<FiberEngine>(router, inputs);
    }
  }
}

TEST_CASE(
    "contract 12: a fused call is two kernels, one that clears where losses are of several sequences or the global batch, "
    "and those that count margins") {
  const auto kernels = [](const auto& balancer, int sequences) {
    const mb::Router router{mb::Softmax{}, mb::TopK<4>{}, balancer};
    Inputs inputs = full_inputs(45, 300, 32, 4);
    inputs.loss_parts = decltype(router)::loss_count;
    inputs.sequences = sequences;
    inputs.load.resize(static_cast<std::size_t>(32 * (1 + router.load_bins())));
    const FiberEngine engine;
    Memory<FiberEngine> memory(engine, inputs, 4, mb::route_and_permute_workspace_bytes(router, shape_of(inputs)),
                               router.saved_bytes(shape_of(inputs)));
    mb::ForwardArgs args = memory.forward_args();
    args.counts = nullptr;
    const std::int64_t rows = mb::permutation_rows(300, 4, 32, 1);
    std::vector<std::int64_t> offsets(33), row_of_slot(1200), slot_of_row(static_cast<std::size_t>(rows));
    const int before = kernels_launched;
    mb::forward_and_permute(router, args,
                            {.experts = {},
                             .offsets = {offsets.data(), 33},
                             .row_of_slot = {row_of_slot.data(), 300, 4},
                             .slot_of_row = {slot_of_row.data(), rows}},
                            memory.workspace(), engine.place());
    end_kernel_before();
    return kernels_launched - before;
  };
  CHECK(kernels(mb::NoBalancer{}, 1) == 2);
  CHECK(kernels(mb::LossFreeBias{}, 1) == 2);
  CHECK(kernels(mb::AuxLoss{}, 1) == 2);
  CHECK(kernels(mb::Combine{mb::SequenceLoss{}, mb::ZLoss{}, mb::LossFreeBias{}}, 1) == 2);
  CHECK(kernels(mb::QuantileBias{}, 1) == 4);  // thresholds and margins
  CHECK(kernels(mb::QuantileBias{.frozen = true}, 1) == 2);
  CHECK(kernels(mb::SequenceLoss{}, 2) == 3);
  CHECK(kernels(mb::GlobalBatchLoss{.window = mb::GlobalBatchWindow::micro_batch}, 1) == 3);
  CHECK(kernels(mb::GlobalBatchLoss{.window = mb::GlobalBatchWindow::step}, 1) ==
        4);  // and what publishes the step's counts
}

TEST_CASE("dispatch: a permutation of few slots waits for the kernel that writes its ids") {
  const std::vector<std::int32_t> chosen = {2, 0, 1, 1, 2, 2, 0, 1};
  std::vector<std::int32_t> ids(8, 0);
  std::vector<std::int64_t> offsets(4), row_of_slot(8), slot_of_row(8), workspace(64);
  kernel_before = [&] { ids = chosen; };
  mb::permutation({.experts = mb::MatrixView<const std::int32_t>(ids.data(), 4, 2),
                   .offsets = {offsets.data(), 4},
                   .row_of_slot = {row_of_slot.data(), 4, 2},
                   .slot_of_row = {slot_of_row.data(), 8}},
                  {workspace.data(), workspace.size() * 8}, FiberEngine{}.place());
  CHECK(offsets == std::vector<std::int64_t>{0, 2, 5, 8});
  CHECK(slot_of_row == std::vector<std::int64_t>{1, 6, 2, 3, 7, 0, 4, 5});
}

}  // namespace testing
