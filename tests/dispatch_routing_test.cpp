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
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_sums, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_arrivals, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_replay, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_capacity, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_margins, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(route_and_permute_overlaps, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(forward_and_permute_overlaps, HostEngine);

TEST_CASE("a GPU's fused calls route in no more blocks than run at the same time, and the workspace holds their counts") {
  using Parts = mb::detail::FusedParts;
  for (const bool large : {false, true}) {
    const std::int64_t most = large ? 128 : 256;
    for (std::int64_t tokens = 0; tokens <= 20000; tokens += 1 + tokens / 50) {
      for (const std::int64_t k : {1, 2, 8, 16}) {
        for (std::int64_t ranking = mb::permutation_parts(tokens * k);; ranking = (ranking + 1) / 2) {
          CAPTURE(large);
          CAPTURE(tokens);
          CAPTURE(k);
          CAPTURE(ranking);
          const Parts parts(tokens, ranking, large);
          CHECK((parts.blocks >= 1 && parts.blocks <= ranking));
          const std::int64_t wanted = std::clamp<std::int64_t>(tokens / 16, 1, most);
          CHECK((parts.rows() >= wanted && parts.rows() < wanted + parts.rows_per_block));
          CHECK(parts.rows() <= Parts::most_rows(tokens, k));
          if (ranking == 1) break;
        }
      }
    }
  }
  CHECK(Parts(5000, 78, true).rows() == 128);
  CHECK(Parts(8191, 127, true).rows() == 128);
  CHECK(Parts(8191, 127, false).rows() == 258);
}

TEST_CASE("workspace for some number of tokens serves fewer") {
  const mb::Router plain{mb::Softmax{}, mb::TopK<2>{}};
  const mb::Router with_loss{mb::Softmax{}, mb::TopK<8>{}, mb::AuxLoss{}};
  const mb::Router with_capacity{mb::Softmax{}, mb::WithCapacity<mb::TopK<4>>{}, mb::SequenceLoss{}};
  const auto check = [](const char* label, const auto& bytes_of) {
    CAPTURE(label);
    std::size_t most = 0;
    for (std::int64_t tokens = 0; tokens <= 20000; ++tokens) {
      const std::size_t bytes = bytes_of(tokens);
      if (bytes < most) FAIL_CHECK("fewer bytes for ", tokens, " tokens than for fewer");
      most = std::max(most, bytes);
    }
  };
  check("plain", [&](std::int64_t tokens) { return mb::route_and_permute_workspace_bytes(plain, {tokens, 64}); });
  check("loss", [&](std::int64_t tokens) { return mb::route_and_permute_workspace_bytes(with_loss, {tokens, 64}); });
  check("capacity", [&](std::int64_t tokens) { return mb::route_and_permute_workspace_bytes(with_capacity, {tokens, 64}); });
  check("router", [&](std::int64_t tokens) { return with_capacity.workspace_bytes({tokens, 64}); });
  check("counted", [&](std::int64_t tokens) { return mb::permutation_workspace_bytes(tokens, 4, 64); });
  check("sorted", [&](std::int64_t tokens) { return mb::permutation_workspace_bytes(tokens, 4, 5000); });
  check("limit", [&](std::int64_t tokens) { return mb::capacity_workspace_bytes(tokens, 4, 64); });
}

}  // namespace testing
