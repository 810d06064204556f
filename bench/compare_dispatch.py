"""Dispatch on both sides, for the comparisons on the CPU and on a GPU: the memory that they share, and PyTorch's argsort + index_select + index_add_."""
import ctypes

import torch

import compare_call


class Problem:
    """One set of inputs and outputs. `routing` has the numbers of tokens and experts, and where the library's calls run."""

    def __init__(self, library, routing, k, hidden, dtype=torch.float32, device="cpu"):
        generator = torch.Generator(device=device).manual_seed(1)
        tokens, experts = routing.tokens, routing.experts

        def zeros(*shape, dtype):
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.library, self.experts = library, experts
        library.workspace_needed.restype = ctypes.c_int64
        library.workspace_needed.argtypes = [ctypes.c_int64] * 3
        self.ids = torch.rand(tokens, experts, generator=generator, device=device).topk(k)[1].to(torch.int32).contiguous()
        self.weights = torch.rand(tokens, k, generator=generator, device=device)
        self.states = torch.randn(tokens, hidden, generator=generator, device=device).to(dtype)
        self.offsets = zeros(experts + 1, dtype=torch.int64)
        self.row_of_slot = zeros(tokens, k, dtype=torch.int64)
        self.slot_of_row = zeros(tokens * k, dtype=torch.int64)
        self.permuted = zeros(tokens * k, hidden, dtype=dtype)
        self.combined = zeros(tokens, hidden, dtype=dtype)
        self.grad_permuted = zeros(tokens * k, hidden, dtype=dtype)
        self.grad_weights = zeros(tokens, k, dtype=torch.float32)
        self.workspace = zeros(library.workspace_needed(tokens, k, experts) // 8 + 2, dtype=torch.int64)
        tensors = [getattr(self, name).data_ptr() for name in ("ids", "weights", "states", "offsets", "row_of_slot", "slot_of_row",
                                                               "permuted", "combined", "grad_permuted", "grad_weights", "workspace")]
        self.call = compare_call.DispatchCall(routing, k, hidden, compare_call.DATA_TYPES.index(str(dtype).removeprefix("torch.")), *tensors, self.workspace.numel() * 8)

    def run(self, work):
        if getattr(self.library, work)(ctypes.byref(self.call)) != 0:
            raise RuntimeError(f"{work}: moe_balance failed")

    def has_permutation(self, order, rows, offsets):
        return bool((self.slot_of_row == order).all() and (self.row_of_slot == rows).all() and (self.offsets == offsets).all())


def torch_permutation(ids, counts):
    """slot_of_row, row_of_slot and offsets."""
    order = torch.argsort(ids.flatten(), stable=True)
    rows = torch.empty_like(order)
    rows[order] = torch.arange(order.numel(), device=order.device)
    return order, rows.view_as(ids), torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def torch_permute(states, order, k):
    return states.index_select(0, order // k)


# Weights get the states' type, as models write it, so that no product in float32 is kept: in bfloat16 index_add_ then rounds every partial sum, in no fixed
# order on a GPU, and the products of the weights' gradient are rounded before their sum in float32. In float32 all of that would move twice the bytes.
def torch_combine(permuted, weights, order):
    weighted = permuted * weights.flatten().index_select(0, order).unsqueeze(1).to(permuted.dtype)
    return permuted.new_zeros(weights.size(0), permuted.size(1)).index_add_(0, order // weights.size(1), weighted)


def torch_combine_backward(grad_combined, permuted, weights, order):
    grads = grad_combined.index_select(0, order // weights.size(1))
    grad_permuted = grads * weights.flatten().index_select(0, order).unsqueeze(1).to(grads.dtype)
    grad_weights = torch.empty_like(weights).flatten()
    grad_weights[order] = (grads * permuted).sum(1, dtype=weights.dtype)
    return grad_permuted, grad_weights.view_as(weights)


def close(ours, exact):
    """Whether `ours` is `exact`, which is float32, but for sums in another order and one rounding to the type of `ours`."""
    rounding = torch.finfo(ours.dtype).eps / 2
    return bool(((ours.float() - exact).abs() <= 1e-5 * (1 + exact.abs().max()) + rounding * exact.abs()).all())
