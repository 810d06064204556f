// Built without optimisation, as users build to debug: calls leave the upper halves of vector registers clear, or all that the program does with older
// instructions afterwards is many times slower.
#include <moe_balance/moe_balance.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

namespace mb = moe_balance;

#if defined(__x86_64__)
/// Whether the processor says which of its registers are in use, beside whether it has those of AVX.
bool knows_registers_in_use() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool has_avx = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_AVX) != 0 && (c & bit_OSXSAVE) != 0;
  return has_avx && __get_cpuid_count(0xd, 1, &a, &b, &c, &d) != 0 && (a & 4u) != 0;  // XGETBV with ECX = 1
}

/// Whether an upper half of a 32-byte register is.
bool has_wide_registers_in_use() {
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  return (low & 4u) != 0;
}

__attribute__((target("avx"))) void use_wide_registers() {
  __asm__ volatile("vcmpps $15, %%ymm0, %%ymm0, %%ymm0" : : : "xmm0");  // all ones
}
__attribute__((target("avx"))) void clear_wide_registers() {
  __asm__ volatile("vzeroupper" : : :);
}

template <class Router>
void check_leaves_clear(const Router& router, mb::InstructionSet instructions) {
  constexpr std::int64_t tokens = 64, k = Router::k;
  for (const int experts : {8, 128}) {
    std::vector<float> logits(static_cast<std::size_t>(tokens * experts), 0.5f), grad_logits(logits.size());
    std::vector<float> weights(tokens * k), grad_weights(tokens * k, 1.0f);
    std::vector<std::int32_t> ids(tokens * k);
    const mb::Saved saved{router, mb::Shape{.tokens = tokens, .experts = experts}};
    const mb::Host place{.instructions = instructions};
    const mb::MatrixView rows(logits.data(), tokens, experts), weight_rows(weights.data(), tokens, k);
    clear_wide_registers();
    router.forward({.logits = rows, .experts = {ids.data(), tokens, k}, .weights = weight_rows, .saved = saved.ref()}, {},
                   place);
    CHECK_FALSE(has_wide_registers_in_use());
    router.backward({.logits = rows,
                     .experts = mb::MatrixView(ids.data(), tokens, k),
                     .grad_weights = mb::MatrixView(grad_weights.data(), tokens, k),
                     .grad_logits = mb::MatrixView(grad_logits.data(), tokens, experts),
                     .saved = saved.ref()},
                    {}, place);
    CHECK_FALSE(has_wide_registers_in_use());
  }
}

TEST_CASE("without optimisation: a call leaves no wide register in use") {
  if (!knows_registers_in_use()) return;
  use_wide_registers();
  REQUIRE(has_wide_registers_in_use());  // the test sees them
  for (const mb::InstructionSet instructions :
       {mb::InstructionSet::baseline, mb::InstructionSet::x86_64_v3, mb::InstructionSet::automatic}) {
    check_leaves_clear(mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::AuxLoss{}}, instructions);
    check_leaves_clear(mb::Router{mb::Sigmoid{}, mb::GroupLimitedTopK<4>{.groups = 4, .groups_kept = 2}, mb::AuxLoss{}},
                       instructions);
  }
}
#else
TEST_CASE("without optimisation: other processors have no such state") {}
#endif

}  // namespace
