"""compare_torch.py on a GPU: PyTorch's eager ops, and what torch.compile makes of them, beside moe_balance.

Each side is CALLS calls in a CUDA graph (in the stream where a graph cannot hold them, which the line says), timed by events around its replay;
the two sides take turns. Inputs are the same every time, so that they may stay in the L2 cache (router_gpu also times cold ones). Logits
are drawn so that no two values that matter to the selection are near each other: both sides must then choose the same ids.
"""
import ctypes
import datetime
import json
import statistics
import sys
import time
from typing import NamedTuple

import torch

import compare_call

CALLS = 20
GROUPS, GROUPS_KEPT, SCALING_FACTOR = 8, 4, 2.5
COEFFICIENT = 1e-2


class Case(NamedTuple):
    work: str
    router: str  # as the library's functions are named
    title: str
    tokens: int
    experts: int
    k: int

    def name(self):
        return f"{self.work}, {self.title}, T={self.tokens} E={self.experts} K={self.k}"


SOFTMAX = "softmax, renormalise, counts, P sums"
SIGMOID = "sigmoid + bias, 8 groups keep 4, counts"
CASES = [
    Case("forward", "softmax", SOFTMAX, 32768, 256, 8),
    Case("forward", "softmax", SOFTMAX, 8192, 256, 8),
    Case("backward", "softmax", SOFTMAX, 32768, 256, 8),
    Case("backward", "softmax", SOFTMAX, 8192, 256, 8),
    Case("forward", "sigmoid_groups", SIGMOID, 8192, 256, 8),
    Case("backward", "sigmoid_groups", SIGMOID, 8192, 256, 8),
    Case("route", "softmax", "softmax, renormalise", 64, 256, 8),
    Case("route", "softmax", "softmax, renormalise", 16, 256, 8),
    Case("route", "softmax", "softmax, renormalise", 1, 256, 8),
    Case("forward", "softmax", SOFTMAX, 8192, 512, 8),
    Case("forward", "softmax_top16", SOFTMAX, 8192, 896, 16),
]


def counts_of(ids, experts):
    flat = ids.flatten()
    return torch.zeros(experts, dtype=torch.int64, device=ids.device).scatter_add_(0, flat, torch.ones_like(flat))


def renormalised(weights):
    return weights / (weights.sum(-1, keepdim=True) + 1e-20)


def torch_softmax_route(case, logits, _bias):
    weights, ids = torch.topk(torch.softmax(logits, -1), case.k)
    return ids, renormalised(weights)


def torch_softmax(case, logits, _bias):
    probabilities = torch.softmax(logits, -1)
    weights, ids = torch.topk(probabilities, case.k)
    return ids, renormalised(weights), counts_of(ids, case.experts), probabilities.sum(0)


def group_scores(case, ranking):
    return ranking.view(case.tokens, GROUPS, -1).topk(2, -1)[0].sum(-1)


def in_kept_groups(case, ranking):
    best = group_scores(case, ranking).topk(GROUPS_KEPT, -1)[1]
    kept = torch.zeros(case.tokens, GROUPS, dtype=torch.bool, device=ranking.device).scatter_(1, best, True)
    grouped = ranking.view(case.tokens, GROUPS, -1)
    return grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).view(case.tokens, -1)


def torch_sigmoid_groups(case, logits, bias):
    scores = torch.sigmoid(logits)
    ids = in_kept_groups(case, scores + bias).topk(case.k)[1]
    weights = renormalised(scores.gather(1, ids)) * SCALING_FACTOR
    return ids, weights, counts_of(ids, case.experts)


def torch_forward(case):
    if case.work == "route":
        return torch_softmax_route
    return torch_sigmoid_groups if case.router == "sigmoid_groups" else torch_softmax


def torch_outputs_and_gradients(case, forward, logits, bias, grad_weights):
    """What a training step differentiates, and the gradients that reach it."""
    results = forward(case, logits, bias)
    if case.router == "sigmoid_groups":
        return [results[1]], [grad_weights]
    share = results[2] / (case.k * case.tokens)
    loss = COEFFICIENT * case.experts * (share * results[3] / case.tokens).sum()
    return [results[1], loss], [grad_weights, torch.ones_like(loss)]


def is_clear(case, logits, bias):
    """[T]: whether rounding cannot change what is selected."""
    values, least = logits.double(), 1e-4
    clear = torch.ones(case.tokens, dtype=torch.bool, device=logits.device)
    if case.router == "sigmoid_groups":
        values, least = torch.sigmoid(values) + bias.double(), 1e-5
        groups = group_scores(case, values).sort(-1, descending=True)[0]
        clear = groups[:, GROUPS_KEPT - 1] - groups[:, GROUPS_KEPT] > least
        values = in_kept_groups(case, values)
    best = values.topk(case.k + 1)[0]
    return clear & ((best[:, :-1] - best[:, 1:]).min(-1)[0] > least)


