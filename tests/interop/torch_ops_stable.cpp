// The operators of torch_ops.cpp through PyTorch's stable ABI.
#define TORCH_TARGET_VERSION 0x020a000000000000
#include <moe_balance/interop/torch_stable.hpp>

#include "torch_routers.hpp"

STABLE_TORCH_LIBRARY(moeb_test, m) {
  namespace mb = moe_balance;
  mb::pytorch_stable::define_ops<routers::plain>(m, "plain_");
  mb::pytorch_stable::define_ops<routers::balanced>(m, "balanced_");
  mb::pytorch_stable::define_ops<routers::momentum>(m, "momentum_");
  mb::pytorch_stable::define_ops<routers::quantile>(m, "quantile_");
  mb::pytorch_stable::define_ops<routers::quantile_global_batch>(m, "quantile_global_batch_");
  mb::pytorch_stable::define_ops<routers::sequence>(m, "sequence_");
  mb::pytorch_stable::define_ops<routers::global_batch>(m, "global_batch_");
  mb::pytorch_stable::define_ops<routers::capacity>(m, "capacity_");
  mb::pytorch_stable::define_ops<routers::replay>(m, "replay_");
  mb::pytorch_stable::define_ops<routers::marked>(m, "marked_");
  mb::pytorch_stable::define_ops<routers::marked_margins>(m, "marked_margins_");
  mb::pytorch_stable::define_ops<routers::first_choices>(m, "first_choices_");
  mb::pytorch_stable::define_fused_ops<routers::plain>(m, "plain_");
  mb::pytorch_stable::define_fused_ops<routers::balanced>(m, "balanced_");
  mb::pytorch_stable::define_fused_ops<routers::quantile_global_batch>(m, "quantile_global_batch_");
  mb::pytorch_stable::define_fused_ops<routers::sequence>(m, "sequence_");
  mb::pytorch_stable::define_fused_ops<routers::global_batch>(m, "global_batch_");
  mb::pytorch_stable::define_fused_ops<routers::capacity>(m, "capacity_");
  mb::pytorch_stable::define_fused_ops<routers::replay>(m, "replay_");
  mb::pytorch_stable::define_fused_ops<routers::marked_margins>(m, "marked_margins_");
  mb::pytorch_stable::define_dispatch_ops(m);
}

STABLE_TORCH_LIBRARY_IMPL(moeb_test, CPU, m) {
  namespace mb = moe_balance;
  mb::pytorch_stable::implement_ops<routers::plain>(m, "plain_");
  mb::pytorch_stable::implement_ops<routers::balanced>(m, "balanced_");
  mb::pytorch_stable::implement_ops<routers::momentum>(m, "momentum_");
  mb::pytorch_stable::implement_ops<routers::quantile>(m, "quantile_");
  mb::pytorch_stable::implement_ops<routers::quantile_global_batch>(m, "quantile_global_batch_");
  mb::pytorch_stable::implement_ops<routers::sequence>(m, "sequence_");
  mb::pytorch_stable::implement_ops<routers::global_batch>(m, "global_batch_");
  mb::pytorch_stable::implement_ops<routers::capacity>(m, "capacity_");
  mb::pytorch_stable::implement_ops<routers::replay>(m, "replay_");
  mb::pytorch_stable::implement_ops<routers::marked>(m, "marked_");
  mb::pytorch_stable::implement_ops<routers::marked_margins>(m, "marked_margins_");
  mb::pytorch_stable::implement_ops<routers::first_choices>(m, "first_choices_");
  mb::pytorch_stable::implement_fused_ops<routers::plain>(m, "plain_");
  mb::pytorch_stable::implement_fused_ops<routers::balanced>(m, "balanced_");
  mb::pytorch_stable::implement_fused_ops<routers::quantile_global_batch>(m, "quantile_global_batch_");
  mb::pytorch_stable::implement_fused_ops<routers::sequence>(m, "sequence_");
  mb::pytorch_stable::implement_fused_ops<routers::global_batch>(m, "global_batch_");
  mb::pytorch_stable::implement_fused_ops<routers::capacity>(m, "capacity_");
  mb::pytorch_stable::implement_fused_ops<routers::replay>(m, "replay_");
  mb::pytorch_stable::implement_fused_ops<routers::marked_margins>(m, "marked_margins_");
  mb::pytorch_stable::implement_dispatch_ops(m);
}
