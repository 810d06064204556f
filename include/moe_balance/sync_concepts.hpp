// What a sync policy must offer.
#pragma once

#include <moe_balance/config.hpp>

#include <concepts>
#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Knows its ranks. A policy is a handle that is cheap to copy; what it needs while sums are under way lies in an object that all copies
/// share. Kernels never see it.
template <class S>
concept SyncPolicy = std::copy_constructible<S> && requires(const S sync) {
  { sync.ranks() } -> std::convertible_to<int>;
};

/// Sums integer counts over ranks, in the order of `place` (a CUDA stream or Host). Asserted by the calls, for the place they run in:
/// a policy may serve one only.
/// `start` may return before the sum is there, and others may be started before it is finished; until then `counts` belongs to the
/// policy. What is enqueued or run after `finish` of the same pointer sees the sum in `counts`; `finish` of a pointer that no sum
/// is under way for does nothing. All ranks start the same sums in the same order. Optional: `sync.is_started(counts)`, whether one is.
template <class S, class Place>
concept SyncPolicyOn = SyncPolicy<S> && requires(const S sync, std::int64_t* counts, std::int64_t n, const Place place) {
  {sync.start(counts, n, place)};
  {sync.finish(counts, place)};
};

/// What a kernel may read to learn that a sum over ranks has failed, though its stream went on: not 0 then. Null where the policy has no
/// `failure_flag()`: its finish raises instead.
template <class S>
[[nodiscard]] const std::int32_t* failure_flag_of(const S& sync) {
  if constexpr (requires { sync.failure_flag(); })
    return sync.failure_flag();
  else
    return nullptr;
}

/// Whether a sum of `counts` has been started and not been finished, where the policy can tell.
template <class S>
[[nodiscard]] bool may_be_started(const S& sync, const std::int64_t* counts) {
  if constexpr (requires { sync.is_started(counts); })
    return sync.is_started(counts);
  else
    return true;
}

MOEB_NAMESPACE_END
