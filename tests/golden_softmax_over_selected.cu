// golden_test's routers with SoftmaxOverSelected scoring, on a GPU.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

template golden::Answer golden::ask_softmax_over_selected(const testing::CudaEngine&, const golden::Task&);
