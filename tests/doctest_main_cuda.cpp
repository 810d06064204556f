// doctest's main for the tests that need a GPU: without one they exit with 77, which ctest reports as skipped. A .cpp, because
// nvcc takes 5 s longer on doctest's implementation.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <cstdio>

int main(int argc, char** argv) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no CUDA device (%s)\n", cudaGetErrorString(error));
    return 77;
  }
  doctest::Context context;
  context.setOption("duration", true);  // bench/gpu_check.sh names the slow ones
  context.applyCommandLine(argc, argv);
  return context.run();
}
