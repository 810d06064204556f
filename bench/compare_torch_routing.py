"""Routing in PyTorch's ops beside the library's, on the CPU and on a GPU: what compare_torch.py times. Logits are drawn so that no two values that matter to
the selection are near each other: both sides must then choose the same ids. Those of two bytes PyTorch turns into float32 first, as models do.
"""
import ctypes
from typing import NamedTuple

import torch

import compare_call

GROUPS, GROUPS_KEPT, SCALING_FACTOR = 8, 4, 2.5
COEFFICIENT = 1e-2


class Case(NamedTuple):
    work: str
    router: str  # as the library's functions are named
    title: str
    tokens: int
    experts: int
    k: int
    dtype: str = "float32"  # of the logits
    compiles = True

    def name(self):
        dtype = "" if self.dtype == "float32" else f", {self.dtype}"
        return f"{self.work}, {self.title}{dtype}, T={self.tokens} E={self.experts} K={self.k}"

    def problem(self, library, machine):
        return Problem(self, library, machine)

    def of_torch(self):
        """PyTorch's forward, also where its gradient is the work."""
        if self.work == "route":
            return torch_softmax_route
        return ROUTERS.get(self.router, torch_softmax)

    def has_bias(self):
        return self.router.startswith("sigmoid")


SOFTMAX = "softmax, renormalise, counts, P sums"
SIGMOID = "sigmoid + bias, 8 groups keep 4, counts"
CASES = [  # on a GPU
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
    if ids.device.type == "cpu":
        return torch.bincount(flat, minlength=experts)  # on a GPU it waits for the host
    return torch.zeros(experts, dtype=torch.int64, device=ids.device).scatter_add_(0, flat, torch.ones_like(flat))


def renormalised(weights):
    """One weight stays what it is, as in the library."""
    return weights if weights.size(-1) == 1 else weights / (weights.sum(-1, keepdim=True) + 1e-20)


def torch_softmax_route(case, logits, _bias):
    weights, ids = torch.topk(torch.softmax(logits.float(), -1), case.k)
    return ids, renormalised(weights)


def torch_softmax(case, logits, _bias):
    probabilities = torch.softmax(logits.float(), -1)
    weights, ids = torch.topk(probabilities, case.k)
    return ids, renormalised(weights), counts_of(ids, case.experts), probabilities.sum(0)


def torch_softmax_over_selected(case, logits, _bias):
    chosen, ids = torch.topk(logits.float(), case.k)
    return ids, torch.softmax(chosen, -1), counts_of(ids, case.experts)


def torch_sigmoid_bias(case, logits, bias):
    scores = torch.sigmoid(logits.float())
    ids = (scores + bias).topk(case.k)[1]
    return ids, renormalised(scores.gather(1, ids)) * SCALING_FACTOR, counts_of(ids, case.experts)


def has_groups(experts, k):
    """Whether so many can be chosen from the groups that are kept, of two experts or more."""
    return experts % GROUPS == 0 and experts >= 2 * GROUPS and GROUPS_KEPT * experts // GROUPS >= k


def group_scores(case, ranking):
    return ranking.view(case.tokens, GROUPS, -1).topk(2, -1)[0].sum(-1)


def in_kept_groups(case, ranking):
    best = group_scores(case, ranking).topk(GROUPS_KEPT, -1)[1]
    kept = torch.zeros(case.tokens, GROUPS, dtype=torch.bool, device=ranking.device).scatter_(1, best, True)
    grouped = ranking.view(case.tokens, GROUPS, -1)
    return grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).view(case.tokens, -1)


def torch_sigmoid_groups(case, logits, bias):
    scores = torch.sigmoid(logits.float())
    ids = in_kept_groups(case, scores + bias).topk(case.k)[1]
    weights = renormalised(scores.gather(1, ids)) * SCALING_FACTOR
    return ids, weights, counts_of(ids, case.experts)


ROUTERS = {"softmax": torch_softmax, "softmax_over_selected": torch_softmax_over_selected, "sigmoid_bias": torch_sigmoid_bias,
           "sigmoid_groups": torch_sigmoid_groups}


def torch_outputs_and_gradients(case, forward, logits, bias, grad_weights):
    """What a training step differentiates, and the gradients that reach it."""
    results = forward(case, logits, bias)
    if len(results) == 3:  # no sums, no loss
        return [results[1]], [grad_weights]
    share = results[2] / (case.k * case.tokens)
    loss = COEFFICIENT * case.experts * (share * results[3] / case.tokens).sum()
    return [results[1], loss], [grad_weights, torch.ones_like(loss)]


