// The operators torch.ops.moeb_test through libtorch: torch_test.cpp and torch_test.py call them.
#include <moe_balance/interop/torch.hpp>

#include "torch_routers.hpp"

TORCH_LIBRARY(moeb_test, m) {
  namespace mb = moe_balance;
  mb::pytorch::define_ops<routers::plain>(m, "plain_");
  mb::pytorch::define_ops<routers::balanced>(m, "balanced_");
  mb::pytorch::define_ops<routers::momentum>(m, "momentum_");
  mb::pytorch::define_ops<routers::quantile>(m, "quantile_");
  mb::pytorch::define_ops<routers::quantile_global_batch>(m, "quantile_global_batch_");
  mb::pytorch::define_ops<routers::sequence>(m, "sequence_");
  mb::pytorch::define_ops<routers::global_batch>(m, "global_batch_");
  mb::pytorch::define_ops<routers::capacity>(m, "capacity_");
  mb::pytorch::define_ops<routers::replay>(m, "replay_");
  mb::pytorch::define_ops<routers::marked>(m, "marked_");
  mb::pytorch::define_ops<routers::marked_margins>(m, "marked_margins_");
  mb::pytorch::define_ops<routers::first_choices>(m, "first_choices_");
  mb::pytorch::define_fused_ops<routers::plain>(m, "plain_");
  mb::pytorch::define_fused_ops<routers::balanced>(m, "balanced_");
  mb::pytorch::define_fused_ops<routers::quantile_global_batch>(m, "quantile_global_batch_");
  mb::pytorch::define_fused_ops<routers::sequence>(m, "sequence_");
  mb::pytorch::define_fused_ops<routers::global_batch>(m, "global_batch_");
  mb::pytorch::define_fused_ops<routers::capacity>(m, "capacity_");
  mb::pytorch::define_fused_ops<routers::replay>(m, "replay_");
  mb::pytorch::define_fused_ops<routers::marked_margins>(m, "marked_margins_");
  mb::pytorch::define_dispatch_ops(m);
}
