// Bad arguments in CUDA. Options that are not finite are looked at before a place is: error_test.cpp alone has these.
#include "engine_cuda.cuh"

#include "bodies/errors.hpp"
#include "bodies/router_overlaps.hpp"

#include <atomic>
#include <thread>

namespace testing {

TEST_CASE_TEMPLATE_INVOKE(errors_null, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_misaligned, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_shape, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_views, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_types, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_sequences, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_groups, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_replay, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_route, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_backward, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_one, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_loss, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_update, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_margins, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(errors_none, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(router_overlaps, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(router_overlaps_in_part, CudaEngine);
TEST_CASE_TEMPLATE_INVOKE(router_interleaved, CudaEngine);

TEST_CASE("a stream that was asked while it had work to do leaves no error for the next call") {
  const CudaEngine engine;
  Memory<CudaEngine> memory = memory_for(engine, error_router(), error_inputs());
  std::atomic<bool> may_end{false};
  const auto wait_for_flag = [](void* flag) {
    while (!*static_cast<std::atomic<bool>*>(flag)) std::this_thread::yield();
  };
  cuda_check(cudaLaunchHostFunc(engine.place(), wait_for_flag, &may_end), "cudaLaunchHostFunc");
  CHECK(cudaStreamQuery(engine.place()) == cudaErrorNotReady);
  MESSAGE("left behind: " << cudaGetErrorName(cudaPeekAtLastError()));  // not by every runtime
  CHECK_NOTHROW(error_router().route(memory.route_args(), memory.workspace(), engine.place()));
  may_end = true;
  engine.wait();
}

}  // namespace testing
