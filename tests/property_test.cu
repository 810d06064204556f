// Random problems on a GPU.
#include "engine_cuda.cuh"

#include "bodies/properties.hpp"

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(properties_softmax, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(properties_groups, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(properties_replay, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(properties_over_selected, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(properties_identity, CudaEngine);

}  // namespace testing
