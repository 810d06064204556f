// The other file of limited_experts_test, whose kernels serve all numbers of experts.
#include "engine_cuda.cuh"

#include "limited_experts.hpp"

namespace testing {
namespace {

/// A type of this file alone, so that no function that takes it is another file's.
struct ThisFile : CudaEngine {};

}  // namespace

Outcome trained_without_limits(const Inputs& inputs) {
  return train(ThisFile(), limited_router(), inputs);
}

}  // namespace testing
