// golden_test's CUDA subject: none where there is no device.
#include "engine_cuda.cuh"
#include "golden_router.hpp"

#include <memory>
#include <string>

namespace golden {

extern template Answer ask_softmax(const testing::CudaEngine&, const Task&);
extern template Answer ask_softmax_over_selected(const testing::CudaEngine&, const Task&);
extern template Answer ask_sigmoid(const testing::CudaEngine&, const Task&);
extern template Answer ask_sqrt_softplus(const testing::CudaEngine&, const Task&);
extern template SinkhornAnswer sinkhorn_on(const testing::CudaEngine&, const SinkhornTask&);

std::unique_ptr<Subject> cuda_subject(std::string& why_not);
std::unique_ptr<Subject> cuda_subject(std::string& why_not) {
  why_not = testing::cuda_skip_reason();
  if (!why_not.empty()) return nullptr;
  return std::make_unique<RouterSubject<testing::CudaEngine>>(testing::CudaEngine{});
}

}  // namespace golden
