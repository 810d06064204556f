// The operators that PyTorch gets from a router, written once for both of its C++ interfaces: torch.hpp registers them with the classic one, torch_stable.hpp
// with the stable ABI. Here is what they allocate and call; torch_tensors.hpp has `Api`, how they look at a tensor and make one, and what they check.
//
// T = tokens, E = experts, K = experts chosen per token, R = rows, H = hidden size, L = layers. Ids are int32: `.long()` makes indices of them. Tensors of
// a call lie on one device, rows are contiguous, and a row may be followed by a gap. On a GPU calls are enqueued on PyTorch's current stream of that device,
// with memory from its allocator. Operators write nothing but what they return; only `update` works in place.
#pragma once

#include <moe_balance/interop/torch_dispatch_ops.hpp>
#include <moe_balance/interop/torch_router_ops.hpp>
