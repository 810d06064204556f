// A kernel that has more registers than its tier's budget, because it forgot its launch bounds: resources.sh must find it.
#include <moe_balance/engine/tuning.hpp>

template <int Tier, bool Usual, class Problem>
__global__ void moe_balance_forward(Problem* values) {
  constexpr int count = 160;
  Problem own[count];
#pragma unroll
  for (int i = 0; i < count; ++i) own[i] = values[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) values[(i * 7 % count) * 1024 + threadIdx.x] = own[i] * own[(i + 1) % count];
}
template __global__ void moe_balance_forward<3, false, float>(float*);
