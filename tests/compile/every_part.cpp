// Every policy and preset in a router, and what every_call.cpp leaves out: owning buffers, routers compiled once, the adapters, and the opt-in Syncs where
// their libraries are (MOE_BALANCE_TEST_MPI, MOE_BALANCE_TEST_NCCL). For compilation under unusual settings.
#include <moe_balance/interop/c_api.hpp>
#include <moe_balance/interop/dlpack.hpp>
#include <moe_balance/moe_balance.hpp>
#include <moe_balance/sync/thread.hpp>
#if defined(MOE_BALANCE_TEST_MPI)
#include <moe_balance/sync/mpi.hpp>
#endif
#if defined(MOE_BALANCE_TEST_NCCL)
#include <moe_balance/sync/nccl.hpp>
#endif

#include <cstddef>
#include <cstdint>

namespace mb = moe_balance;

/// Every call of one router. Nothing here is run, so that arguments may be empty.
template <class RouterT>
void call(const RouterT& router) {
  const mb::Host host{.threads = 1};
  router.route({}, {}, host);
  router.forward({}, {}, host);
  router.backward({}, {}, host);
  if constexpr (RouterT::loss_count > 0) router.loss({}, {}, host);
  router.start_update({}, {}, host);
  router.finish_update({}, {}, {}, host);
}

void every_policy();
void every_preset();
void owning_buffers();
std::size_t route_and_permute(const mb::RouteArgs& args, const mb::PermutationArgs& order);
void error_handler();

void every_policy() {
  call(mb::Router{mb::Softmax{}, mb::TopK<1>{}});
  call(mb::Router{mb::SoftmaxOverSelected{}, mb::TopK<4>{}, mb::AuxLoss{.scale = mb::LossScale::per_token}});
  call(mb::Router{mb::Sigmoid{}, mb::GroupLimitedTopK<8>{}, mb::LossFreeBias{.centring = mb::Centring::step}});
  call(mb::Router{mb::SqrtSoftplus{}, mb::Replay{mb::TopK<2>{}}, mb::SequenceLoss{}});
  call(mb::Router{mb::Softmax{}, mb::TopK<2>{},
                  mb::Combine{mb::ProportionalBias{.unit = mb::ErrorUnit::token}, mb::DeviceLoss{mb::AuxLoss{}, 2}}});
  call(mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::SmebuBias{.momentum = 0.25f}});
  call(mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::Combine{mb::PidBias{.integral = 1e-3f}, mb::ZLoss{}}});
  call(mb::Router{mb::Softmax{}, mb::TopK<2>{},
                  mb::Combine{mb::QuantileBias{.spacing = mb::MarginBins::even, .low = -0.1f, .high = 0.1f}, mb::ZLoss{}}});
  call(mb::Router{mb::Softmax{}, mb::TopK<2>{},
                  mb::Combine{mb::WithZeroComputation{mb::PidBias{}, 1, 1.5f},
                              mb::WithZeroComputation{mb::DeviceLoss{mb::AuxLoss{}, 2}, 1, 1.5f}}});
  call(mb::Router{mb::Sigmoid{}, mb::TopK<2>{}, mb::MultiplicativeBias{mb::SmebuBias{}}});
  call(mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::CommunicationLoss{mb::SequenceLoss{}, 2, 2}});
  call(mb::Router{mb::Identity{}, mb::WithCapacity<mb::TopK<2>>{.pad = true}, mb::ZLoss{}});
  call(mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::FromPlainTopK{mb::GlobalBatchLoss{}}, mb::SingleDevice{}});
}

void every_preset() {
  call(mb::presets::DeepSeekV3<>{});
  call(mb::presets::DeepSeekV2<>{}.with(mb::NoBalancer{}));
  call(mb::presets::DeepSeekV4<>{});
  call(mb::presets::MiniMaxM2<>{});
  call(mb::presets::KimiK2<>{});
  call(mb::presets::Glm45<>{});
  call(mb::presets::LongCatFlash<>{});
  call(mb::presets::Mixtral<>{});
  call(mb::presets::Qwen3<>{}.with(mb::ThreadSync::group(1).front()));
  call(mb::presets::GptOss<>{});
  call(mb::presets::Olmoe<>{});
  call(mb::CompiledRouter<mb::presets::Switch<>>{});
  call(mb::presets::Llama4<>{});
}

