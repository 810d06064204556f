// golden_test's routers with Softmax scoring and a loss, on a GPU: apart, so that they compile beside the others.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

namespace golden {

template Answer ask_with_loss(const testing::CudaEngine&, mb::Softmax, mb::TopK<1>, Task);
template Answer ask_with_loss(const testing::CudaEngine&, mb::Softmax, mb::TopK<2>, Task);
template Answer ask_with_loss(const testing::CudaEngine&, mb::Softmax, mb::TopK<4>, Task);
template Answer ask_with_loss(const testing::CudaEngine&, mb::Softmax, mb::TopK<8>, Task);

}  // namespace golden
