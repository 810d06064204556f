#!/usr/bin/env python3
"""Times dispatch on the CPU, by itself and with routing, beside PyTorch's argsort + index_select + index_add, in one run, and prints one line a case.

Usage: compare_torch_dispatch.py LIBRARY [--tokens N] [--experts N] [--top-k N] [--hidden N] [--threads N] [--repeats N] [--json FILE]
LIBRARY is bench/compare_dispatch.cpp as a shared library; `bash bench/compare_torch_dispatch.sh` builds it and calls this.
Both sides take turns, so that a slow moment of the machine hits both; medians are compared. Exit 1 when results differ.
"""
import argparse
import ctypes
import datetime
import json
import sys

import torch

import compare_call
import compare_torch
from compare_timing import paired, report, use_threads


class Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("tokens", "k", "experts", "hidden", "rows")] + [
        (name, ctypes.c_void_p) for name in ("ids", "weights", "states", "offsets", "row_of_slot", "slot_of_row", "permuted",
                                             "combined", "grad_permuted", "grad_weights", "workspace")] + [
        ("workspace_bytes", ctypes.c_int64), ("threads", ctypes.c_int64)] + [
        (name, ctypes.c_void_p) for name in ("logits", "bias", "counts", "load", "saved")] + [
        ("saved_bytes", ctypes.c_int64), ("routed_ids", ctypes.c_void_p), ("routed_weights", ctypes.c_void_p)]


