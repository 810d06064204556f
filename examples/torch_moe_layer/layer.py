#!/usr/bin/env python3
"""layer.py LIBRARY: trains a Mixture-of-Experts layer whose routing, balancing and dispatch are the operators of LIBRARY (ops.cpp or ops_stable.cpp).

Tokens of four kinds, in unequal numbers, each kind with a function of its own to learn. The bias spreads them over the experts.
"""

import sys

import torch

import moe_ops


class MoeLayer(torch.nn.Module):
    def __init__(self, namespace, hidden, inner, experts):
        super().__init__()
        self.namespace = namespace  # a name: torch.ops.<name> itself can be neither copied nor saved
        self.gate = torch.nn.Linear(hidden, experts, bias=False)
        self.up = torch.nn.Parameter(torch.randn(experts, hidden, inner) / hidden**0.5)
        self.down = torch.nn.Parameter(torch.randn(experts, inner, hidden) / inner**0.5)
        self.register_buffer("bias", torch.zeros(experts))  # read by the choice of experts only; float32 whatever the model's type
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int64))  # tokens per expert since the last update

    @property
    def ops(self):
        return getattr(torch.ops, self.namespace)

    def forward(self, tokens):
        """The layer's output [T, H] and the balancing loss."""
        _, weights, counts, loss, _, offsets, row_of_slot, slot_of_row = self.ops.forward_and_permute(self.gate(tokens), self.bias)
        if self.training:
            self.load += counts  # not where activations are recomputed: return the counts, and add them outside of the checkpoint
        rows = self.run_experts(self.ops.permute(tokens, row_of_slot, slot_of_row), offsets)
        return self.ops.combine(rows, row_of_slot, slot_of_row, weights), loss

    def run_experts(self, rows, offsets):
        """Each expert on its rows. On a GPU this would be one grouped matrix product, which needs no offsets on the host."""
        bounds = offsets.tolist()
        return torch.cat([
            torch.relu(rows[first:last] @ up) @ down
            for first, last, up, down in zip(bounds, bounds[1:], self.up, self.down)
        ])

    def update(self):
        """Once per optimizer step: the bias moves towards balance, the load starts again. Returns by how much the fullest expert was too full.
        On several ranks all call it, and their DistributedDataParallel has broadcast_buffers=False."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.load)
        excess = (self.load.max() / self.load.float().mean() - 1).item()
        self.ops.update(self.bias, self.load)
        return excess


def main():
    torch.ops.load_library(sys.argv[1])
    if hasattr(torch.library, "register_autograd"):  # a library of the stable ABI; the other brings its own
        moe_ops.register_router("moe")
        moe_ops.register_dispatch("moe")

    torch.set_num_threads(1)  # for matrices this small
    torch.manual_seed(1)
    hidden, kinds = 16, 4
    centres, targets = torch.randn(kinds, hidden), torch.randn(kinds, hidden, hidden) / hidden**0.5
    layer = MoeLayer("moe", hidden, inner=32, experts=8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    errors, excesses = [], []
    for step in range(200):
        kind = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), 512, replacement=True)
        tokens = centres[kind] + 0.3 * torch.randn(512, hidden)
        wanted = torch.einsum("th,thg->tg", tokens, targets[kind])
        output, balancing = layer(tokens)
        error = torch.nn.functional.mse_loss(output, wanted)
        optimizer.zero_grad()
        (error + balancing).backward()
        optimizer.step()
        errors.append(error.item())
        excesses.append(layer.update())
        if step % 40 == 0 or step == 199:
            print(f"step {step:3d}  error {errors[-1]:.3f}  fullest expert {100 * excesses[-1]:3.0f} % above the mean")
    early, late = sum(excesses[:10]) / 10, sum(excesses[-10:]) / 10
    if errors[-1] > 0.25 * errors[0] or late > 0.5 * early:
        sys.exit("The layer did not learn, or its experts did not come into balance")


if __name__ == "__main__":
    main()
