// Everything that a host compiler can use. moe_balance.cuh adds the CUDA engine.
#pragma once

#include <moe_balance/balancer/aux_loss.hpp>
#include <moe_balance/balancer/combine.hpp>
#include <moe_balance/balancer/from_plain_top_k.hpp>
#include <moe_balance/balancer/global_batch_loss.hpp>
#include <moe_balance/balancer/loss_free_bias.hpp>
#include <moe_balance/balancer/no_balancer.hpp>
#include <moe_balance/balancer/sequence_loss.hpp>
#include <moe_balance/balancer/z_loss.hpp>
#include <moe_balance/dispatch/capacity.hpp>
#include <moe_balance/dispatch/host.hpp>
#include <moe_balance/dispatch/permutation.hpp>
#include <moe_balance/dispatch/permute.hpp>
#include <moe_balance/engine/host.hpp>
#include <moe_balance/memory.hpp>
#include <moe_balance/router.hpp>
#include <moe_balance/scoring/identity.hpp>
#include <moe_balance/scoring/sigmoid.hpp>
#include <moe_balance/scoring/softmax.hpp>
#include <moe_balance/scoring/softmax_over_selected.hpp>
#include <moe_balance/scoring/sqrt_softplus.hpp>
#include <moe_balance/sync/single_device.hpp>
#include <moe_balance/topk/group_limited_top_k.hpp>
#include <moe_balance/topk/replay.hpp>
#include <moe_balance/topk/top_k.hpp>
