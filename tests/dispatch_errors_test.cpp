// Bad arguments of dispatch on the CPU.
#include "engine_host.hpp"

#include "bodies/dispatch_errors.hpp"

#include <cmath>
#include <cstdint>
#include <string>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_permutation, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_overlap, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_columns_of_one_table, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_every_overlap, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_rows, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_identity, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(dispatch_errors_indices, HostEngine);

namespace {

template <class Function>
void refuses_size(const std::string& what, const Function& f) {
  CAPTURE(what);
  std::string message;
  try {
    static_cast<void>(f());
  } catch (const mb::InvalidArgument& error) {
    message = error.what();
  }
  CHECK(message.find(what) != std::string::npos);
  CHECK(message.find("; allowed: ") != std::string::npos);
}

}  // namespace

TEST_CASE("a workspace of any size is kept apart from what the call writes") {
  std::vector<std::int32_t> ids{0, 1, 1, 0};
  std::vector<std::int64_t> memory(400, 77);
  for (const std::size_t bytes : {std::size_t{1600}, std::size_t{1} << 63, ~std::size_t{0}}) {
    CHECK_THROWS_WITH_AS(
        mb::permutation({.experts = {ids.data(), 4, 1},
                         .offsets = {memory.data() + 201, 3},
                         .row_of_slot = {memory.data() + 210, 4, 1},
                         .slot_of_row = {memory.data() + 220, 4}},
                        {memory.data() + (reinterpret_cast<std::uintptr_t>(memory.data()) % 16 == 0 ? 180 : 181), bytes},
                        mb::Host{}),
        doctest::Contains("offsets is memory that workspace shares"), mb::InvalidArgument);
  }
  CHECK(memory == std::vector<std::int64_t>(400, 77));
}

TEST_CASE("who asks for sizes with bad ones is refused, as by the calls that the sizes are for") {
  constexpr std::int64_t huge = std::int64_t{1} << 62;
  const std::string huge_text = std::to_string(huge);
  refuses_size("permutation_rows: align is 0", [] { return mb::permutation_rows(4, 2, 8, 0); });
  refuses_size("permutation_rows: align is -4", [] { return mb::permutation_rows(4, 2, 8, -4); });
  refuses_size("permutation_rows: tokens is " + huge_text, [] { return mb::permutation_rows(huge, 4, 8); });
  refuses_size("permutation_rows: tokens is -5", [] { return mb::permutation_rows(-5, 4, 8, 16); });
  refuses_size("permutation_rows: k is 0", [] { return mb::permutation_rows(4, 0, 8); });
  refuses_size("permutation_rows: experts is 0", [] { return mb::permutation_rows(4, 2, 0); });
  refuses_size("permutation_workspace_bytes: tokens is " + huge_text,
               [] { return mb::permutation_workspace_bytes(huge, 4, 8); });
  refuses_size("permutation_workspace_bytes: experts is " + std::to_string(mb::max_dispatch_experts + 1),
               [] { return mb::permutation_workspace_bytes(4, 4, mb::max_dispatch_experts + 1); });
  refuses_size("capacity_workspace_bytes: tokens is -1", [] { return mb::capacity_workspace_bytes(-1, 4, 8); });
  for (const double factor : {double{NAN}, 0.0, -1.0, double{INFINITY}, 1e30})
    refuses_size("expert_capacity: capacity_factor is " + std::to_string(factor),
                 [=] { return mb::expert_capacity(16, 2, 8, factor); });
  refuses_size("expert_capacity: tokens is " + huge_text, [] { return mb::expert_capacity(huge, 2, 8, 1.0); });
  refuses_size("expert_capacity: tokens is " + std::to_string(huge / 8),
               [] { return mb::expert_capacity(huge / 8, 2, 1, 1e6); });
  refuses_size("expert_capacity: experts is 0", [] { return mb::expert_capacity(16, 2, 0, 1.0); });
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}};
  refuses_size("route_and_permute_workspace_bytes: tokens is " + huge_text, [&] {
    return mb::route_and_permute_workspace_bytes(router, {huge, 8});
  });
  refuses_size("route_and_permute_workspace_bytes: experts is 0", [&] {
    return mb::route_and_permute_workspace_bytes(router, {4, 0});
  });
  refuses_size("route_and_permute_workspace_bytes: top_k.k is 2; allowed: 1", [&] {
    return mb::route_and_permute_workspace_bytes(router, {4, 1});
  });
  refuses_size("rows_per_expert: align is 0", [] {
    return mb::WithCapacity<mb::TopK<2>>{.pad = true}.rows_per_expert({16, 8}, 0);
  });

  CHECK(mb::permutation_rows(0, 2, 8, 16) == 0);
  CHECK(mb::permutation_rows(std::int64_t{1} << 37, 1, 8) == std::int64_t{1} << 37);
  CHECK(mb::permutation_rows(4, 2, mb::max_dispatch_experts, std::int64_t{1} << 30) == std::int64_t{8} << 30);
  CHECK(mb::expert_capacity(0, 2, 8, 1.0) == 1);
  CHECK(mb::expert_capacity(16, 2, 8, 1e6) == 4000000);
}

}  // namespace testing
