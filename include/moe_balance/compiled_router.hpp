// CompiledRouter: a Router that is compiled in one file of a program and called from all others, which then compile in a fraction of the time.
//
//   // my_router.hpp, included everywhere
//   using MyRouter = mb::CompiledRouter<mb::presets::Qwen3<>>;
//   extern template class mb::CompiledRouter<mb::presets::Qwen3<>>;
//
//   // my_router.cpp, the one file that compiles it
//   template class mb::CompiledRouter<mb::presets::Qwen3<>>;
//
// `extern template` of a Router's calls holds nothing back in an optimised build: they are defined in the class, hence inline, and compilers
// instantiate what is inline in order to inline it.
#pragma once

#include <moe_balance/router.hpp>

MOEB_NAMESPACE_BEGIN

/// Every call of Router in one place; each does what Router's call of that name does, without overhead but the call.
/// The place of a GPU is cudaStream_t. Its `template class` stands in a .cu file that includes moe_balance.cuh; files that only call need no
/// nvcc, and the forward declaration `struct CUstream_st;` is all they need of CUDA: `CompiledRouter<R, CUstream_st*>` is the same type.
/// Its symbols name no architectures and no numbers of experts, because callers do not know them: shared objects of one process that each compile the same
/// CompiledRouter for a GPU are built with -fvisibility=hidden, or one's definition serves all.
template <class RouterT, class Place = Host>
class CompiledRouter {
 public:
  /// K, the experts chosen per token.
  static constexpr int k = RouterT::k;
  /// Balancing losses, the length of LossArgs::part_values.
  static constexpr int loss_count = RouterT::loss_count;
  /// Values that the balancer's rule keeps for each bias.
  static constexpr int bias_memory = RouterT::bias_memory;

  /// Its options stay run-time values.
  RouterT router{};

  /// The router as its type makes it.
  CompiledRouter() = default;
  /// A router with other options.
  explicit CompiledRouter(const RouterT& its_router) : router(its_router) {}

  /// See Router::load_bins.
  [[nodiscard]] constexpr int load_bins() const { return router.load_bins(); }
  /// See Router::saved_bytes.
  [[nodiscard]] std::size_t saved_bytes(const Shape& shape) const { return router.saved_bytes(shape); }
  /// See Router::workspace_bytes.
  [[nodiscard]] std::size_t workspace_bytes(const Shape& shape) const { return router.workspace_bytes(shape); }

  /// See Router::route.
  void route(const RouteArgs& args, Workspace workspace, const Place& place) const;
  /// See Router::forward.
  void forward(const ForwardArgs& args, Workspace workspace, const Place& place) const;
  /// See Router::backward.
  void backward(const BackwardArgs& args, Workspace workspace, const Place& place) const;
  /// See Router::loss.
  void loss(const LossArgs& args, Workspace workspace, const Place& place) const requires(RouterT::loss_count > 0);
  /// See Router::update.
  void update(BiasRef bias, LoadRef load, Workspace workspace, const Place& place) const;
  /// See Router::start_update.
  void start_update(LoadRef load, Workspace workspace, const Place& place) const;
  /// See Router::finish_update.
  void finish_update(BiasRef bias, LoadRef load, Workspace workspace, const Place& place) const;
};

// Defined outside the class, so that they are not inline and `extern template` holds their compilation back.

template <class RouterT, class Place>
void CompiledRouter<RouterT, Place>::route(const RouteArgs& args, Workspace workspace, const Place& place) const {
  router.route(args, workspace, place);
}
template <class RouterT, class Place>
void CompiledRouter<RouterT, Place>::forward(const ForwardArgs& args, Workspace workspace, const Place& place) const {
  router.forward(args, workspace, place);
}
template <class RouterT, class Place>
void CompiledRouter<RouterT, Place>::backward(const BackwardArgs& args, Workspace workspace, const Place& place) const {
  router.backward(args, workspace, place);
}
template <class RouterT, class Place>
void CompiledRouter<RouterT, Place>::loss(const LossArgs& args, Workspace workspace, const Place& place) const
    requires(RouterT::loss_count > 0) {
  router.loss(args, workspace, place);
}
template <class RouterT, class Place>
void CompiledRouter<RouterT, Place>::update(BiasRef bias, LoadRef load, Workspace workspace, const Place& place) const {
  router.update(bias, load, workspace, place);
}
template <class RouterT, class Place>
void CompiledRouter<RouterT, Place>::start_update(LoadRef load, Workspace workspace, const Place& place) const {
  router.start_update(load, workspace, place);
}
template <class RouterT, class Place>
void CompiledRouter<RouterT, Place>::finish_update(BiasRef bias, LoadRef load, Workspace workspace,
                                                   const Place& place) const {
  router.finish_update(bias, load, workspace, place);
}

MOEB_NAMESPACE_END