def is_clear(case, logits, bias):
    """[T]: whether rounding cannot change what is selected."""
    values, least = logits.double(), 1e-4
    clear = torch.ones(case.tokens, dtype=torch.bool, device=logits.device)
    if case.has_bias():
        values, least = torch.sigmoid(values) + bias.double(), 1e-5
    if case.router == "sigmoid_groups":
        groups = group_scores(case, values).sort(-1, descending=True)[0]
        clear = groups[:, GROUPS_KEPT - 1] - groups[:, GROUPS_KEPT] > least
        values = in_kept_groups(case, values)
    best = values.topk(min(case.k + 1, case.experts))[0]
    return clear if best.size(1) == 1 else clear & ((best[:, :-1] - best[:, 1:]).min(-1)[0] > least)


class Problem:
    """One case's inputs and outputs, shared by both sides."""

    def __init__(self, case, library, machine):
        self.case, self.library, self.machine = case, library, machine
        generator = torch.Generator(device=machine.device).manual_seed(1)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, device=machine.device)

        def logits():
            return normal(case.tokens, case.experts).to(dtype)

        def zeros(*shape, dtype=torch.float32):
            return torch.zeros(*shape, dtype=dtype, device=machine.device)

        dtype = getattr(torch, case.dtype)
        self.bias = 0.1 * normal(case.experts) if case.has_bias() else zeros(case.experts)
        self.logits = logits()
        for _ in range(100):
            unclear = ~is_clear(case, self.logits, self.bias)
            if not unclear.any():
                break
            self.logits[unclear] = logits()[unclear]
        else:
            raise RuntimeError(f"{case.name()}: no logits without near ties were found")
        self.grad_weights = normal(case.tokens, case.k)
        self.ids = zeros(case.tokens, case.k, dtype=torch.int32)
        self.weights = zeros(case.tokens, case.k)
        self.counts, self.load = (zeros(case.experts, dtype=torch.int64) for _ in range(2))
        self.saved = zeros(library.saved_bytes(case.experts), dtype=torch.uint8)
        self.grad_logits = zeros(case.tokens, case.experts, dtype=dtype)

    def arguments(self):
        """Without a bias where PyTorch's side has none."""
        bias = self.bias.data_ptr() if self.case.has_bias() else None
        return compare_call.Call(
            self.case.tokens, self.case.experts, self.logits.data_ptr(), self.ids.data_ptr(), self.weights.data_ptr(),
            self.counts.data_ptr(), bias, self.load.data_ptr(), self.saved.data_ptr(), self.saved.numel(),
            self.grad_weights.data_ptr(), self.grad_logits.data_ptr(), self.machine.place(), compare_call.DATA_TYPES.index(self.case.dtype))

    def run(self, work):
        if getattr(self.library, f"{self.case.router}_{work}")(ctypes.byref(self.arguments())) != 0:
            raise RuntimeError(f"{self.case.name()}: moe_balance failed")

    def ours(self):
        """Enqueues moe_balance's part on the current stream."""
        self.run(self.case.work)

    def theirs(self, forward):
        """PyTorch's part, to be called as often as one likes."""
        if self.case.work != "backward":
            return lambda: forward(self.case, self.logits, self.bias)
        logits = self.logits.clone().requires_grad_()
        outputs, gradients = torch_outputs_and_gradients(self.case, forward, logits, self.bias, self.grad_weights)
        return lambda: torch.autograd.grad(outputs, logits, gradients, retain_graph=True)

    def difference(self, expected):
        """What differs between the results of a call and of PyTorch's forward, or ""."""
        self.machine.synchronize()
        if not bool((self.ids == expected[0].to(torch.int32)).all()):
            return "the ids differ"
        if not (self.weights - expected[1]).abs().max().item() < 2e-5:
            return "the weights differ"
        if self.case.work != "route" and not bool((self.counts == expected[2]).all()):
            return "the counts differ"
        return ""

    def disagreement(self, forward):
        """What differs between the sides, or "". `forward` is PyTorch's."""
        self.run("route" if self.case.work == "route" else "forward")
        different = self.difference(forward(self.case, self.logits, self.bias))
        if not different and self.case.work == "backward":
            self.run("backward")
            gradient = self.theirs(self.case.of_torch())()[0]
            self.machine.synchronize()
            rounding = 0 if self.case.dtype == "float32" else torch.finfo(gradient.dtype).eps
            gradient = gradient.float()
            bound = 1e-5 + 1e-4 * gradient.abs().max() + rounding * gradient.abs()
            if not bool(((self.grad_logits.float() - gradient).abs() < bound).all()):
                different = "the gradients differ"
        return different
