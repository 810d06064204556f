// One call of update on arrays of the host.
#pragma once

#include "everything.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace testing {

/// Runs update and returns the bias, with what its rule keeps behind it, and the load as they lie there afterwards.
struct Updated {
  std::vector<float> bias;
  std::vector<std::int64_t> load;
};
template <class Engine, class Router>
Updated update(const Engine& engine, const Router& router, std::vector<float> bias, std::vector<std::int64_t> load,
               std::int64_t layers = 1) {
  const int bins = router.load_bins();
  const int experts = static_cast<int>(static_cast<std::int64_t>(load.size()) / layers / (1 + bins));
  typename Engine::template Array<float> bias_memory(engine, bias);
  typename Engine::template Array<std::int64_t> load_memory(engine, load);
  const std::size_t bytes = router.workspace_bytes(mb::Shape{.tokens = 0, .experts = experts});
  typename Engine::template Array<std::max_align_t> scratch(
      engine, std::vector<std::max_align_t>(bytes / sizeof(std::max_align_t) + 1));
  const mb::BiasRef bias_ref =
      bias.empty() ? mb::BiasRef{} : mb::BiasRef(bias_memory.data(), experts, layers).with_memory(Router::bias_memory);
  router.update(bias_ref, mb::LoadRef::with_bins(load_memory.data(), bins, experts, layers),
                mb::Workspace{scratch.data(), bytes}, engine.place());
  engine.wait();
  return {bias_memory.values(), load_memory.values()};
}

}  // namespace testing
