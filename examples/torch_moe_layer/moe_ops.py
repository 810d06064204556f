"""What a library of moe_balance/interop/torch_stable.hpp leaves to Python: autograd, and shapes for torch.compile and torch.export.

PyTorch's stable ABI has no interface for either. A library of moe_balance/interop/torch.hpp brings both, and needs this for dynamic shapes only.
Copy this file into your project: it depends on PyTorch only.
"""

import torch

_libraries = []  # of what is registered below, for as long as the process runs


def register_router(namespace, prefix=""):
    """Registers autograd and shapes of a router's operators, torch.ops.<namespace>.<prefix>forward and the others. Once per router."""
    ops = getattr(torch.ops, namespace)
    backward = getattr(ops, prefix + "backward")
    sizes = getattr(ops, prefix + "sizes")
    name = f"{namespace}::{prefix}"

    def routing(call, logits, **others):
        _expect(call, logits=(logits, 2), **others)
        tokens, experts = logits.shape
        top_k = sizes(experts)[0]
        weight_type = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return (logits.new_empty(tokens, top_k, dtype=torch.int32), logits.new_empty(tokens, top_k, dtype=weight_type),
                logits.new_empty(experts, dtype=torch.int64))

    @torch.library.register_fake(name + "route")
    def _(logits, bias=None, active=None, replay_experts=None, replay_tokens=None):
        return routing("route", logits, bias=(bias, 1), active=(active, 1), replay_experts=(replay_experts, 2), replay_tokens=(replay_tokens, 1))

    def forward_shapes(call, logits, bias, load, active, sequences, replay_experts, replay_tokens, balanced, sequence_offsets):
        ids, weights, _ = routing(call, logits, bias=(bias, 1), load=(load, 1), active=(active, 1),
                                  replay_experts=(replay_experts, 2), replay_tokens=(replay_tokens, 1), balanced=(balanced, 1),
                                  sequence_offsets=(sequence_offsets, 1))
        tokens, experts = logits.shape
        _, words, words_per_token, load_bins, _ = sizes(experts, sequences if sequence_offsets is None else 1)
        if sequence_offsets is not None:  # each sequence has as many words, and how many there are may be a symbol
            words += (sequence_offsets.shape[0] - 2) * (sizes(experts, 2)[1] - words)
        counts = logits.new_empty((1 + load_bins) * experts, dtype=torch.int64)
        saved = logits.new_empty(words + tokens * words_per_token, dtype=torch.int64)
        return ids, weights, counts, logits.new_empty((), dtype=torch.float32), saved

    @torch.library.register_fake(name + "forward")
    def _(logits, bias=None, load=None, accumulate=True, active=None, sequences=1, replay_experts=None, replay_tokens=None, balanced=None,
          sequence_offsets=None, token_major=False):
        return forward_shapes("forward", logits, bias, load, active, sequences, replay_experts, replay_tokens, balanced, sequence_offsets)

    @torch.library.register_fake(name + "backward")
    def _(logits, experts, saved, grad_weights, grad_loss, active=None, sequences=1, balanced=None, sequence_offsets=None, token_major=False):
        _expect("backward", logits=(logits, 2), experts=(experts, 2), saved=(saved, 1), grad_weights=(grad_weights, 2), grad_loss=(grad_loss, None),
                active=(active, 1), balanced=(balanced, 1), sequence_offsets=(sequence_offsets, 1))
        return logits.new_empty(logits.shape)

    @torch.library.register_fake(name + "losses")
    def _(saved, experts, sequences=1):
        _expect("losses", saved=(saved, 1))
        return saved.new_empty(sizes(experts, sequences)[4], dtype=torch.float32)

    @torch.library.register_fake(name + "update")
    def _(bias, load):
        _expect("update", load=(load, None), bias=(bias, None))

    _tell_autograd_of_changes(namespace, prefix + "update")

    def setup_context(ctx, inputs, output):
        logits, _, _, _, active, sequences, _, _, balanced, sequence_offsets, token_major = inputs[:11]
        experts, _, counts, _, saved, *order = output
        ctx.save_for_backward(logits, experts, saved, active, balanced, sequence_offsets)
        ctx.sequences, ctx.token_major, ctx.inputs = sequences, token_major, len(inputs)
        ctx.mark_non_differentiable(experts, counts, saved, *order)
        ctx.set_materialize_grads(False)

    def differentiate(ctx, *gradients):
        logits, experts, saved, active, balanced, sequence_offsets = ctx.saved_tensors
        _, grad_weights, _, grad_loss = gradients[:4]
        gradient = backward(logits, experts, saved, grad_weights, grad_loss, active, ctx.sequences, balanced, sequence_offsets, ctx.token_major)
        return (gradient,) + (None,) * (ctx.inputs - 1)

    torch.library.register_autograd(name + "forward", differentiate, setup_context=setup_context)
    _has_no_gradient(name + "route")
    _refuse_second_derivative(name + "backward")

    if hasattr(ops, prefix + "forward_and_permute"):  # of define_fused_ops
        @torch.library.register_fake(name + "forward_and_permute")
        def _(logits, bias=None, load=None, accumulate=True, active=None, sequences=1, replay_experts=None, replay_tokens=None, balanced=None,
              sequence_offsets=None, token_major=False, align=1):
            results = forward_shapes("forward_and_permute", logits, bias, load, active, sequences, replay_experts, replay_tokens, balanced, sequence_offsets)
            return *results, *_permutation_shapes(results[0], logits.shape[1], align)

        @torch.library.register_fake(name + "route_and_permute")
        def _(logits, bias=None, active=None, replay_experts=None, replay_tokens=None, align=1):
            results = routing("route_and_permute", logits, bias=(bias, 1), active=(active, 1), replay_experts=(replay_experts, 2),
                              replay_tokens=(replay_tokens, 1))
            return *results, *_permutation_shapes(results[0], logits.shape[1], align)

        torch.library.register_autograd(name + "forward_and_permute", differentiate, setup_context=setup_context)
        _has_no_gradient(name + "route_and_permute")


