// golden_test's routers behind Sinkhorn's scales, on a GPU.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

template golden::SinkhornAnswer golden::sinkhorn_on(const testing::CudaEngine&, const golden::SinkhornTask&);