class Problem:
    """One case's inputs and outputs, shared by both sides."""

    def __init__(self, case, library, machine):
        self.case, self.library, self.machine = case, library, machine
        generator = torch.Generator(device=machine.device).manual_seed(1)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, device=machine.device)

        def zeros(*shape, dtype=torch.float32):
            return torch.zeros(*shape, dtype=dtype, device=machine.device)

        self.bias = 0.1 * normal(case.experts) if case.router == "sigmoid_groups" else zeros(case.experts)
        self.logits = normal(case.tokens, case.experts)
        for _ in range(100):
            unclear = ~is_clear(case, self.logits, self.bias)
            if not unclear.any():
                break
            self.logits[unclear] = normal(case.tokens, case.experts)[unclear]
        else:
            raise RuntimeError(f"{case.name()}: no logits without near ties were found")
        self.grad_weights = normal(case.tokens, case.k)
        self.ids = zeros(case.tokens, case.k, dtype=torch.int32)
        self.weights = zeros(case.tokens, case.k)
        self.counts, self.load = (zeros(case.experts, dtype=torch.int64) for _ in range(2))
        self.saved = zeros(library.saved_bytes(case.experts), dtype=torch.uint8)
        self.grad_logits = zeros(case.tokens, case.experts)

    def call(self, work):
        """Enqueues moe_balance's part on the current stream; softmax without a bias, as on PyTorch's side."""
        bias = self.bias.data_ptr() if self.case.router == "sigmoid_groups" else None
        arguments = compare_call.Call(
            self.case.tokens, self.case.experts, self.logits.data_ptr(), self.ids.data_ptr(), self.weights.data_ptr(),
            self.counts.data_ptr(), bias, self.load.data_ptr(), self.saved.data_ptr(), self.saved.numel(),
            self.grad_weights.data_ptr(), self.grad_logits.data_ptr(), self.machine.place())
        if getattr(self.library, f"{self.case.router}_{work}")(ctypes.byref(arguments)) != 0:
            raise RuntimeError(f"{self.case.name()}: moe_balance failed")

    def theirs(self, forward):
        """PyTorch's part, to be called as often as one likes."""
        if self.case.work != "backward":
            return lambda: forward(self.case, self.logits, self.bias)
        logits = self.logits.clone().requires_grad_()
        outputs, gradients = torch_outputs_and_gradients(self.case, forward, logits, self.bias, self.grad_weights)
        return lambda: torch.autograd.grad(outputs, logits, gradients, retain_graph=True)

    def disagreement(self, expected):
        """What differs between the sides, or "". `expected` is what PyTorch's forward gave."""
        self.call("route" if self.case.work == "route" else "forward")
        self.machine.synchronize()
        if not bool((self.ids == expected[0].to(torch.int32)).all()):
            return "the ids differ"
        if (self.weights - expected[1]).abs().max().item() >= 2e-5:
            return "the weights differ"
        if self.case.work != "route" and not bool((self.counts == expected[2]).all()):
            return "the counts differ"
        if self.case.work == "backward":
            self.call("backward")
            gradient = self.theirs(torch_forward(self.case))()[0]
            self.machine.synchronize()
            if (self.grad_logits - gradient).abs().max().item() >= 1e-5 + 1e-4 * gradient.abs().max().item():
                return "the gradients differ"
        return ""


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


def time_case(problem, forward, against, repeats):
    """One result: both sides in turns."""
    case = problem.case
    ours, how = problem.machine.timer(lambda: problem.call(case.work))
    theirs, how_theirs = problem.machine.timer(problem.theirs(forward))
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


def compare_all(args, machine, cases=CASES):
    library = compare_call.load(args.library)
    results, failures, sound = [], [], True
    started = time.monotonic()
    print(f"compare_torch.py {' '.join(sys.argv[2:])}: {machine.name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, "
          f"{datetime.date.today().isoformat()}")
    sides = [("PyTorch", lambda forward: forward)] + ([("torch.compile", compiled)] if args.compile else [])
    for against, version in sides:  # all of eager PyTorch first: compiling takes long and may be cut off
        for case in cases:
            try:
                if time.monotonic() - started > args.seconds:
                    raise TimeoutError("not begun")
                problem = Problem(case, library, machine)
                forward = version(torch_forward(case))
                different = problem.disagreement(forward(case, problem.logits, problem.bias))
                if different:
                    raise RuntimeError(f"{case.name()}: {different}")
                results.append(time_case(problem, forward, against, args.repeats))
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
