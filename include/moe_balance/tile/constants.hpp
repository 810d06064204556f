// Limits as variables: std::numeric_limits has functions, which nvcc does not call from device code.
#pragma once

#include <moe_balance/config.hpp>

#include <limits>

MOEB_NAMESPACE_BEGIN

template <class Real>
inline constexpr Real infinity = std::numeric_limits<Real>::infinity();
template <class Real>
inline constexpr Real quiet_nan = std::numeric_limits<Real>::quiet_NaN();
template <class Integer>
inline constexpr Integer largest = std::numeric_limits<Integer>::max();

MOEB_NAMESPACE_END
