// golden_test's routers with Softmax scoring, on a GPU.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

template golden::Answer golden::ask_softmax(const testing::CudaEngine&, const golden::Task&);
