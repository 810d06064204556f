// A value that a GPU's compiler must take as it is: it can neither compute it again, in place of keeping it in a register, nor ahead of a branch
// what only that branch needs of it.
#pragma once

#include <moe_balance/config.hpp>

#include <cstdint>

MOEB_NAMESPACE_BEGIN

[[nodiscard]] MOEB_INLINE std::int32_t opaque(std::int32_t value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}
[[nodiscard]] MOEB_INLINE std::int64_t opaque(std::int64_t value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(value));
#endif
  return value;
}

MOEB_NAMESPACE_END
