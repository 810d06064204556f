// CONTRACT.md lines 7, 8, 10 and 16 on the CPU, and what only the CPU has: float64, threads, vector instructions, huge offsets.
#include "engine_host.hpp"

#include "bodies/contract_numbers.hpp"

#include <sys/mman.h>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(contract_7, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_7_bits, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_8, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_8_order, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_10, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(contract_16, HostEngine);

TEST_CASE("contract 7: float64 logits are computed in double on the CPU") {
  for_some_routers([](const auto& scoring, const auto& top_k) {
    const mb::Router router{scoring, top_k, everything()};
    agrees(HostEngine{}, scoring, top_k, in_float64(full_inputs(31, 40, 64, decltype(router)::k)), everything());
    agrees(HostEngine{}, scoring, top_k, in_float64(full_inputs(32, 5, 2048, decltype(router)::k)), everything());
  });
}

TEST_CASE("contract 8: one thread gives the bits of many") {
  for_some_routers([](const auto& scoring, const auto& top_k) {
    const mb::Router router{scoring, top_k, everything()};
    for (const std::int64_t tokens : {5600, 5601}) {  // enough for eight threads (tuning.hpp)
      Inputs inputs = full_inputs(33, tokens, 256, decltype(router)::k);
      inputs.sequences = tokens == 5600 ? 14 : 1;
      const Outcome alone = train(HostEngine{.threads = 1}, router, inputs);
      for (const int threads : {2, 3, 5, 8, 0}) {
        CAPTURE(threads);
        CHECK(same_bits(alone, train(HostEngine{.threads = threads}, router, inputs)));
      }
    }
  });
}

TEST_CASE("contract 8: every instruction set gives the same bits") {
  for_some_routers([](const auto& scoring, const auto& top_k) {
    const mb::Router router{scoring, top_k, everything()};
    for (const int experts : {24, 64, 72, 256, 896}) {
      for (const double spread : {1.0, 20.0}) {
        Inputs inputs = full_inputs(34, 60, experts, decltype(router)::k);
        for (double& logit : inputs.logits) logit *= spread;
        for (const Inputs& typed : {inputs, in_float64(inputs)}) {
          const Outcome baseline = train(HostEngine{.instructions = mb::InstructionSet::baseline}, router, typed);
          for (const mb::InstructionSet wider :
               {mb::InstructionSet::x86_64_v3, mb::InstructionSet::x86_64_v4, mb::InstructionSet::automatic}) {
            CHECK(same_bits(baseline, train(HostEngine{.instructions = wider}, router, typed)));
          }
        }
      }
    }
  });
}

TEST_CASE("contract 10: offsets beyond 2^31 elements reach the right rows") {
  // Rows 2^31 elements apart in reserved, untouched address space: any offset held in 32 bits lands elsewhere.
  constexpr std::int64_t stride = (std::int64_t{1} << 31) + 8;
  constexpr std::int64_t tokens = 3;
  constexpr std::int64_t experts = 16;
  const auto reserve = [](std::size_t bytes) {
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  };
  constexpr std::size_t bytes = static_cast<std::size_t>(tokens * stride) * 4;
  void* const blocks[] = {reserve(bytes), reserve(bytes), reserve(bytes), reserve(bytes), reserve(bytes)};
  for (void* const block : blocks) {
    if (block == MAP_FAILED) {
      MESSAGE("SKIPPED: this machine does not reserve 26 GB of address space");
      return;
    }
  }
  auto* const logits = static_cast<float*>(blocks[0]);
  auto* const ids = static_cast<std::int32_t*>(blocks[1]);
  auto* const weights = static_cast<float*>(blocks[2]);
  auto* const grad_weights = static_cast<float*>(blocks[3]);
  auto* const grad_logits = static_cast<float*>(blocks[4]);
  const Inputs inputs = normal_inputs(35, tokens, experts, 4);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t e = 0; e < experts; ++e)
      logits[t * stride + e] = static_cast<float>(inputs.logits[static_cast<std::size_t>(t * experts + e)]);
    for (std::int64_t k = 0; k < 4; ++k)
      grad_weights[t * stride + k] = static_cast<float>(inputs.grad_weights[static_cast<std::size_t>(t * 4 + k)]);
  }
  const mb::Router router{mb::Sigmoid{}, mb::TopK<4>{}};
  mb::ForwardArgs forward;
  forward.logits = mb::MatrixView<const float>(logits, tokens, experts, stride);
  forward.experts = {ids, tokens, 4, stride};
  forward.weights = mb::MatrixView<float>(weights, tokens, 4, stride);
  router.forward(forward, {}, mb::Host{.threads = 1});
  mb::BackwardArgs backward;
  backward.logits = forward.logits;
  backward.experts = mb::MatrixView<const std::int32_t>(ids, tokens, 4, stride);
  backward.grad_weights = mb::MatrixView<const float>(grad_weights, tokens, 4, stride);
  backward.grad_logits = mb::MatrixView<float>(grad_logits, tokens, experts, stride);
  router.backward(backward, {}, mb::Host{.threads = 1});

  const Outcome want = train(HostEngine{}, router, inputs);
  bool same = true;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t k = 0; k < 4; ++k) {
      same = same && ids[t * stride + k] == want.experts[static_cast<std::size_t>(t * 4 + k)];
      same = same && static_cast<double>(weights[t * stride + k]) == want.weights[static_cast<std::size_t>(t * 4 + k)];
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      same = same &&
             static_cast<double>(grad_logits[t * stride + e]) == want.grad_logits[static_cast<std::size_t>(t * experts + e)];
    }
  }
  CHECK(same);
  for (void* const block : blocks) munmap(block, bytes);
}

}  // namespace testing
