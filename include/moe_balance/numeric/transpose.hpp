// Four vectors of four numbers, rows to columns.
#pragma once

#include <moe_balance/config.hpp>

MOEB_NAMESPACE_BEGIN

/// Number c of each of four vectors becomes vector c. `Four`: a vector of four numbers (__attribute__((vector_size(16)))).
template <class Four>
__attribute__((always_inline)) inline void transpose_four(Four& a, Four& b, Four& c, Four& d) {
  const Four ab_low = {a[0], b[0], a[1], b[1]};
  const Four ab_high = {a[2], b[2], a[3], b[3]};
  const Four cd_low = {c[0], d[0], c[1], d[1]};
  const Four cd_high = {c[2], d[2], c[3], d[3]};
  a = Four{ab_low[0], ab_low[1], cd_low[0], cd_low[1]};
  b = Four{ab_low[2], ab_low[3], cd_low[2], cd_low[3]};
  c = Four{ab_high[0], ab_high[1], cd_high[0], cd_high[1]};
  d = Four{ab_high[2], ab_high[3], cd_high[2], cd_high[3]};
}

MOEB_NAMESPACE_END
