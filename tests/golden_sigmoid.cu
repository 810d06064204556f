// golden_test's routers with Sigmoid scoring, on a GPU; those with a loss are in golden_sigmoid_losses.cu.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

namespace golden {

extern template Answer ask_with_loss(const testing::CudaEngine&, mb::Sigmoid, mb::TopK<2>, Task);
extern template Answer ask_with_loss(const testing::CudaEngine&, mb::Sigmoid, mb::TopK<4>, Task);
extern template Answer ask_with_loss(const testing::CudaEngine&, mb::Sigmoid, mb::TopK<8>, Task);
template Answer ask_sigmoid(const testing::CudaEngine&, const Task&);

}  // namespace golden
