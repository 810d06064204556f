// golden_test's routers with Softmax scoring, on a GPU; those with a loss are in golden_softmax_losses.cu.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

namespace golden {

extern template Answer ask_with_loss(const testing::CudaEngine&, mb::Softmax, mb::TopK<1>, Task);
extern template Answer ask_with_loss(const testing::CudaEngine&, mb::Softmax, mb::TopK<2>, Task);
extern template Answer ask_with_loss(const testing::CudaEngine&, mb::Softmax, mb::TopK<4>, Task);
extern template Answer ask_with_loss(const testing::CudaEngine&, mb::Softmax, mb::TopK<8>, Task);
template Answer ask_softmax(const testing::CudaEngine&, const Task&);

}  // namespace golden
