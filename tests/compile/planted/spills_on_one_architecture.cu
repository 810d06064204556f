// A kernel whose registers last on every architecture but MOE_BALANCE_SPILLS_ON: resources.sh must find it there.
template <int Count>
__device__ void scatter(float* values) {
  float own[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i) own[i] = values[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; ++i) values[(i * 7 % Count) * 1024 + threadIdx.x] = own[i] * own[(i + 1) % Count];
}

__global__ void __launch_bounds__(1024, 1) spills_on_one_architecture(float* values) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  scatter<(__CUDA_ARCH__ == MOE_BALANCE_SPILLS_ON) ? 160 : 8>(values);
}