void owning_buffers() {
  const mb::Shape shape{.tokens = 4, .experts = 8};
  const mb::presets::Olmoe<> router;
  const mb::Buffer<std::byte> workspace(router.workspace_bytes(shape));
  const mb::Bias bias{8, 2};
  const mb::Load load{8, 2};
  const mb::Saved saved{router, shape};
  mb::ForwardArgs forward{};
  forward.saved = saved.ref();
  forward.bias = bias.ref().layer(1);
  forward.load = load.ref().layer(1, 7);
  router.forward(forward, {workspace.data(), workspace.bytes()}, mb::Host{});
  const mb::Router pid{mb::Softmax{}, mb::TopK<2>{}, mb::Combine{mb::PidBias{}, mb::ZLoss{}}};
  const mb::Bias one_layer{pid, 8};
  const mb::Bias of_preset{router, 8, 2};
  const mb::Bias of_compiled{mb::CompiledRouter<mb::presets::Switch<>>{}, 8, 2, mb::Host{}};
  pid.update(one_layer.ref(), load.ref().layer(0), {}, mb::Host{});
  const mb::Router quantile{mb::Sigmoid{}, mb::TopK<2>{}, mb::QuantileBias{.bins = 8}};
  const mb::Load histograms{quantile, 8, 2};
  const mb::Load of_compiled_router{mb::CompiledRouter<mb::presets::Switch<>>{}, 8, 2, mb::Host{}};
  quantile.update(bias.ref(), histograms.ref(), {}, mb::Host{});
}

std::size_t route_and_permute(const mb::RouteArgs& args, const mb::PermutationArgs& order) {
  const mb::Router router{mb::Softmax{}, mb::TopK<2>{}};
  mb::route_and_permute(router, args, order, {}, mb::Host{});
  return mb::route_and_permute_workspace_bytes(router, {.tokens = 4, .experts = 8}) +
         mb::permutation_workspace_bytes(4, 2, 8);
}

void error_handler() {
  mb::set_error_handler(mb::set_error_handler(mb::print_error));
}

/// As dlpack.h has it.
struct Tensor {
  void* data;
  struct {
    int device_type;
    int device_id;
  } device;
  int ndim;
  struct {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

mb::RouteArgs views_of(const Tensor& logits, const Tensor& experts, const Tensor& weights, const Tensor& active);
mb::RouteArgs views_of(const Tensor& logits, const Tensor& experts, const Tensor& weights, const Tensor& active) {
  return {.logits = mb::matrix_of_dlpack("route", "logits", logits),
          .experts = mb::matrix_of_dlpack<std::int32_t>("route", "experts", experts),
          .weights = mb::matrix_of_dlpack("route", "weights", weights),
          .active = mb::vector_of_dlpack<std::uint8_t>("route", "active", active).data};
}

#if defined(MOE_BALANCE_TEST_MPI)
void over_processes(MPI_Comm communicator);
void over_processes(MPI_Comm communicator) {
  call(mb::Router{mb::Softmax{}, mb::TopK<2>{}, mb::GlobalBatchLoss{}, mb::MpiSync{communicator}});
}
#endif

#if defined(MOE_BALANCE_TEST_NCCL)
void over_gpus(ncclComm_t communicator, const mb::LoadRef& load, cudaStream_t stream);
void over_gpus(ncclComm_t communicator, const mb::LoadRef& load, cudaStream_t stream) {
  const mb::NcclSync sync{communicator};
  sync.start(load.counts, load.experts * load.layers, stream);
  sync.finish(load.counts, stream);
  sync.wait(stream);
}
#endif
