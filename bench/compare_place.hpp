// Where the CPU libraries that are compared with PyTorch run: on as many threads as a call says; with -fopenmp on OpenMP's.
#pragma once

#include "compare_library.hpp"

namespace {

moe_balance::Host place_of(const compare::Call& call) {
#ifdef _OPENMP
  static constexpr auto on_openmp = [](int parts, const auto& part) {
#pragma omp parallel for schedule(static, 1)  // a team of another size would cost PyTorch, whose threads these are, new ones
    for (int i = 0; i < parts; ++i) part(i);
  };
  return {.threads = static_cast<int>(call.place), .executor = moe_balance::executor_of(on_openmp)};
#else
  return {.threads = static_cast<int>(call.place)};
#endif
}

}  // namespace
