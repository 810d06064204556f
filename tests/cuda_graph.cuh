// A CUDA graph of whatever a test enqueues.
#pragma once

#include "engine_cuda.cuh"

#include <memory>
#include <vector>

namespace testing {

/// What `enqueue` puts on the engine's stream. Capturing in global mode fails on any allocation, synchronisation or use of the default
/// stream.
template <class Enqueue>
std::shared_ptr<CUgraph_st> graph_of(const CudaEngine& engine, const Enqueue& enqueue) {
  cudaGraph_t graph = nullptr;
  cuda_check(cudaStreamBeginCapture(engine.place(), cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  enqueue();
  cuda_check(cudaStreamEndCapture(engine.place(), &graph), "cudaStreamEndCapture");
  return std::shared_ptr<CUgraph_st>(graph, [](cudaGraph_t held) { (void)cudaGraphDestroy(held); });
}

/// The same, ready to run.
template <class Enqueue>
std::shared_ptr<CUgraphExec_st> captured(const CudaEngine& engine, const Enqueue& enqueue) {
  cudaGraphExec_t executable = nullptr;
  cuda_check(cudaGraphInstantiate(&executable, graph_of(engine, enqueue).get(), 0), "cudaGraphInstantiate");
  return std::shared_ptr<CUgraphExec_st>(executable, [](cudaGraphExec_t held) { (void)cudaGraphExecDestroy(held); });
}

inline std::size_t nodes_of(const std::shared_ptr<CUgraph_st>& graph) {
  std::size_t count = 0;
  cuda_check(cudaGraphGetNodes(graph.get(), nullptr, &count), "cudaGraphGetNodes");
  return count;
}

/// Kernels among its nodes.
inline int kernels_of(const std::shared_ptr<CUgraph_st>& graph) {
  std::size_t count = nodes_of(graph);
  std::vector<cudaGraphNode_t> nodes(count);
  cuda_check(cudaGraphGetNodes(graph.get(), nodes.data(), &count), "cudaGraphGetNodes");
  int kernels = 0;
  for (const cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type{};
    cuda_check(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
    kernels += type == cudaGraphNodeTypeKernel ? 1 : 0;
  }
  return kernels;
}

/// Runs a graph on the engine's stream.
inline void replay(const CudaEngine& engine, const std::shared_ptr<CUgraphExec_st>& graph) {
  cuda_check(cudaGraphLaunch(graph.get(), engine.place()), "cudaGraphLaunch");
}

}  // namespace testing
