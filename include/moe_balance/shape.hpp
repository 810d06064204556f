// The size of one routing problem.
#pragma once

#include <moe_balance/config.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

/// Logits are [tokens, experts]. `tokens` may be 0; `experts` is 1 to 2048 (see engine/tuning.hpp).
/// `sequences` is 1 unless a SequenceLoss is used.
struct Shape {
  std::int64_t tokens = 0;     ///< T
  int experts = 0;             ///< E
  std::int64_t sequences = 1;  ///< of the batch
};

MOEB_NAMESPACE_END