def register_dispatch(namespace):
    """Registers autograd and shapes of permutation, permute and combine. Once per library."""
    ops = getattr(torch.ops, namespace)
    name = f"{namespace}::"

    @torch.library.register_fake(name + "permutation")
    def _(experts, expert_count, align=1):
        _expect("permutation", experts=(experts, 2))
        return *_permutation_shapes(experts, expert_count, align), experts.new_empty(expert_count, dtype=torch.int64)

    @torch.library.register_fake(name + "permute")
    def _(hidden, row_of_slot, slot_of_row, scale=None):
        _expect("permute", hidden=(hidden, 2), row_of_slot=(row_of_slot, 2), slot_of_row=(slot_of_row, 1), scale=(scale, 2))
        return hidden.new_empty(slot_of_row.shape[0], hidden.shape[1])

    @torch.library.register_fake(name + "permute_backward")
    def _(grad_permuted, row_of_slot, hidden=None, scale=None):
        _expect("permute_backward", grad_permuted=(grad_permuted, 2), row_of_slot=(row_of_slot, 2), hidden=(hidden, 2), scale=(scale, 2))
        grad_hidden = grad_permuted.new_empty(row_of_slot.shape[0], grad_permuted.shape[1])
        return grad_hidden, _gradient_of_factors(grad_permuted, scale)

    @torch.library.register_fake(name + "combine")
    def _(permuted, row_of_slot, slot_of_row, weights=None):
        _expect("combine", permuted=(permuted, 2), row_of_slot=(row_of_slot, 2), slot_of_row=(slot_of_row, 1), weights=(weights, 2))
        return permuted.new_empty(row_of_slot.shape[0], permuted.shape[1])

    @torch.library.register_fake(name + "combine_backward")
    def _(grad_combined, row_of_slot, slot_of_row, permuted=None, weights=None):
        _expect("combine_backward", grad_combined=(grad_combined, 2), row_of_slot=(row_of_slot, 2), slot_of_row=(slot_of_row, 1),
                permuted=(permuted, 2), weights=(weights, 2))
        grad_permuted = grad_combined.new_empty(slot_of_row.shape[0], grad_combined.shape[1])
        return grad_permuted, _gradient_of_factors(grad_combined, weights)

    @torch.library.register_fake(name + "once_per_rank")
    def _(experts, experts_per_rank, rank_count):
        _expect("once_per_rank", experts=(experts, 2))
        return experts.new_empty(experts.shape)

    @torch.library.register_fake(name + "routing_of_rows")
    def _(weights, experts, row_of_slot, slot_of_row, experts_per_rank):
        _expect("routing_of_rows", weights=(weights, 2), experts=(experts, 2), row_of_slot=(row_of_slot, 2), slot_of_row=(slot_of_row, 1))
        shape = (slot_of_row.shape[0], experts.shape[1])
        return experts.new_empty(shape), weights.new_empty(shape)

    @torch.library.register_fake(name + "routing_of_rows_backward")
    def _(grad_row_weights, experts, row_of_slot, experts_per_rank):
        _expect("routing_of_rows_backward", grad_row_weights=(grad_row_weights, 2), experts=(experts, 2), row_of_slot=(row_of_slot, 2))
        return grad_row_weights.new_empty(experts.shape)

    def setup_weights(ctx, inputs, output):
        _, experts, row_of_slot, _, ctx.experts_per_rank = inputs
        ctx.save_for_backward(experts, row_of_slot)
        ctx.mark_non_differentiable(output[0])

    def differentiate_weights(ctx, _experts, gradient):
        return ops.routing_of_rows_backward(gradient, *ctx.saved_tensors, ctx.experts_per_rank), None, None, None, None

    def setup_context(ctx, inputs, output):
        rows, row_of_slot, slot_of_row, factors = inputs
        ctx.save_for_backward(None if factors is None else rows, row_of_slot, slot_of_row, factors)

    def differentiate_permute(ctx, gradient):
        hidden, row_of_slot, _, scale = ctx.saved_tensors
        grad_hidden, grad_scale = ops.permute_backward(gradient, row_of_slot, hidden, scale)
        return grad_hidden, None, None, None if scale is None else grad_scale

    def differentiate_combine(ctx, gradient):
        permuted, row_of_slot, slot_of_row, weights = ctx.saved_tensors
        grad_permuted, grad_weights = ops.combine_backward(gradient, row_of_slot, slot_of_row, permuted, weights)
        return grad_permuted, None, None, None if weights is None else grad_weights

    torch.library.register_autograd(name + "permute", differentiate_permute, setup_context=setup_context)
    torch.library.register_autograd(name + "combine", differentiate_combine, setup_context=setup_context)
    torch.library.register_autograd(name + "routing_of_rows", differentiate_weights, setup_context=setup_weights)
    _refuse_second_derivative(name + "permute_backward")
    _refuse_second_derivative(name + "routing_of_rows_backward")
    _refuse_second_derivative(name + "combine_backward")


