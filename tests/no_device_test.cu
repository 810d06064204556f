// Without a CUDA device or driver every call says so in a CudaError of its own, writes nothing, and leaves nothing behind: no error that a later
// call would be blamed for.
#include <moe_balance/moe_balance.cuh>

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace mb = moe_balance;

namespace {

/// Runs `call` twice: the second time must fail as the first did, and cudaPeekAtLastError must say what it said before (which without a driver
/// is not cudaSuccess, but that there is none).
template <class Call>
void fails_alike(const std::string& what, const Call& call) {
  CAPTURE(what);
  std::string first;
  const cudaError_t untouched = cudaPeekAtLastError();
  for (int time = 0; time < 2; ++time) {
    std::string message;
    try {
      call();
    } catch (const mb::CudaError& error) {
      message = error.what();
    }
    CAPTURE(message);
    CHECK(message.rfind("moe_balance: " + what, 0) == 0);
    CHECK(message.find("cudaError") != std::string::npos);
    CHECK(message.find("an earlier CUDA call") == std::string::npos);
    CHECK((time == 0 || message == first));
    CHECK(cudaPeekAtLastError() == untouched);
    first = message;
  }
}

/// Arguments as for a device; nobody reads them here.
struct Step {
  static constexpr std::int64_t tokens = 4;
  static constexpr int experts = 8;
  const mb::Router<mb::Sigmoid, mb::TopK<2>, mb::Combine<mb::LossFreeBias, mb::AuxLoss>> router{};
  std::vector<float> logits = std::vector<float>(tokens * experts, 0.5f);
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(tokens * 2, 7);
  std::vector<float> weights = std::vector<float>(tokens * 2, 7.0f);
  std::vector<float> grad = std::vector<float>(tokens * experts, 7.0f);
  std::vector<float> bias = std::vector<float>(experts, 7.0f);
  std::vector<std::int64_t> load = std::vector<std::int64_t>(experts, 7);
  std::vector<std::int64_t> counts = std::vector<std::int64_t>(experts, 7);
  std::vector<std::int64_t> saved = std::vector<std::int64_t>(router.saved_bytes({tokens, experts}) / 8, 7);
  float value = 7.0f;

  [[nodiscard]] mb::MatrixView<const float> logits_view() const { return {logits.data(), tokens, experts}; }
  [[nodiscard]] mb::MatrixView<std::int32_t> ids_view() { return {ids.data(), tokens, 2}; }
  [[nodiscard]] mb::SavedRef saved_ref() { return {saved.data(), saved.size() * 8}; }

  [[nodiscard]] bool is_untouched() const {
    const auto all_7 = [](const auto& values) {
      bool all = true;
      for (const auto each : values) all = all && each == 7;
      return all;
    };
    return all_7(ids) && all_7(weights) && all_7(grad) && all_7(bias) && all_7(load) && all_7(counts) && all_7(saved) &&
           value == 7.0f;
  }
};

}  // namespace

TEST_CASE("without a device every call of a router is a CudaError that names it, and nothing is written") {
  Step step;
  const cudaStream_t stream = nullptr;
  const auto weights = mb::MatrixView<float>(step.weights.data(), Step::tokens, 2);
  fails_alike("route: finding a CUDA device", [&] {
    step.router.route({.logits = step.logits_view(),
                       .experts = step.ids_view(),
                       .weights = weights,
                       .counts = step.counts.data(),
                       .bias = {step.bias.data(), Step::experts}},
                      {}, stream);
  });
  fails_alike("forward: finding a CUDA device", [&] {
    step.router.forward({.logits = step.logits_view(),
                         .experts = step.ids_view(),
                         .weights = weights,
                         .counts = step.counts.data(),
                         .bias = {step.bias.data(), Step::experts},
                         .load = {step.load.data(), Step::experts},
                         .saved = step.saved_ref()},
                        {}, stream);
  });
  fails_alike("backward: finding a CUDA device", [&] {
    step.router.backward({.logits = step.logits_view(),
                          .experts = mb::MatrixView<const std::int32_t>(step.ids_view()),
                          .grad_logits = mb::MatrixView<float>(step.grad.data(), Step::tokens, Step::experts),
                          .saved = step.saved_ref()},
                         {}, stream);
  });
  fails_alike("loss: finding a CUDA device", [&] {
    step.router.loss({.saved = step.saved_ref(), .experts = Step::experts, .value = &step.value}, {}, stream);
  });
  fails_alike("update: finding a CUDA device", [&] {
    step.router.update({step.bias.data(), Step::experts}, {step.load.data(), Step::experts}, {}, stream);
  });
  CHECK(step.is_untouched());
}

