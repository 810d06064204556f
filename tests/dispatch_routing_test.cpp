// Routing and its permutation in one call, on the CPU.
#include "engine_host.hpp"

#include "bodies/forward_and_permute.hpp"
#include "bodies/fused_overlaps.hpp"
#include "bodies/route_and_permute.hpp"

#include <algorithm>
#include <cstdint>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(route_and_permute_same, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_same, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_sizes, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_replay, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_capacity, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_overlaps, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_overlaps, HostEngine);

TEST_CASE("a GPU's fused calls route in no more blocks than run at the same time, and rank all of their tokens") {
  for (const int experts : {64, 512, 513, 2048}) {
    const std::int64_t most = experts <= 512 ? 128 : 256;
    for (std::int64_t tokens = 0; tokens <= 20000; tokens += 1 + tokens / 50) {
      for (const std::int64_t k : {1, 2, 8, 16}) {
        CAPTURE(experts);
        CAPTURE(tokens);
        CAPTURE(k);
        const mb::detail::FusedParts parts({tokens, experts}, k);
        CHECK(parts.rows() == parts.blocks * parts.rows_per_block);
        CHECK((parts.blocks >= 1 && parts.blocks <= 128));
        const std::int64_t wanted = std::clamp<std::int64_t>(tokens / 16, 1, most);
        CHECK((parts.rows() >= wanted && parts.rows() < wanted + parts.rows_per_block));
      }
    }
  }
  CHECK(mb::detail::FusedParts({5000, 256}, 8).rows() == 128);
  CHECK(mb::detail::FusedParts({8191, 256}, 8).rows() == 128);
  CHECK(mb::detail::FusedParts({8191, 896}, 8).rows() == 258);
}

}  // namespace testing
