// compare_dispatch.hpp in CUDA: calls are enqueued on the stream in Call::place. All cases have 256 experts, and kernels are compiled for no others.
#define MOE_BALANCE_CUDA_MIN_EXPERTS 256
#define MOE_BALANCE_CUDA_MAX_EXPERTS 256
#include "compare_library.hpp"

#include <moe_balance/moe_balance.cuh>

namespace {

cudaStream_t place_of(const compare::Call& call) {
  return reinterpret_cast<cudaStream_t>(call.place);
}

}  // namespace

#include "compare_dispatch.hpp"
