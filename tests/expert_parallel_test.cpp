// Expert parallelism on the CPU.
#include "bodies/expert_parallel.hpp"
#include "engine_host.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(physical_by_rule, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(physical_hashed, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(local_ranges, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(tensor_masks, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_appended, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(splits, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(offsets_of_counts, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(received_rows_named, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(nothing_received, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(received_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(received_arguments, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(round_trip, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_errors, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_bad_ids, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(shared_ids, HostEngine);
TEST_CASE_TEMPLATE_INVOKE(parallel_overlaps, HostEngine);

/// Everything the calls write for so many tokens, on so many threads.
struct ParallelResults {
  std::vector<std::int32_t> physical, local, masked, all_ids;
  std::vector<float> all_weights;
  std::vector<std::int64_t> send_counts, send_offsets, receive_counts, receive_offsets;
  std::vector<std::int32_t> received;

  bool operator==(const ParallelResults&) const = default;
};

ParallelResults on_threads(int threads) {
  constexpr std::int64_t tokens = 30000;
  constexpr std::int64_t k = 3;
  constexpr int experts = 40;
  constexpr std::int64_t ranks = 70000;
  const mb::Host host{.threads = threads};
  for (const std::int64_t items : {tokens * k, ranks + 1}) {
    CHECK(mb::DispatchEngine<mb::Host>::for_items(items, host).blocks == std::min<std::int64_t>(threads, items / 16384));
  }
  Random random(88);
  std::vector<std::int32_t> ids, map, replicas;
  for (std::int64_t i = 0; i < tokens * k; ++i) ids.push_back(random.integer(-1, experts - 1));
  for (int e = 0; e < experts; ++e) replicas.push_back(random.integer(1, 4));
  for (int i = 0; i < experts * 4; ++i) map.push_back(random.integer(0, 99));
  std::vector<float> weights(ids.size());
  for (float& weight : weights) weight = static_cast<float>(random.uniform());
  const std::vector<std::uint8_t> active = random.flags(tokens, 0.3);
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t e = 0; e < 2 * ranks; ++e) offsets.push_back(offsets.back() + random.integer(0, 3));

  ParallelResults out;
  out.physical = out.local = out.masked = std::vector<std::int32_t>(ids.size(), 77);
  out.all_ids.assign(tokens * (k + 2), 77);
  out.all_weights.assign(tokens * (k + 2), 77);
  out.send_counts.assign(ranks, 77);
  out.send_offsets.assign(ranks + 1, 77);
  const mb::MatrixView<const std::int32_t> given(ids.data(), tokens, k);
  mb::physical_experts({.experts = given,
                        .physical_experts = {out.physical.data(), tokens, k},
                        .logical_to_physical = {map.data(), experts, 4},
                        .replica_count = {replicas.data(), experts},
                        .rank = 3},
                       {}, host);
  mb::local_experts(
      {.experts = given, .local_experts = {out.local.data(), tokens, k}, .first_expert = 10, .expert_count = 10}, {}, host);
  mb::tensor_parallel_mask({.experts = given,
                            .masked_experts = {out.masked.data(), tokens, k},
                            .experts_per_rank = 5,
                            .tensor_ranks = 2,
                            .tensor_rank = 1},
                           {}, host);
  mb::append_shared_experts({.experts = given,
                             .weights = mb::MatrixView<const float>(weights.data(), tokens, k),
                             .all_experts = {out.all_ids.data(), tokens, k + 2},
                             .all_weights = mb::MatrixView<float>(out.all_weights.data(), tokens, k + 2),
                             .first_shared = experts,
                             .active = active.data()},
                            {}, host);
  mb::rank_splits({.offsets = {offsets.data(), 2 * ranks + 1},
                   .send_counts = {out.send_counts.data(), ranks},
                   .send_offsets = {out.send_offsets.data(), ranks + 1}},
                  {}, host);

  constexpr std::int64_t sources = 100;
  std::vector<std::int64_t> counts;
  for (std::int64_t run = 0; run < sources * experts; ++run) counts.push_back(random.integer(0, 50));
  out.received.assign(sources * experts * 56, 77);
  out.receive_counts.assign(sources, 77);
  out.receive_offsets.assign(sources + 1, 77);
  const mb::Buffer<std::byte> scratch(mb::received_experts_workspace_bytes(sources, experts));
  mb::received_experts({.counts = mb::MatrixView<const std::int64_t>(counts.data(), sources, experts),
                        .experts = {out.received.data(), sources * experts * 56, 1},
                        .align = 8,
                        .receive_counts = {out.receive_counts.data(), sources},
                        .receive_offsets = {out.receive_offsets.data(), sources + 1}},
                       {scratch.data(), scratch.bytes()}, host);
  return out;
}

TEST_CASE("expert parallelism: any number of threads gives the same bits") {
  const ParallelResults one = on_threads(1);
  for (const int threads : {2, 4}) CHECK(on_threads(threads) == one);
}

}  // namespace testing
