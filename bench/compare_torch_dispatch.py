#!/usr/bin/env python3
"""Times dispatch on the CPU, by itself and with routing, beside PyTorch's argsort + index_select + index_add, in one run, and prints one line a case.

Usage: compare_torch_dispatch.py LIBRARY [--tokens N] [--experts N] [--top-k N] [--hidden N] [--threads N] [--pool] [--repeats N] [--json FILE]
LIBRARY is bench/compare_dispatch.cpp and compare_library.cpp as a shared library; `bash bench/compare_torch_dispatch.sh` builds it and calls this.
Both sides take turns, so that a slow moment of the machine hits both; medians are compared. Exit 1 when results differ.
"""
import argparse
import datetime
import json
import sys

import torch

import compare_call
import compare_dispatch
import compare_torch_routing as routing
from compare_timing import Cpu, paired, report, use_threads


def torch_permutation(ids, experts):
    return compare_dispatch.torch_permutation(ids, torch.bincount(ids.flatten(), minlength=experts))


def torch_routed(routed):
    """PyTorch's routing and the permutation of its ids, whose counts are routing's."""
    expected = routed.case.of_torch()(routed.case, routed.logits, routed.bias)
    return expected, compare_dispatch.torch_permutation(expected[0], expected[2])


def compare_routing(problem, library, args, results):
    """Routing with counts and sums, then the stable permutation; whether both sides give the same."""
    agree = True
    for router, title in (("softmax", routing.SOFTMAX), ("sigmoid_groups", routing.SIGMOID)):
        if router == "sigmoid_groups" and not routing.has_groups(args.experts, args.top_k):
            continue
        case = routing.Case("forward", router, f"{title}, permutation", args.tokens, args.experts, args.top_k)
        routed = case.problem(library, Cpu(args.threads))
        problem.call.routing = routed.arguments()
        work = f"{router}_and_permutation"
        problem.run(work)
        expected, permutation = torch_routed(routed)
        different = routed.difference(expected) or ("" if problem.has_permutation(*permutation) else "the permutations differ")
        if different:
            agree = False
            print(f"{case.name()}: {different}", file=sys.stderr)
        report(case.name(), paired(lambda: problem.run(work), lambda: torch_routed(routed), args.repeats), results)
    return agree


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("library")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores, on both sides")
    parser.add_argument("--pool", action="store_true", help="has been seen to by compare_torch_dispatch.sh")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json")
    args = parser.parse_args()
    use_threads(args.threads)
    library = compare_call.load(args.library)
    if library.top_k() != args.top_k:
        parser.error(f"the library is compiled for --top-k {library.top_k()}")
    where = compare_call.Call(tokens=args.tokens, experts=args.experts, place=args.threads)
    problem = compare_dispatch.Problem(library, where, args.top_k, args.hidden)
    results = []
    shape = f"T={args.tokens} E={args.experts} K={args.top_k}"
    print(f"compare_torch_dispatch.py {' '.join(sys.argv[2:])}: {compare_call.cpu_name()}, {torch.get_num_threads()} threads, "
          f"PyTorch {torch.__version__}, {datetime.date.today().isoformat()}")

    agree = compare_routing(problem, library, args, results)
    problem.run("permutation")
    order, rows, offsets = torch_permutation(problem.ids, args.experts)
    agree = agree and problem.has_permutation(order, rows, offsets)
    shape_of_states = f"{shape} H={args.hidden}"
    report(f"stable permutation, {shape}",
           paired(lambda: problem.run("permutation"), lambda: torch_permutation(problem.ids, args.experts), args.repeats), results)

    def permute():
        return compare_dispatch.torch_permute(problem.states, order, args.top_k)

    def combine():
        return compare_dispatch.torch_combine(permuted, problem.weights, order)

    def combine_backward():
        return compare_dispatch.torch_combine_backward(problem.states, permuted, problem.weights, order)

    permuted = permute()
    for title, work in (("permute without row_of_slot", "permute_by_rows"), ("permute", "permute")):
        problem.permuted.zero_()
        problem.run(work)
        agree = agree and bool((problem.permuted == permuted).all())
        report(f"{title}, {shape_of_states}", paired(lambda: problem.run(work), permute, args.repeats), results)
    problem.run("combine")
    agree = agree and compare_dispatch.close(problem.combined, combine())
    report(f"combine, {shape_of_states}", paired(lambda: problem.run("combine"), combine, args.repeats), results)
    problem.run("combine_backward")
    grad_permuted, grad_weights = combine_backward()
    agree = agree and compare_dispatch.close(problem.grad_permuted, grad_permuted) and compare_dispatch.close(problem.grad_weights, grad_weights)
    report(f"combine backward, {shape_of_states}", paired(lambda: problem.run("combine_backward"), combine_backward, args.repeats), results)
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
