#!/usr/bin/env python3
"""Times routing, on a GPU also dispatch, beside the same work in PyTorch, in one run, and prints one line a case.

Usage: compare_torch.py LIBRARY [--tokens N] [--experts N] [--top-k N] [--dtype NAME] [--router NAME] [--threads N] [--pool] [--repeats N] [--json FILE]
       compare_torch.py LIBRARY --device cuda [--compile] [--seconds N] [--repeats N] [--json FILE]
On the CPU, LIBRARY is bench/compare_library.cpp as a shared library; `bash bench/compare_torch.sh` builds it and calls this. On a GPU it is
bench/compare_library.cu and compare_dispatch.cu (CMake's target compare_cuda), and compare_torch_cuda.py says what is timed.
Both sides take turns, so that a slow moment of the machine hits both; medians are compared. Exit 1 when results differ, 77 on a GPU
when PyTorch is missing or sees no GPU.
"""
import argparse
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
import compare_torch_routing as routing
from compare_timing import Cpu, paired, report, use_threads

ROUTERS = (("softmax", routing.SOFTMAX), ("softmax_over_selected", "softmax over the chosen, counts"),
           ("sigmoid_bias", "sigmoid + bias, counts"), ("sigmoid_groups", routing.SIGMOID))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("library")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8, help="compare_torch.sh compiles for it")
    parser.add_argument("--dtype", choices=compare_call.DATA_TYPES, default="float32", help="of the logits")
    parser.add_argument("--router", choices=[router for router, _ in ROUTERS], default="", help="this one only")
    parser.add_argument("--threads", type=int, default=0, help="on both sides; 0: all cores; 1: timed in CPU seconds")
    parser.add_argument("--pool", action="store_true", help="has been seen to by compare_torch.sh")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="on a GPU: beside torch.compile's result, too")
    parser.add_argument("--seconds", type=float, default=1e9, help="on a GPU: begin no case after so many")
    args = parser.parse_args()
    if args.device == "cuda" and (args.pool or args.router or args.top_k != 8 or args.dtype != "float32"):
        parser.error("--pool, --router, --top-k and --dtype are for the CPU")
    if args.device == "cuda":
        import compare_torch_cuda
        args.seconds -= time.monotonic() - STARTED
        return compare_torch_cuda.compare(args)
    use_threads(args.threads)
    library = compare_call.load(args.library)
    if library.top_k() != args.top_k:
        parser.error(f"the library is compiled for --top-k {library.top_k()}")
    results, agree = [], True
    print(f"compare_torch.py {' '.join(sys.argv[2:])}: {compare_call.cpu_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, "
          f"{datetime.date.today().isoformat()}")
    for router, title in ROUTERS:
        if args.router not in ("", router) or router == "sigmoid_groups" and not routing.has_groups(args.experts, args.top_k):
            continue
        if router == "softmax_over_selected" and args.top_k == 1:  # a softmax over one has no gradient
            continue
        for work in ("forward", "backward"):
            case = routing.Case(work, router, title, args.tokens, args.experts, args.top_k, args.dtype)
            try:
                problem = case.problem(library, Cpu(args.threads))
            except RuntimeError as error:  # bfloat16 has few values
                agree = False
                print(error, file=sys.stderr)
                continue
            different = problem.disagreement(case.of_torch())
            if different:
                agree = False
                print(f"{case.name()}: {different}", file=sys.stderr)
            report(case.name(), paired(problem.ours, problem.theirs(case.of_torch()), args.repeats), results)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"command": " ".join(["compare_torch.py"] + sys.argv[2:]), "machine": platform.processor() or platform.machine(), "cpu": compare_call.cpu_name(), "cores": torch.get_num_threads(),
                       "date": datetime.date.today().isoformat(), "torch": torch.__version__, "results": results}, file, indent=1)
            file.write("\n")
    if not results:
        print("no router chooses so many of so many experts", file=sys.stderr)
    return 0 if agree and results else 1


if __name__ == "__main__":
    sys.exit(main())
