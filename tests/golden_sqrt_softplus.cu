// golden_test's routers with SqrtSoftplus scoring, on a GPU; those with a loss are in golden_sqrt_softplus_losses.cu.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

namespace golden {

extern template Answer ask_with_loss(const testing::CudaEngine&, mb::SqrtSoftplus, mb::TopK<2>, Task);
extern template Answer ask_with_loss(const testing::CudaEngine&, mb::SqrtSoftplus, mb::TopK<4>, Task);
extern template Answer ask_with_loss(const testing::CudaEngine&, mb::SqrtSoftplus, mb::TopK<8>, Task);
template Answer ask_sqrt_softplus(const testing::CudaEngine&, const Task&);

}  // namespace golden
