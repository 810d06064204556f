#!/usr/bin/env python3
"""Times routing, on a GPU also dispatch, beside the same work in PyTorch, in one run, and prints one line a case.

Usage: compare_torch.py LIBRARY [--tokens N] [--experts N] [--top-k 2|8] [--threads N] [--pool] [--repeats N] [--json FILE]
       compare_torch.py LIBRARY --device cuda [--compile] [--seconds N] [--repeats N] [--json FILE]
On the CPU, LIBRARY is bench/compare_library.cpp as a shared library; `bash bench/compare_torch.sh` builds it and calls this. On a GPU it is
bench/compare_library.cu and compare_dispatch.cu (CMake's target compare_cuda), and compare_torch_cuda.py says what is timed.
Both sides take turns, so that a slow moment of the machine hits both; medians are compared. Exit 1 when ids differ, 77 on a GPU
when PyTorch is missing or sees no GPU.
"""
import argparse
import ctypes
import datetime
import json
import platform
import sys
import time

STARTED = time.monotonic()  # loading PyTorch takes seconds

try:
    import torch
except ImportError:
    print("SKIPPED: this Python has no torch")
    sys.exit(77)

import compare_call
from compare_timing import paired, report, use_threads

K = 8  # on the CPU --top-k
GROUPS, GROUPS_KEPT = 8, 4


class Problem:
    """One set of inputs and outputs, shared by both sides."""

    def __init__(self, library, tokens, experts, threads):
        generator = torch.Generator().manual_seed(1)
        self.tokens, self.experts = tokens, experts
        self.logits = torch.randn(tokens, experts, generator=generator)
        self.grad_weights = torch.randn(tokens, K, generator=generator)
        self.bias = 0.1 * torch.randn(experts, generator=generator)
        self.ids = torch.zeros(tokens, K, dtype=torch.int32)
        self.weights = torch.zeros(tokens, K)
        self.counts = torch.zeros(experts, dtype=torch.int64)
        self.load = torch.zeros(experts, dtype=torch.int64)
        self.saved = torch.zeros(library.saved_bytes(experts), dtype=torch.uint8)
        self.grad_logits = torch.zeros(tokens, experts)
        self.threads = threads

    def call(self, bias=None):
        """Arguments of a call; without a bias, which PyTorch's side of softmax has not, either."""
        return compare_call.Call(self.tokens, self.experts, self.logits.data_ptr(), self.ids.data_ptr(), self.weights.data_ptr(),
                                 self.counts.data_ptr(), bias.data_ptr() if bias is not None else None, self.load.data_ptr(), self.saved.data_ptr(),
                                 self.saved.numel(), self.grad_weights.data_ptr(), self.grad_logits.data_ptr(), self.threads)


def torch_softmax(problem, logits):
    probabilities = torch.softmax(logits, -1)
    weights, ids = torch.topk(probabilities, K)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    counts = torch.bincount(ids.flatten(), minlength=problem.experts)
    return ids, weights, counts, probabilities.sum(0)


def torch_sigmoid_groups(problem, logits):
    scores = torch.sigmoid(logits)
    ranking = scores + problem.bias
    grouped = ranking.view(problem.tokens, GROUPS, -1)
    best = grouped.topk(2, -1)[0].sum(-1).topk(GROUPS_KEPT, -1)[1]
    kept = torch.zeros(problem.tokens, GROUPS, dtype=torch.bool).scatter_(1, best, True)
    ranking = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).view(problem.tokens, -1)
    ids = ranking.topk(K)[1]
    weights = scores.gather(1, ids)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5
    return ids, weights, torch.bincount(ids.flatten(), minlength=problem.experts)


def torch_softmax_backward(problem):
    logits = problem.logits.clone().requires_grad_()
    _, weights, counts, sums = torch_softmax(problem, logits)
    share = counts / (K * problem.tokens)
    loss = 1e-2 * problem.experts * (share * sums / problem.tokens).sum()
    return lambda: torch.autograd.grad([weights, loss], logits, [problem.grad_weights, torch.tensor(1.0)], retain_graph=True)


def torch_sigmoid_groups_backward(problem):
    logits = problem.logits.clone().requires_grad_()
    weights = torch_sigmoid_groups(problem, logits)[1]
    return lambda: torch.autograd.grad(weights, logits, problem.grad_weights, retain_graph=True)


def largest_difference(a, b):
    return (a - b).abs().max().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("library")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, choices=(2, 8), default=8, help="2: softmax only")
    parser.add_argument("--threads", type=int, default=0, help="on both sides; 0: all cores; 1: timed in CPU seconds")
    parser.add_argument("--pool", action="store_true", help="has been seen to by compare_torch.sh")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="on a GPU: beside torch.compile's result, too")
    parser.add_argument("--seconds", type=float, default=1e9, help="on a GPU: begin no case after so many")
    args = parser.parse_args()
    if args.pool and args.device == "cuda":
        parser.error("--pool is for the CPU")
    if args.device == "cuda":
        import compare_torch_cuda
        args.seconds -= time.monotonic() - STARTED
        return compare_torch_cuda.compare(args)
    global K
    K = args.top_k
    use_threads(args.threads)
    library = compare_call.load(args.library)
    problem = Problem(library, args.tokens, args.experts, args.threads)
    results, agree = [], True
    print(f"compare_torch.py {' '.join(sys.argv[2:])}: {compare_call.cpu_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
          f"{datetime.date.today().isoformat()}")
    shape = f"T={args.tokens} E={args.experts} K={K}"
    cases = [
        ("softmax, renormalise, counts, P sums", "softmax" if K == 8 else "softmax_top2", None, torch_softmax, torch_softmax_backward),
    ] + ([] if K != 8 or args.experts < 2 * GROUPS else [
        ("sigmoid + bias, 8 groups keep 4, counts", "sigmoid_groups", problem.bias, torch_sigmoid_groups,
         torch_sigmoid_groups_backward),
    ])
    for title, name, bias, torch_forward, torch_backward in cases:
        call = ctypes.byref(problem.call(bias))
        ours = getattr(library, name + "_forward")
        ours(call)
        expected = torch_forward(problem, problem.logits)
        same = bool((problem.ids == expected[0].to(torch.int32)).all()) and bool((problem.counts == expected[2]).all())
        close = largest_difference(problem.weights, expected[1]) < 2e-5
        agree = agree and same and close
        report(f"forward, {title}, {shape}", paired(lambda: ours(call), lambda: torch_forward(problem, problem.logits), args.repeats),
               results)
        ours_backward, theirs_backward = getattr(library, name + "_backward"), torch_backward(problem)
        ours_backward(call)
        gradient = theirs_backward()[0]
        agree = agree and largest_difference(problem.grad_logits, gradient) < 1e-5 + 1e-4 * gradient.abs().max().item()
        report(f"backward, {title}, {shape}", paired(lambda: ours_backward(call), theirs_backward, args.repeats), results)
        if not agree:
            print(f"{name}: the two sides disagree", file=sys.stderr)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"command": " ".join(["compare_torch.py"] + sys.argv[2:]), "machine": platform.processor() or platform.machine(), "cpu": compare_call.cpu_name(), "cores": torch.get_num_threads(),
                       "date": datetime.date.today().isoformat(), "torch": torch.__version__, "results": results}, file, indent=1)
            file.write("\n")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
