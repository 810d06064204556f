// What two files with different limits of experts share.
#pragma once

#include "bodies/everything.hpp"

namespace testing {

inline auto limited_router() {
  return mb::Router{mb::Softmax{}, mb::TopK<4>{}, everything()};
}

/// In a file whose kernels serve all numbers of experts.
Outcome trained_without_limits(const Inputs& inputs);

}  // namespace testing
