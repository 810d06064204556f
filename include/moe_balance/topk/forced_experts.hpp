// Ids for Replay that no router has chosen: even, random or as uneven as asked for. For benchmarks of what comes behind a router (experts, communication)
// before there is a trained one, never for training. On the host; for a GPU the ids are copied there, once for all steps.
//
//   mb::force_max_violation(ids, experts, 1.5);  // the busiest expert has 2.5 times the mean
//   router.forward({..., .replay = {.experts = ids}}, workspace, place);  // mb::Replay{mb::TopK<8>{}}
//
// Takes the place of Megatron-Core's moe_router_force_load_balancing, which chooses by random logits: there weights come from these, and groups limit the
// choice; here weights are those of the router's own scores, and ids know no groups. They are the same on every machine.
#pragma once

#include <moe_balance/error.hpp>
#include <moe_balance/top_k_concepts.hpp>
#include <moe_balance/views.hpp>

#include <cstdint>
#include <string>

MOEB_NAMESPACE_BEGIN

/// \cond
inline void check_forced(const char* call, const MatrixView<std::int32_t>& ids, int experts) {
  constexpr std::int64_t most_tokens = std::int64_t{1} << 40;
  MOEB_EXPECTS(ids.rows >= 0 && ids.rows <= most_tokens, call, ArgumentName("ids", "rows"), ids.rows, "0 to ", most_tokens);
  MOEB_EXPECTS(ids.columns >= 1 && ids.columns <= max_top_k, call, ArgumentName("ids", "columns"), ids.columns, "1 to ",
               max_top_k);
  constexpr int most_experts = 1 << 20;
  MOEB_EXPECTS(experts >= ids.columns && experts <= most_experts, call, "experts", experts, ids.columns,
               " (the columns of ids) to ", most_experts);
  MOEB_EXPECTS(ids.rows == 0 || ids.data != nullptr, call, ArgumentName("ids", "data"), "null",
               "a pointer to the caller's memory, on the host");
  MOEB_EXPECTS(ids.stride >= ids.columns, call, ArgumentName("ids", "stride"), ids.stride, ids.columns, " or more");
}

// SplitMix64's function of a counter: bits that depend on nothing else.
[[nodiscard]] inline std::uint64_t mixed_bits(std::uint64_t counter) {
  std::uint64_t value = counter * 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}
/// \endcond

/// Each expert in turn: ids [T, K] in host memory become first_slot, first_slot + 1, ..., modulo `experts`, so that counts differ by at most 1. A rank whose
/// tokens follow those of others gives the number of their slots. Errors: InvalidArgument.
inline void force_round_robin(const MatrixView<std::int32_t>& ids, int experts, std::int64_t first_slot = 0) {
  check_forced("force_round_robin", ids, experts);
  MOEB_EXPECTS(first_slot >= 0, "force_round_robin", "first_slot", first_slot, "0 or more");
  auto next = static_cast<int>(first_slot % experts);
  for (std::int64_t t = 0; t < ids.rows; ++t) {
    for (std::int64_t k = 0; k < ids.columns; ++k) {
      ids.data[t * ids.stride + k] = next;
      next = next + 1 == experts ? 0 : next + 1;
    }
  }
}

/// Any K experts with the same chance, for each token anew: the ids of token t depend on seed, E, K and first_token + t alone. Counts vary as chance has it
/// (expected_max_violation). Errors: InvalidArgument.
inline void force_uniform(const MatrixView<std::int32_t>& ids, int experts, std::uint64_t seed,
                          std::int64_t first_token = 0) {
  check_forced("force_uniform", ids, experts);
  MOEB_EXPECTS(first_token >= 0, "force_uniform", "first_token", first_token, "0 or more");
  for (std::int64_t t = 0; t < ids.rows; ++t) {
    const std::uint64_t stream =
        mixed_bits(mixed_bits(seed) + static_cast<std::uint64_t>(first_token) + static_cast<std::uint64_t>(t));
    std::int32_t* const row = ids.data + t * ids.stride;
    // Floyd's sampling: the k-th choice is among the first E - K + k + 1, and the last of these where it is taken already. The multiplication takes a number
    // below `among` from 32 bits, uneven by less than E / 2^32. Then a place for it at random: slots are ranks.
    for (std::int64_t k = 0; k < ids.columns; ++k) {
      const auto among = static_cast<std::uint64_t>(experts - ids.columns + k + 1);
      const std::uint64_t bits = mixed_bits(stream + static_cast<std::uint64_t>(k));
      auto expert = static_cast<std::int32_t>((bits >> 32) * among >> 32);
      for (std::int64_t i = 0; i < k; ++i) {
        if (row[i] != expert) continue;
        expert = static_cast<std::int32_t>(among - 1);
        break;
      }
      const auto place = static_cast<std::int64_t>((bits & 0xffffffffu) * static_cast<std::uint64_t>(k + 1) >> 32);
      if (place < k) row[k] = row[place];
      row[place] = expert;
    }
  }
}

/// Expert 0 is the busiest, with (1 + max_violation) times the mean, rounded to whole tokens, and the others share what is left evenly. 0 to E / K - 1: an
/// expert has each token once at most. Errors: InvalidArgument.
inline void force_max_violation(const MatrixView<std::int32_t>& ids, int experts, double max_violation) {
  const char* const call = "force_max_violation";
  check_forced(call, ids, experts);
  const double most = static_cast<double>(experts) / static_cast<double>(ids.columns) - 1;
  constexpr double of_a_float = 1 + 1e-6;  // a limit that went through one
  MOEB_EXPECTS(max_violation >= 0 && max_violation <= most * of_a_float, call, "max_violation",
               std::to_string(max_violation), "0 to ", std::to_string(most), " (experts / K - 1)");
  const double mean_share = static_cast<double>(ids.columns) / experts;  // of the tokens, that an expert has on average
  const double wanted = (1 + max_violation) * mean_share;
  const double share = wanted < 1 ? wanted : 1;
  int next = 0;  // of the others
  const auto busiest_before = [&](std::int64_t tokens) {
    const auto count = static_cast<std::int64_t>(share * static_cast<double>(tokens) + 0.5);
    return count < tokens ? count : tokens;
  };
  for (std::int64_t t = 0; t < ids.rows; ++t) {
    std::int32_t* const row = ids.data + t * ids.stride;
    std::int64_t k = 0;
    // Where K = E each token has every expert.
    if (busiest_before(t + 1) > busiest_before(t) || ids.columns == experts) row[k++] = 0;
    for (; k < ids.columns; ++k) {
      row[k] = 1 + next;
      next = next + 2 >= experts ? 0 : next + 1;
    }
  }
}

MOEB_NAMESPACE_END