TEST_CASE("without a device a permutation and the fused calls are CudaErrors that name them, and nothing is written") {
  Step step;
  const cudaStream_t stream = nullptr;
  std::vector<std::int64_t> offsets(Step::experts + 1, 7);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(Step::tokens) * 2, 7);
  std::vector<std::int64_t> slots(static_cast<std::size_t>(Step::tokens) * 2, 7);
  std::vector<std::int64_t> scratch(mb::route_and_permute_workspace_bytes(step.router, {Step::tokens, Step::experts}) / 8 + 2, 7);
  const mb::Workspace workspace{scratch.data(), scratch.size() * 8};
  const mb::PermutationArgs order{.experts = step.ids_view(),
                                  .offsets = {offsets.data(), Step::experts + 1},
                                  .row_of_slot = {rows.data(), Step::tokens, 2},
                                  .slot_of_row = {slots.data(), Step::tokens * 2}};
  const auto weights = mb::MatrixView<float>(step.weights.data(), Step::tokens, 2);
  fails_alike("permutation: finding a CUDA device", [&] { mb::permutation(order, workspace, stream); });
  fails_alike("route_and_permute: finding a CUDA device", [&] {
    mb::route_and_permute(step.router,
                          {.logits = step.logits_view(),
                           .experts = step.ids_view(),
                           .weights = weights,
                           .bias = {step.bias.data(), Step::experts}},
                          order, workspace, stream);
  });
  fails_alike("forward_and_permute: finding a CUDA device", [&] {
    mb::forward_and_permute(step.router,
                            {.logits = step.logits_view(),
                             .experts = step.ids_view(),
                             .weights = weights,
                             .bias = {step.bias.data(), Step::experts},
                             .load = {step.load.data(), Step::experts},
                             .saved = step.saved_ref()},
                            order, workspace, stream);
  });
  CHECK(step.is_untouched());
  for (const auto* written : {&offsets, &rows, &slots, &scratch}) {
    for (const std::int64_t value : *written) CHECK(value == 7);
  }
}

TEST_CASE("without a device every allocation is a CudaError, and nothing leaks") {
  const cudaStream_t stream = nullptr;
  const Step step;
  fails_alike("allocating device memory", [&] { mb::Buffer<float, cudaStream_t>(16, stream); });
  fails_alike("allocating device memory", [&] { mb::Bias<cudaStream_t>(8, 1, stream); });
  fails_alike("allocating device memory", [&] { mb::Load<cudaStream_t>(8, 1, stream); });
  fails_alike("allocating device memory", [&] { mb::Saved<cudaStream_t>(step.router, {4, 8}, stream); });
}

TEST_CASE("without a device bad arguments are still InvalidArgument, and the CPU still works") {
  const cudaError_t untouched = cudaPeekAtLastError();
  Step step;
  CHECK_THROWS_AS(step.router.loss({}, {}, cudaStream_t{}), mb::InvalidArgument);
  step.router.update({step.bias.data(), Step::experts}, {step.load.data(), Step::experts}, {}, mb::Host{});
  CHECK(step.load[0] == 0);
  CHECK(cudaPeekAtLastError() == untouched);
}

TEST_CASE("more experts than kernels are compiled for are refused with an error that says so") {
  constexpr std::int64_t experts = MOE_BALANCE_CUDA_MAX_EXPERTS + 1;
  static_assert(experts == 33);
  std::vector<float> logits(experts, 0.5f);
  Step step;
  const std::string allowed =
      "logits.columns is 33; allowed: 1 to 32 (kernels for more are not compiled: MOE_BALANCE_CUDA_MAX_EXPERTS)";
  CHECK_THROWS_WITH_AS(
      step.router.forward({.logits = mb::MatrixView<const float>(logits.data(), 1, experts), .experts = {}, .weights = {}},
                          {}, cudaStream_t{}),
      ("moe_balance: forward: " + allowed).c_str(), mb::InvalidArgument);
  CHECK_THROWS_WITH_AS(
      step.router.backward(
          {.logits = mb::MatrixView<const float>(logits.data(), 1, experts), .experts = {}, .grad_logits = {}}, {},
          cudaStream_t{}),
      ("moe_balance: backward: " + allowed).c_str(), mb::InvalidArgument);
}

TEST_CASE("without many_experts.cuh more experts than a block can count are refused with an error that names it") {
  CHECK_THROWS_WITH_AS(
      mb::CudaDispatchEngine::check_sort(10, {"permutation", 5000}, cudaStream_t{}),
      "moe_balance: permutation: offsets.size is 5001; allowed: 2 to 4097 in a program none of whose files includes "
      "<moe_balance/dispatch/many_experts.cuh>",
      mb::InvalidArgument);
  CHECK_THROWS_WITH_AS(
      mb::CudaDispatchEngine::check_sort(10, {"limit_to_capacity", 5000, "expert_count", 0}, cudaStream_t{}),
      "moe_balance: limit_to_capacity: expert_count is 5000; allowed: 1 to 4096 in a program none of whose files includes "
      "<moe_balance/dispatch/many_experts.cuh>",
      mb::InvalidArgument);
}