def dense_routing(experts, weights, expert_count):
    """probs [T, E], of the type of weights and differentiable, and routing_map [T, E], bool, as Megatron-Core's dispatchers take them; empty slots (-1) have none."""
    is_slot = experts >= 0
    columns = torch.where(is_slot, experts, 0).long()
    probs = weights.new_zeros(len(experts), expert_count).scatter_add(1, columns, torch.where(is_slot, weights, 0))
    routing_map = columns.new_zeros(len(experts), expert_count).scatter_add(1, columns, is_slot.long()) > 0
    return probs, routing_map


def _permutation_shapes(experts, expert_count, align):
    """offsets, row_of_slot and slot_of_row of ids [T, K]."""
    slots = experts.shape[0] * experts.shape[1]
    rows = (slots + torch.sym_min(expert_count, slots) * (align - 1)) // align * align
    return tuple(experts.new_empty(size, dtype=torch.int64) for size in (expert_count + 1, experts.shape, rows))


def _expect(call, **arguments):
    """Each argument is (tensor or None, dimensions or None): where the first one lies lie all, or PyTorch takes one meta tensor among others for a
    call without data."""
    device = None
    for argument, (tensor, dimensions) in arguments.items():
        if tensor is None:
            continue
        if dimensions is not None and tensor.dim() != dimensions:
            raise RuntimeError(f"moe_balance: {call}: {argument}.ndim is {tensor.dim()}; allowed: {dimensions}")
        device = device or tensor.device
        if tensor.device != device:
            raise RuntimeError(f"moe_balance: {call}: {argument}.device is {tensor.device}; allowed: {device}, where the call's first tensor lies")


def _tell_autograd_of_changes(namespace, name):
    """Counts a version of each argument that the operator changes in place, so that autograd finds saved ones out of date."""
    library = torch.library.Library(namespace, "IMPL")
    function = getattr(getattr(torch.ops, namespace), name).default

    def count(keyset, *tensors):
        function.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *tensors)  # a call that is refused changes nothing
        for tensor in tensors:
            if tensor is not None and not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)

    library.impl(name, count, "ADInplaceOrView", with_keyset=True)
    _libraries.append(library)


def _gradient_of_factors(gradient, factors):
    return gradient.new_empty(0, dtype=torch.float32) if factors is None else factors.new_empty(factors.shape)


def _has_no_gradient(name):
    """What the operator returns does not ask for one, so that backward, which would find nothing, says so."""
    torch.library.register_autograd(name, lambda ctx, *gradients: None, setup_context=lambda ctx, inputs, output: ctx.mark_non_differentiable(*output))


def _refuse_second_derivative(name):
    def refuse(ctx, *gradients):
        raise RuntimeError(f"moe_balance: {name}: the derivative is the second; allowed: the first")

    torch.library.register_autograd(name, refuse)