class Problem:
    """One set of inputs and outputs, shared by both sides."""

    def __init__(self, library, tokens, experts, k, hidden, threads):
        generator = torch.Generator().manual_seed(1)
        self.tokens, self.experts, self.k, self.hidden = tokens, experts, k, hidden
        self.ids = torch.rand(tokens, experts, generator=generator).topk(k)[1].to(torch.int32).contiguous()
        self.weights = torch.rand(tokens, k, generator=generator)
        self.states = torch.randn(tokens, hidden, generator=generator)
        for name, arguments in (("rows_needed", 4), ("workspace_needed", 3), ("saved_needed", 1)):
            getattr(library, name).restype = ctypes.c_int64
            getattr(library, name).argtypes = [ctypes.c_int64] * arguments
        self.rows = library.rows_needed(tokens, k, experts, 1)
        self.offsets = torch.zeros(experts + 1, dtype=torch.int64)
        self.row_of_slot = torch.zeros(tokens, k, dtype=torch.int64)
        self.slot_of_row = torch.zeros(self.rows, dtype=torch.int64)
        self.permuted = torch.zeros(self.rows, hidden)
        self.combined = torch.zeros(tokens, hidden)
        self.grad_permuted = torch.zeros(self.rows, hidden)
        self.grad_weights = torch.zeros(tokens, k)
        self.workspace = torch.zeros(library.workspace_needed(tokens, k, experts) // 8 + 2, dtype=torch.int64)
        self.logits = torch.randn(tokens, experts, generator=generator)
        self.bias = 0.1 * torch.randn(experts, generator=generator)
        self.counts = torch.zeros(experts, dtype=torch.int64)
        self.load = torch.zeros(experts, dtype=torch.int64)
        self.saved = torch.zeros(library.saved_needed(experts), dtype=torch.uint8)
        self.routed_ids = torch.zeros(tokens, compare_torch.K, dtype=torch.int32)
        self.routed_weights = torch.zeros(tokens, compare_torch.K)
        tensors = [getattr(self, name).data_ptr() for name in ("ids", "weights", "states", "offsets", "row_of_slot", "slot_of_row",
                                                               "permuted", "combined", "grad_permuted", "grad_weights", "workspace")]
        self.call = Call(tokens, k, experts, hidden, self.rows, *tensors, self.workspace.numel() * 8, threads, self.logits.data_ptr(),
                         self.bias.data_ptr(), self.counts.data_ptr(), self.load.data_ptr(), self.saved.data_ptr(),
                         self.saved.numel(), self.routed_ids.data_ptr(), self.routed_weights.data_ptr())


def torch_permutation(problem, ids=None, counts=None):
    flat = (problem.ids if ids is None else ids).flatten()
    order = torch.argsort(flat, stable=True)
    rows = torch.empty_like(order)
    rows[order] = torch.arange(order.numel())
    counts = torch.bincount(flat, minlength=problem.experts) if counts is None else counts
    return order, rows.view(problem.tokens, -1), torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def torch_routed(problem, route):
    """compare_torch.py's routing and the permutation of its ids; counts are its own."""
    ids, _, counts, *_ = route(problem, problem.logits)
    return ids, torch_permutation(problem, ids, counts)


def torch_permute(problem, order):
    return problem.states.index_select(0, order // problem.k)


def torch_combine(problem, order, permuted):
    weighted = permuted * problem.weights.flatten().index_select(0, order).unsqueeze(1)
    return torch.zeros_like(problem.states).index_add_(0, order // problem.k, weighted)


def torch_combine_backward(problem, order, permuted):
    grads = problem.states.index_select(0, order // problem.k)
    grad_permuted = grads * problem.weights.flatten().index_select(0, order).unsqueeze(1)
    grad_weights = torch.empty(order.numel())
    grad_weights[order] = (grads * permuted).sum(1)
    return grad_permuted, grad_weights.view(problem.tokens, problem.k)


def compare_routing(library, problem, shape, repeats, results):
    """Routing with counts and sums, then the stable permutation; whether both sides give the same."""
    agree = True
    for title, name, route in (("softmax", "softmax_and_permutation", compare_torch.torch_softmax),
                               ("sigmoid + bias, 8 groups keep 4", "sigmoid_groups_and_permutation", compare_torch.torch_sigmoid_groups)):
        call, ours = ctypes.byref(problem.call), getattr(library, name)
        problem.call.bias = None if route is compare_torch.torch_softmax else problem.bias.data_ptr()
        ours(call)
        ids, (order, rows, offsets) = torch_routed(problem, route)
        agree = agree and bool((problem.routed_ids == ids).all() and (problem.slot_of_row == order).all()
                               and (problem.row_of_slot == rows).all() and (problem.offsets == offsets).all())
        report(f"{title}, counts, permutation, {shape}",
               paired(lambda: ours(call), lambda: torch_routed(problem, route), repeats), results)
    return agree


def close(a, b):
    return (a - b).abs().max().item() <= 1e-5 * (1 + b.abs().max().item())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores, on both sides")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json")
    args = parser.parse_args()
    use_threads(args.threads)
    library = ctypes.CDLL(args.library)
    problem = Problem(library, args.tokens, args.experts, args.top_k, args.hidden, args.threads)
    call = ctypes.byref(problem.call)
    results = []
    shape = f"T={args.tokens} E={args.experts} K={args.top_k}"
    print(f"compare_torch_dispatch.py {' '.join(sys.argv[2:])}: {compare_call.cpu_name()}, {torch.get_num_threads()} threads, "
          f"PyTorch {torch.__version__}, {datetime.date.today().isoformat()}")

    routing_agrees = args.top_k != compare_torch.K or compare_routing(library, problem, shape, args.repeats, results)
    library.permutation(call)
    order, rows, offsets = torch_permutation(problem)
    agree = routing_agrees and bool((problem.slot_of_row == order).all() and (problem.row_of_slot == rows).all() and (problem.offsets == offsets).all())
    report(f"stable permutation, {shape}", paired(lambda: library.permutation(call), lambda: torch_permutation(problem), args.repeats),
           results)
    shape += f" H={args.hidden}"
    library.permute(call)
    permuted = torch_permute(problem, order)
    agree = agree and bool((problem.permuted == permuted).all())
    report(f"permute, {shape}", paired(lambda: library.permute(call), lambda: torch_permute(problem, order), args.repeats), results)
    library.combine(call)
    agree = agree and close(problem.combined, torch_combine(problem, order, permuted))
    report(f"combine, {shape}",
           paired(lambda: library.combine(call), lambda: torch_combine(problem, order, permuted), args.repeats), results)
    library.combine_backward(call)
    grad_permuted, grad_weights = torch_combine_backward(problem, order, permuted)
    agree = agree and close(problem.grad_permuted, grad_permuted) and close(problem.grad_weights, grad_weights)
    report(f"combine backward, {shape}",
           paired(lambda: library.combine_backward(call), lambda: torch_combine_backward(problem, order, permuted), args.repeats), results)
    if not agree:
        print("the two sides disagree", file=sys.stderr)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"cores": torch.get_num_threads(), "date": datetime.date.today().isoformat(), "torch": torch.__version__,
                       "results": results}, file, indent=1)
            file.write("\n")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
