"""compare_torch.py on a GPU: routing (compare_torch_routing.py) and dispatch (compare_torch_dispatch_cuda.py) beside PyTorch.

Each side is CALLS calls in a CUDA graph (in the stream where a graph cannot hold them, which the line says), timed by events around its replay;
the two sides take turns. Inputs are the same every time, so that they may stay in the L2 cache (router_gpu also times cold ones).

A case has a name(), says whether torch.compile gets a turn (`compiles`), and gives PyTorch's function (of_torch()) and a problem(library, machine):
its memory, with ours(), theirs(of_torch), which gives what to time, and disagreement(of_torch).
"""
import datetime
import json
import statistics
import sys
import time

import torch

import compare_call
import compare_torch_dispatch_cuda
import compare_torch_routing

CALLS = 20


class CudaMachine:
    """Where the calls run, and how they are timed."""
    device = "cuda"

    def __init__(self):
        self.stream = torch.cuda.Stream()

    def name(self):
        return torch.cuda.get_device_name()

    def place(self):
        return torch.cuda.current_stream().cuda_stream

    def synchronize(self):
        torch.cuda.synchronize()

    def timer(self, f):
        """A function that gives microseconds per call of f, and how they are timed."""
        for _ in range(3):
            f()
        try:
            replay, how = self.captured(f), "graph"
        except RuntimeError as error:
            print(f"no graph: {str(error).splitlines()[0]}", file=sys.stderr)
            replay, how = lambda: [f() for _ in range(CALLS)], "stream"
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def microseconds():
            start.record()
            replay()
            stop.record()
            stop.synchronize()
            return 1e3 * start.elapsed_time(stop) / CALLS

        return microseconds, how

    def captured(self, f):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for _ in range(CALLS):
                f()
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay


def time_case(problem, of_torch, against, repeats):
    """One result: both sides in turns."""
    case = problem.case
    ours, how = problem.machine.timer(problem.ours)
    theirs, how_theirs = problem.machine.timer(problem.theirs(of_torch))
    times = ([], [])
    for _ in range(repeats):
        times[0].append(ours())
        times[1].append(theirs())
    medians = [statistics.median(side) for side in times]
    note = "".join(f" ({side} not in a graph)" for side, which in ((against, how_theirs), ("moe_balance", how)) if which != "graph")
    line = (f"{case.name():<72} {against} {medians[1]:9.2f} us, moe_balance {medians[0]:8.2f} us "
            f"({min(times[0]):.2f} to {max(times[0]):.2f}){note}, {medians[1] / medians[0]:.1f}x")
    print(line, flush=True)
    return {"case": case.name(), "against": against, "timed": [how, how_theirs], "moe_balance_us": sorted(times[0]),
            "torch_us": sorted(times[1]), "ratio_of_medians": medians[1] / medians[0], "line": line}


def compiled(forward):
    """torch.compile's version. Its backward may run more than once here, so it must not reuse its inputs' memory."""
    torch._dynamo.reset()
    try:
        import torch._functorch.config as functorch_config
        functorch_config.donated_buffer = False
    except (ImportError, AttributeError):
        pass  # versions that never reuse it
    return torch.compile(forward, dynamic=False)


def write(path, machine, results, failures):
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"command": " ".join(["compare_torch.py"] + sys.argv[2:]), "gpu": machine.name(), "torch": torch.__version__,
                       "cuda": torch.version.cuda, "date": datetime.date.today().isoformat(), "failures": failures,
                       "results": results}, file, indent=1)
            file.write("\n")


def compare_all(args, machine, cases=compare_torch_routing.CASES + compare_torch_dispatch_cuda.CASES):
    library = compare_call.load(args.library)
    results, failures, sound = [], [], True
    started = time.monotonic()
    print(f"compare_torch.py {' '.join(sys.argv[2:])}: {machine.name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, "
          f"{datetime.date.today().isoformat()}")
    sides = [("PyTorch", lambda of_torch: of_torch)] + ([("torch.compile", compiled)] if args.compile else [])
    for against, version in sides:  # all of eager PyTorch first: compiling takes long and may be cut off
        for case in cases if against == "PyTorch" else [case for case in cases if case.compiles]:
            try:
                if time.monotonic() - started > args.seconds:
                    raise TimeoutError("not begun")
                problem = case.problem(library, machine)
                of_torch = version(case.of_torch())
                different = problem.disagreement(of_torch)
                if different:
                    raise RuntimeError(f"{case.name()}: {different}")
                results.append(time_case(problem, of_torch, against, args.repeats))
            except Exception as error:  # noqa: BLE001 - one case must not cost the others
                sound = sound and against != "PyTorch"  # what torch.compile cannot do is its own affair
                failures.append(f"{against}: {case.name()}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                print(failures[-1], file=sys.stderr, flush=True)
            write(args.json, machine, results, failures)
    return 0 if sound else 1


def compare(args):
    if not torch.cuda.is_available():
        print("SKIPPED: PyTorch sees no GPU")
        return 77
    machine = CudaMachine()
    with torch.cuda.stream(machine.stream):
        return compare_all(args, machine)
