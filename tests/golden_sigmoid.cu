// golden_test's routers with Sigmoid scoring, on a GPU.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

template golden::Answer golden::ask_sigmoid(const testing::CudaEngine&, const golden::Task&);
