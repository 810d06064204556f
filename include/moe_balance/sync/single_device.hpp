// SingleDevice: one rank; the sum over ranks is the counts themselves. The default.
#pragma once

#include <moe_balance/sync_concepts.hpp>
#include <moe_balance/views.hpp>

MOEB_NAMESPACE_BEGIN

struct SingleDevice {
  [[nodiscard]] constexpr int ranks() const { return 1; }
  template <class Place>
  constexpr void start(std::int64_t* /*counts*/, std::int64_t /*n*/, const Place& /*place*/) const {}
  template <class Place>
  constexpr void finish(std::int64_t* /*counts*/, const Place& /*place*/) const {}
};
static_assert(SyncPolicyOn<SingleDevice, Host>);

MOEB_NAMESPACE_END
