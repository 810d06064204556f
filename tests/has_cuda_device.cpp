// Exits with 0 where a CUDA device can be used, otherwise says why not and exits with 77, which ctest reports as skipped.
#include <cuda_runtime_api.h>

#include <cstdio>

int main() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return 0;
  std::printf("SKIPPED: no CUDA device (%s)\n", cudaGetErrorString(error));
  return 77;
}
