// A token's arrivals: the devices that hold its chosen experts, each counted once, by the first of them.
#pragma once

#include <moe_balance/tile/constants.hpp>

#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/concepts.hpp>

#include <cstdint>
#include <type_traits>

MOEB_NAMESPACE_BEGIN

/// As count_arrivals_of where a lane has all choices and its sink adds numbers: no division by the devices' size, and no branch on what was chosen.
template <class ChosenT, class Sink>
MOEB_INLINE void count_arrivals_in_memory(int experts_of_device, const ChosenT& chosen, Sink& sink) {
  constexpr int bits = 22;  // the reciprocal is too large by 1 at most, which max_experts do not see
  const auto reciprocal = static_cast<std::uint64_t>((1 << bits) / experts_of_device + 1);
  std::int32_t device[ChosenT::per_lane];
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    device[r] = chosen.expert[r] < 0
                    ? -1
                    : static_cast<std::int32_t>(static_cast<std::uint64_t>(chosen.expert[r]) * reciprocal >> bits);
  }
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    int is_first = static_cast<int>(device[r] >= 0);
    MOEB_UNROLL
    for (int other = 0; other < r; ++other) is_first &= static_cast<int>(device[other] != device[r]);
    sink.arrivals_of(chosen.expert[r], is_first);
  }
}

/// As count_arrivals_of by lanes that share the choices.
template <int K, class TileT, class ChosenT, class Sink>
MOEB_INLINE void count_arrivals_on_tile(const TileT& tile, int experts_of_device, const ChosenT& chosen, Sink& sink) {
  int device[ChosenT::per_lane];
  bool is_first[ChosenT::per_lane];
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    is_first[r] = chosen.expert[r] >= 0;
    device[r] = is_first[r] ? chosen.expert[r] / experts_of_device : -1;
  }
  MOEB_UNROLL
  for (int k = 0; k < K - 1; ++k) {
    const int other = tile.shuffle(device[k / TileT::width], k % TileT::width);
    MOEB_UNROLL
    for (int r = 0; r < ChosenT::per_lane; ++r) {
      if (ChosenT::rank(tile, r) > k && other == device[r]) is_first[r] = false;
    }
  }
  MOEB_UNROLL
  for (int r = 0; r < ChosenT::per_lane; ++r) {
    if (is_first[r]) sink.arrival(chosen.expert[r]);
  }
}

/// Reports to the sink each chosen expert that is the token's first on its device, for a loss that counts those.
template <class Problem, class TileT, class ChosenT, class Sink>
MOEB_INLINE void count_arrivals_of(const Problem& problem, const TileT& tile, const ChosenT& chosen, Sink& sink) {
  constexpr int k_count = decltype(problem.top_k)::k;
  for_each_part(problem.balancer, [&](const auto& part) MOEB_LAMBDA {
    if constexpr (counts_arrivals<std::remove_cvref_t<decltype(part)>>) {
      const int experts_of_device = static_cast<int>(problem.logits.columns) / static_cast<int>(part.devices);
      if constexpr (!TileT::slots_in_registers && requires { sink.arrivals_of(0, 0); })
        count_arrivals_in_memory(experts_of_device, chosen, sink);
      else
        count_arrivals_on_tile<k_count>(tile, experts_of_device, chosen, sink);
    }
  });
}

MOEB_NAMESPACE_END
