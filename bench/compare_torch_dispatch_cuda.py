"""The dispatch cases of compare_torch_cuda.py: routing with the stable permutation, the permutation alone, and what moves hidden states, beside PyTorch's
argsort + index_select + index_add_. Eager PyTorch only: torch.compile's turn is for routing.

Rows are not padded, so that both sides must give the same order. PyTorch's ids are int64, as topk gives them; nothing on its side waits for the host.
"""
import copy
from typing import NamedTuple

import torch

import compare_dispatch
import compare_torch_routing as routing


class Case(NamedTuple):
    work: str  # as the library's function is named
    title: str
    tokens: int
    experts: int
    k: int
    hidden: int = 1
    router: str = ""  # of the work that routes
    compiles = False

    def name(self):
        shape = f"T={self.tokens} E={self.experts} K={self.k}"
        return f"{self.title}, {shape} H={self.hidden}" if self.work in MOVED else f"{self.title}, {shape}"

    def problem(self, library, machine):
        return Problem(self, library, machine)

    def of_torch(self):
        if self.router:
            return route_and_permute
        return permutation if self.work == "permutation" else MOVED[self.work][0]

    def of_routing(self):
        return routing.Case("forward", self.router or "softmax", self.title, self.tokens, self.experts, self.k)


SOFTMAX = "softmax, renormalise, counts, P sums, permutation"
SIGMOID = "sigmoid + bias, 8 groups keep 4, counts, permutation"
CASES = [
    Case("softmax_and_permutation", SOFTMAX, 8192, 256, 8, router="softmax"),
    Case("softmax_and_permutation", SOFTMAX, 32768, 256, 8, router="softmax"),
    Case("sigmoid_groups_and_permutation", SIGMOID, 8192, 256, 8, router="sigmoid_groups"),
    Case("permutation", "stable permutation", 8192, 256, 8),
    Case("permute", "permute, bfloat16", 8192, 256, 8, 2048),
    Case("permute_by_rows", "permute without row_of_slot, bfloat16", 8192, 256, 8, 2048),
    Case("combine", "combine, bfloat16", 8192, 256, 8, 2048),
    Case("combine_backward", "combine backward, bfloat16", 8192, 256, 8, 2048),
]


def permutation(problem):
    return compare_dispatch.torch_permutation(problem.chosen, routing.counts_of(problem.chosen, problem.experts))


def route_and_permute(problem):
    """What routing gives, and the permutation of the ids that it chose; its counts serve the offsets."""
    case = problem.routing.case
    ids, weights, counts, *sums = case.of_torch()(case, problem.routing.logits, problem.routing.bias)
    return ids, weights, counts, *sums, *compare_dispatch.torch_permutation(ids, counts)


def permute(problem):
    return (compare_dispatch.torch_permute(problem.states, problem.order, problem.case.k),)


def combine(problem):
    return (compare_dispatch.torch_combine(problem.permuted, problem.weights, problem.order),)


def combine_backward(problem):
    return compare_dispatch.torch_combine_backward(problem.states, problem.permuted, problem.weights, problem.order)


def same(ours, exact):
    return bool((ours == exact).all())


# What moves hidden states: PyTorch's function, where moe_balance leaves its results, and how they agree.
MOVED = {"permute": (permute, ("permuted",), same), "permute_by_rows": (permute, ("permuted",), same),
         "combine": (combine, ("combined",), compare_dispatch.close),
         "combine_backward": (combine_backward, ("grad_permuted", "grad_weights"), compare_dispatch.close)}


class Problem(compare_dispatch.Problem):
    """One case's inputs and outputs, shared by both sides. The experts' outputs are drawn, not permuted, so that no two rows are alike."""

    def __init__(self, case, library, machine):
        self.case, self.machine = case, machine
        self.routing = routing.Problem(case.of_routing(), library, machine)
        super().__init__(library, self.routing.arguments(), case.k, case.hidden, torch.bfloat16, machine.device)
        self.permuted.normal_(generator=torch.Generator(device=machine.device).manual_seed(2))
        self.chosen = self.ids.long()
        self.order, self.rows, self.offsets_of_torch = permutation(self)

    def ours(self):
        """Enqueues moe_balance's part on the current stream."""
        self.call.routing.place = self.machine.place()
        self.run(self.case.work)

    def theirs(self, of_torch):
        return lambda: of_torch(self)

    def in_float32(self):
        """The same with exact hidden states: the sums that results are held to, without what PyTorch's lose in bfloat16."""
        exact = copy.copy(self)
        exact.states, exact.permuted = self.states.float(), self.permuted.float()
        return exact

    def disagreement(self, of_torch):
        """What differs between the sides, or ""."""
        if self.case.router:
            self.ours()
            expected = of_torch(self)
            return self.routing.difference(expected) or self.difference_of_rows(*expected[-3:])
        self.call.routing.place = self.machine.place()
        self.run("permutation")
        different = self.difference_of_rows(self.order, self.rows, self.offsets_of_torch)
        if different or self.case.work == "permutation":
            return different
        expected = of_torch(self.in_float32())
        self.ours()
        self.machine.synchronize()
        _, names, agree = MOVED[self.case.work]
        wrong = [name for name, exact in zip(names, expected) if not agree(getattr(self, name), exact)]
        return f"the values of {' and '.join(wrong)} differ" if wrong else ""

    def difference_of_rows(self, order, rows, offsets):
        self.machine.synchronize()
        return "" if self.has_permutation(order, rows, offsets) else "the permutations differ"
