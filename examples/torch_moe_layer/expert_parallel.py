#!/usr/bin/env python3
"""expert_parallel.py LIBRARY [RANKS]: experts over several processes, each with tokens of its own. A token is sent once to each rank that has some of its
experts. Compares outputs and gradients with those of one process that has all experts.
"""

import sys
import tempfile

import torch
import torch.distributed as dist

import moe_ops

TOKENS, HIDDEN, EXPERTS = 48, 8, 8  # tokens of each rank


class Exchange(torch.autograd.Function):
    """Rows to other ranks and from them; gradients go the other way."""

    @staticmethod
    def forward(ctx, rows, sent, received):
        ctx.sent, ctx.received = sent, received
        result = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(result, rows.contiguous(), received, sent)
        return result

    @staticmethod
    def backward(ctx, gradient):
        return Exchange.apply(gradient, ctx.received, ctx.sent), None, None


def run_experts(ops, hidden, experts, weights, matrices):
    """The weighted sum of the outputs of these experts: [T, H] for ids [T, K], -1 for none."""
    offsets, row_of_slot, slot_of_row, _ = ops.permutation(experts, len(matrices))
    rows = ops.permute(hidden, row_of_slot, slot_of_row)
    bounds = offsets.tolist()
    outputs = [rows[first:last] @ matrix for first, last, matrix in zip(bounds, bounds[1:], matrices)]
    return ops.combine(torch.cat([*outputs, rows[bounds[-1]:]]), row_of_slot, slot_of_row, weights)


def run_experts_of_all_ranks(ops, hidden, experts, weights, matrices):
    """The same, of which each rank has `matrices`, the ones of its own experts."""
    ranks, local = dist.get_world_size(), len(matrices)
    rank_ids = ops.once_per_rank(experts, local, ranks)
    _, row_of_slot, slot_of_row, counts = ops.permutation(rank_ids, ranks)
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts)
    sent, received = counts.tolist(), arriving.tolist()
    used = sum(sent)
    rows = ops.permute(hidden, row_of_slot, slot_of_row)
    row_experts, row_weights = ops.routing_of_rows(weights, experts, row_of_slot, slot_of_row, local)
    arrived = [Exchange.apply(part[:used], sent, received) for part in (rows, row_experts, row_weights)]
    returned = Exchange.apply(run_experts(ops, *arrived, matrices), received, sent)
    return ops.combine(torch.cat([returned, rows[used:]]), row_of_slot, slot_of_row)


def work(rank, ranks, library, meeting):
    torch.ops.load_library(library)
    if hasattr(torch.library, "register_autograd"):  # a library of the stable ABI; the other brings its own
        moe_ops.register_router("moe")
        moe_ops.register_dispatch("moe")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    ops = torch.ops.moe
    torch.manual_seed(1)  # the same experts everywhere
    matrices = torch.randn(EXPERTS, HIDDEN, HIDDEN, dtype=torch.float64)
    torch.manual_seed(2 + rank)  # tokens of its own
    hidden, logits = torch.randn(TOKENS, HIDDEN, dtype=torch.float64), torch.randn(TOKENS, EXPERTS, dtype=torch.float64)
    slopes = torch.randn(TOKENS, HIDDEN, dtype=torch.float64)

    def train(run, matrices):
        x, gate, experts = hidden.clone().requires_grad_(), logits.clone().requires_grad_(), matrices.clone().requires_grad_()
        ids, weights, _, _, _ = ops.forward(gate, torch.zeros(EXPERTS))
        output = run(ops, x, ids, weights, experts)
        (output * slopes).sum().backward()
        return output.detach(), x.grad, gate.grad, experts.grad

    local = EXPERTS // ranks
    own = slice(rank * local, (rank + 1) * local)
    *mine, of_experts = train(run_experts_of_all_ranks, matrices[own])
    *wanted, of_all_experts = train(run_experts, matrices)
    dist.all_reduce(of_all_experts)  # an expert has tokens of every rank
    for got, want in zip((*mine, of_experts), (*wanted, of_all_experts[own]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    dist.destroy_process_group()


def main():
    ranks = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (ranks, sys.argv[1], f"file://{folder}/meeting"), ranks)
    print(f"outputs and gradients of {ranks} ranks are those of one")


if __name__ == "__main__":
    main()
