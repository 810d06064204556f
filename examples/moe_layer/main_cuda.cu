// The layer on a GPU, with cuBLAS: moe_layer_cuda [tokens experts hidden inner]. Exit status 77 where there is no GPU.
#include <moe_balance/moe_balance.cuh>

#include "check.hpp"
#include "cublas_backend.cuh"
#include "options.hpp"

int main(int argc, char** argv) {
  moe_layer::LayerShape shape;
  if (!moe_layer::read_shape(argc, argv, shape)) return 2;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU\n");
    return 77;
  }
  return moe_layer::check_layer(moe_layer::CublasBackend{}, shape);
}
