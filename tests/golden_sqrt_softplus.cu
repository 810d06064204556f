// golden_test's routers with SqrtSoftplus scoring, on a GPU.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

template golden::Answer golden::ask_sqrt_softplus(const testing::CudaEngine&, const golden::Task&);
