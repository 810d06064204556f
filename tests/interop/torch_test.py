#!/usr/bin/env python3
"""torch_test.py LIBRARY [MOE_OPS_FOLDER]: the operators of torch_ops.cpp, or of torch_ops_stable.cpp with what moe_ops.py registers, against the formulas
written in plain PyTorch, whose own autograd is the judge of every gradient."""

import copy
import functools
import importlib
import io
import itertools
import math
import os
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
import unittest
import unittest.mock

import torch
import torch.utils.checkpoint

ops = None
stable = len(sys.argv) > 2
ROUTERS = ("plain", "balanced", "sequence", "global_batch", "capacity")
FUSED = ("plain", "balanced", "sequence", "global_batch", "capacity", "quantile_global_batch", "replay", "marked_margins")  # with operators that permute, too
SCORES = {"quantile": torch.sigmoid, "quantile_global_batch": functools.partial(torch.softmax, dim=1)}  # of routers whose rule reads margins
RANGES = {"quantile": (-1.0, 1.0, 64), "quantile_global_batch": (-0.5, 0.75, 10)}  # low, high, bins
TOKENS, EXPERTS, K = 12, 8, 2
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def op(router, name):
    return getattr(ops, f"{router}_{name}")


def smooth_logits(seed, tokens=TOKENS, dtype=torch.float64):
    """Logits that are far from any tie: a row is the same 8 values, in an order of its own, moved a little."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(EXPERTS, generator=generator) for _ in range(tokens)])
    values = torch.linspace(-2, 2, EXPERTS, dtype=torch.float64)
    return (values[order] + 0.05 * torch.rand(tokens, EXPERTS, generator=generator, dtype=torch.float64)).to(dtype)


def balance_loss(probabilities, counts):
    return EXPERTS * (counts / counts.sum() * probabilities.mean(0)).sum()


class Expected:
    """ids, weights, counts and loss of a router, from FORMULAS in double; x may need a gradient. `sequences`: how many equal ones, or each one's tokens."""

    def __init__(self, router, x, bias=None, load=None, sequences=1):
        x = x.double()
        bias = torch.zeros(EXPERTS) if bias is None else bias
        if router == "sequence":
            scores = torch.sigmoid(x)
            groups = (scores + bias).reshape(-1, 4, EXPERTS // 4)
            kept = groups.sum(2).topk(2, 1).indices
            outside = torch.ones(len(x), 4, dtype=torch.bool).scatter(1, kept, False).repeat_interleave(EXPERTS // 4, 1)
            ranking = (scores + bias).masked_fill(outside, -math.inf)
        else:
            scores = torch.softmax(x, 1)
            ranking = (x if router == "plain" else scores) + bias
            outside = None
        chosen = ranking.detach().topk(K, 1).indices
        self.weights = scores.gather(1, chosen)
        if router == "plain":
            self.weights = torch.softmax(x.gather(1, chosen), 1)
        if router in ("balanced", "capacity", "sequence"):
            self.weights = self.weights / self.weights.sum(1, keepdim=True)
        if router == "global_batch":
            self.weights = self.weights / self.weights.sum(1, keepdim=True)
        if router == "sequence":
            self.weights = 2.5 * self.weights
        self.ids = chosen
        self.counts = torch.bincount(chosen.flatten(), minlength=EXPERTS)
        probabilities = scores / scores.sum(1, keepdim=True)
        if router == "plain":
            self.loss = torch.zeros((), dtype=torch.float64)
        elif router == "balanced":
            self.loss = balance_loss(probabilities, self.counts) + 0.5 * (torch.logsumexp(x, 1) ** 2).mean()
        elif router == "sequence":
            lengths = [len(x) // sequences] * sequences if isinstance(sequences, int) else sequences
            parts = zip(probabilities.split(lengths), chosen.split(lengths))
            self.loss = sum(balance_loss(p, torch.bincount(c.flatten(), minlength=EXPERTS)) for p, c in parts if len(p)) / len(lengths)
        elif router == "global_batch":
            self.loss = balance_loss(probabilities, self.counts + load)
        else:
            self.loss = balance_loss(probabilities, self.counts)
            self.drop(math.ceil(len(x) * K / EXPERTS * 0.75))

    def drop(self, capacity):
        """Each expert keeps the `capacity` slots with its largest weights."""
        keep = torch.zeros_like(self.ids, dtype=torch.bool)
        for expert in range(EXPERTS):
            slots = (self.ids == expert).nonzero().tolist()
            slots.sort(key=lambda slot: -self.weights[slot[0], slot[1]].item())
            for t, k in slots[:capacity]:
                keep[t, k] = True
        assert not keep.all(), "nothing was dropped: the case tests nothing"
        self.ids = self.ids.masked_fill(~keep, -1)
        self.weights = self.weights * keep


def state_of(router, seed=3):
    """A bias where the router has one, a load where it reads one."""
    generator = torch.Generator().manual_seed(seed)
    bias = 0.02 * torch.rand(EXPERTS, generator=generator) if router in ("balanced", "sequence") else None
    load = torch.randint(1, 9, (EXPERTS,), generator=generator) if router == "global_batch" else None
    return bias, load


def margins_of(router, x, bias):
    """What each expert's score has over the best ranking value that its token leaves unchosen: [T, E]."""
    scores = SCORES[router](x.double())
    return scores - (scores + bias).sort(1, descending=True).values[:, K, None]


def counts_of(router, x, bias):
    """Tokens per expert, and behind them all how many of an expert's margins lie in each bin: [(1 + bins) * E]."""
    low, high, bins = RANGES[router]
    index = ((margins_of(router, x, bias) - low) * bins / (high - low)).floor().long().clamp(0, bins - 1)
    chosen = (SCORES[router](x.double()) + bias).topk(K, 1).indices
    return torch.cat([torch.bincount(chosen.flatten(), minlength=EXPERTS), *(torch.bincount(index[:, e], minlength=bins) for e in range(EXPERTS))])


def spread_margins(router, histogram):
    """As many margins as each bin has, evenly spread over it, of one expert, largest first."""
    low, high, bins = RANGES[router]
    return sorted((low + (high - low) * (b + (i + 0.5) / n) / bins for b, n in enumerate(histogram.tolist()) for i in range(n)), reverse=True)


def bias_from_margins(router, bias, load):
    """The next bias [E] from a layer's load."""
    margins = [spread_margins(router, histogram) for histogram in load[EXPERTS:].reshape(EXPERTS, -1)]
    tokens = len(margins[0])
    moved = 0.75 * bias.double() - 0.25 * torch.tensor([its[tokens * K // EXPERTS] for its in margins], dtype=torch.float64)
    return moved - moved.mean()


class Routing(unittest.TestCase):
    def test_results_and_gradients_are_those_of_the_formulas(self):
        for router, seed in itertools.product(ROUTERS, range(3)):
            with self.subTest(router=router, seed=seed):
                bias, load = state_of(router)
                sequences = 3 if router == "sequence" else 1
                x = smooth_logits(seed).requires_grad_()
                y = x.detach().clone().requires_grad_()
                ids, weights, counts, loss, _ = op(router, "forward")(x, bias, load, sequences=sequences)
                want = Expected(router, y, bias, load, sequences)
                self.assertEqual(ids.dtype, torch.int32)
                self.assertTrue(torch.equal(ids.long(), want.ids))
                self.assertTrue(torch.equal(counts, want.counts))
                torch.testing.assert_close(weights, want.weights, rtol=1e-12, atol=1e-14)
                torch.testing.assert_close(loss.double(), want.loss, rtol=1e-6, atol=1e-7)
                direction = torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
                ((weights * direction).sum() + 2 * loss).backward()
                ((want.weights * direction).sum() + 2 * want.loss).backward()
                torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=2e-8)

    def test_sequences_of_any_lengths(self):
        for lengths in ([5, 1, 6], [0, 12], [3, 0, 0, 9], [12]):
            with self.subTest(lengths=lengths):
                x = smooth_logits(len(lengths)).requires_grad_()
                y = x.detach().clone().requires_grad_()
                bias, _ = state_of("sequence")
                offsets = torch.tensor([0, *itertools.accumulate(lengths)])
                _, _, counts, loss, saved = ops.sequence_forward(x, bias, sequence_offsets=offsets)
                want = Expected("sequence", y, bias, sequences=lengths)
                self.assertTrue(torch.equal(counts, want.counts))
                torch.testing.assert_close(loss.double(), want.loss, rtol=1e-6, atol=1e-7)
                (2 * loss).backward()
                (2 * want.loss).backward()
                torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=2e-8)
                self.assertTrue(torch.equal(ops.sequence_losses(saved, EXPERTS, len(lengths))[0], loss.detach()))
                with self.assertRaisesRegex((RuntimeError, ValueError), r"losses: saved\.size is \d+; allowed: \d+ \(of so many experts and sequences\)"):
                    ops.sequence_losses(saved, EXPERTS, len(lengths) + (1 if len(lengths) == 1 else -1))
                named = ops.sequence_forward(x, bias, sequences=len(lengths), sequence_offsets=offsets)  # the same twice
                self.assertTrue(all(torch.equal(a, b) for a, b in zip(named, ops.sequence_forward(x, bias, sequence_offsets=offsets))))
        equal = torch.tensor([0, 4, 8, 12])
        for router in ("sequence", "balanced"):  # the other reads no sequences
            bias, _ = state_of(router)
            by_offsets = op(router, "forward")(smooth_logits(5), bias, sequence_offsets=equal)
            for got, want in zip(by_offsets, op(router, "forward")(smooth_logits(5), bias, sequences=3), strict=True):
                self.assertTrue(torch.equal(got, want))

    def test_interleaved_sequences(self):
        bias, _ = state_of("sequence")
        results = []
        for token_major in (False, True):
            x = smooth_logits(4)
            if token_major:
                x = x.reshape(3, 4, EXPERTS).transpose(0, 1).reshape(TOKENS, EXPERTS)
            x.requires_grad_()
            ids, weights, _, loss, saved = ops.sequence_forward(x, bias, sequences=3, token_major=token_major)
            (3 * loss + (weights * weights).sum()).backward()
            results.append([loss, saved] + [r.reshape(4, 3, -1).transpose(0, 1).reshape(TOKENS, -1) if token_major else r for r in (ids, weights, x.grad)])
        for got, want in zip(*results, strict=True):
            self.assertTrue(torch.equal(got, want))
        loss = ops.sequence_forward(smooth_logits(4), bias, sequences=3, token_major=True)[3]  # of other sequences
        self.assertFalse(torch.equal(loss, results[0][0].detach()))

    def test_route_agrees_with_forward(self):
        for router in ROUTERS:
            bias, load = state_of(router)
            x = smooth_logits(7)
            outputs = op(router, "forward")(x, bias, load)
            for got, want in zip(op(router, "route")(x, bias), outputs):
                self.assertTrue(torch.equal(got, want), router)

    def test_each_part_has_a_gradient_of_its_own(self):
        bias, _ = state_of("balanced")
        x = smooth_logits(5).requires_grad_()
        _, weights, _, loss, _ = ops.balanced_forward(x, bias)
        self.assertTrue(weights.requires_grad and loss.requires_grad)
        of_loss, = torch.autograd.grad(loss, x, retain_graph=True)
        of_weights, = torch.autograd.grad(weights[:, 0].sum(), x, retain_graph=True)
        both, = torch.autograd.grad(weights[:, 0].sum() + loss, x)
        torch.testing.assert_close(of_loss + of_weights, both, rtol=1e-9, atol=1e-12)
        want = Expected("balanced", y := x.detach().clone().requires_grad_(), bias)
        torch.testing.assert_close(of_loss, torch.autograd.grad(want.loss, y)[0], rtol=1e-6, atol=2e-8)

    def test_gradcheck(self):
        for router in ROUTERS:
            with self.subTest(router=router):
                bias, load = state_of(router)
                x = smooth_logits(1, tokens=6).requires_grad_()
                forward = lambda x: op(router, "forward")(x, bias, load)
                self.assertTrue(torch.autograd.gradcheck(lambda x: forward(x)[1], x))
                if router != "plain":  # the value of the loss is a float32, from sums of fixed point: larger steps
                    self.assertTrue(torch.autograd.gradcheck(lambda x: forward(x)[3].double(), x, eps=5e-3, atol=5e-4, rtol=1e-3))

    def test_padding_counts_for_nothing(self):
        bias, _ = state_of("balanced")
        active = torch.ones(TOKENS, dtype=torch.bool)
        active[[2, 7, 11]] = False
        for mask in (active, active.to(torch.uint8)):
            x = smooth_logits(4).requires_grad_()
            ids, weights, counts, loss, _ = ops.balanced_forward(x, bias, active=mask)
            want = Expected("balanced", y := x.detach()[active].requires_grad_(), bias)
            self.assertTrue(torch.equal(ids[active].long(), want.ids) and (ids[~active] == -1).all() and (weights[~active] == 0).all())
            self.assertTrue(torch.equal(counts, want.counts))
            (weights.sum() + loss).backward()
            (want.weights.sum() + want.loss).backward()
            torch.testing.assert_close(x.grad[active], y.grad, rtol=1e-6, atol=2e-8)
            self.assertEqual(x.grad[~active].abs().sum().item(), 0)

    def test_replayed_ids_are_taken_and_weigh_what_the_scores_say(self):
        bias = torch.linspace(0, 0.02, EXPERTS)
        given = torch.stack([torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(t))[:K] for t in range(TOKENS)]).int()
        given[4, 1] = -1  # an empty slot
        some = torch.arange(TOKENS) % 3 != 1
        for tokens in (None, some, some.to(torch.uint8)):
            x = smooth_logits(11).requires_grad_()
            y = x.detach().clone().requires_grad_()
            ids, weights, counts, loss, _ = ops.replay_forward(x, bias, replay_experts=given, replay_tokens=tokens)
            scores = torch.softmax(y, 1)
            free = (scores + bias).detach().topk(K, 1).indices.int()
            want = given if tokens is None else torch.where(some[:, None], given, free)
            self.assertTrue(torch.equal(ids, want))
            self.assertFalse(torch.equal(want, free))
            self.assertTrue(torch.equal(counts, torch.bincount(want[want >= 0], minlength=EXPERTS)))
            picked = torch.where(want >= 0, scores.gather(1, want.clamp(min=0).long()), 0.0)
            expected = picked / picked.sum(1, keepdim=True)
            torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-14)
            expected_loss = EXPERTS * (counts / (TOKENS * K) * scores.mean(0)).sum()
            torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-7)
            (weights[:, 0].sum() + loss).backward()
            (expected[:, 0].sum() + expected_loss).backward()
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=2e-8)
            for got, of_forward in zip(ops.replay_route(x.detach(), bias, None, given, tokens), (ids, weights, counts)):
                self.assertTrue(torch.equal(got, of_forward))

    def test_tokens_that_are_routed_and_not_balanced(self):
        bias, _ = state_of("balanced")
        some = torch.arange(TOKENS) % 3 != 1
        every = torch.ones(TOKENS, dtype=torch.bool)
        upstream = torch.rand(TOKENS, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for given, marks in ((None, every), (some, some), (some.to(torch.uint8), some), (~every, ~every)):
            x = smooth_logits(12).requires_grad_()
            y = x.detach().clone().requires_grad_()
            ids, weights, counts, loss, _ = ops.marked_forward(x, bias, balanced=given)
            routed, seen = Expected("balanced", y, bias), Expected("balanced", y[marks], bias)
            self.assertTrue(torch.equal(ids.long(), routed.ids) and torch.equal(counts, seen.counts))
            self.assertTrue(torch.equal(ops.permutation(ids, EXPERTS)[3], routed.counts))
            torch.testing.assert_close(weights, routed.weights, rtol=1e-12, atol=1e-14)
            expected_loss = seen.loss if marks.any() else 0 * y.sum()
            torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-7)
            ((weights * upstream).sum() + loss).backward()
            ((routed.weights * upstream).sum() + expected_loss).backward()
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=2e-8)
            self.assertTrue(torch.equal(ops.marked_forward(x, bias, accumulate=False, balanced=given)[2], counts))

    def test_counts_are_what_is_to_be_added_to_the_load(self):
        x, bias = smooth_logits(13), torch.linspace(0, 0.2, EXPERTS)
        marks = torch.arange(TOKENS) % 3 != 1
        load = torch.arange(11 * EXPERTS)
        for of_call, given in ((x, None), (x[marks], marks)):
            ids, _, counts, loss, _ = ops.marked_margins_forward(x, bias, load, balanced=given)
            self.assertTrue(torch.equal(counts, counts_of("quantile_global_batch", of_call, bias)))
            torch.testing.assert_close(loss.double(), balance_loss(torch.softmax(of_call, 1), counts[:EXPERTS] + load[:EXPERTS]), rtol=1e-6, atol=1e-7)
        load = torch.arange(EXPERTS)
        _, _, counts, loss, _ = ops.first_choices_forward(x, None, load)
        self.assertTrue(torch.equal(counts, torch.bincount(x.argmax(1), minlength=EXPERTS)))
        torch.testing.assert_close(loss.double(), balance_loss(torch.softmax(x, 1), counts + load), rtol=1e-6, atol=1e-7)

    def test_two_passes_give_ranks_the_loss_of_the_whole_batch(self):
        marks = torch.arange(TOKENS) % 3 != 1  # of each half as many
        for router, bias, given in (("global_batch", None, None), ("first_choices", None, None), ("marked_margins", torch.linspace(0, 0.2, EXPERTS), marks)):
            x = smooth_logits(14)
            load = torch.arange(op(router, "sizes")(EXPERTS)[3] * EXPERTS + EXPERTS)
            halves = [half.clone().requires_grad_() for half in x.chunk(2)]
            of_halves = (None, None) if given is None else given.chunk(2)
            with torch.no_grad():
                total = load + sum(op(router, "forward")(half, bias, load, balanced=some)[2] for half, some in zip(halves, of_halves))
            losses = [op(router, "forward")(half, bias, total, accumulate=False, balanced=some)[3] for half, some in zip(halves, of_halves)]
            y = x.clone().requires_grad_()
            seen = y if given is None else y[given]
            if router == "first_choices":
                counts = torch.bincount(x.argmax(1), minlength=EXPERTS)
            else:
                counts = torch.bincount((torch.softmax(seen, 1) + (0 if bias is None else bias)).topk(K, 1).indices.flatten(), minlength=EXPERTS)
            whole = balance_loss(torch.softmax(seen, 1), counts + load[:EXPERTS])
            torch.testing.assert_close(sum(losses).double() / 2, whole, rtol=1e-6, atol=1e-7)
            (sum(losses) / 2).backward()
            whole.backward()
            torch.testing.assert_close(torch.cat([half.grad for half in halves]), y.grad, rtol=1e-6, atol=2e-8)

    def test_losses_by_themselves_add_up_to_the_loss(self):
        for router in ROUTERS:
            x = smooth_logits(15).requires_grad_()
            bias, load = state_of(router)
            sequences = 3 if router == "sequence" else 1
            loss, saved = op(router, "forward")(x, bias, load, sequences=sequences)[3:]
            parts = op(router, "losses")(saved, EXPERTS, sequences)
            self.assertEqual(len(parts), {"plain": 0, "balanced": 2}.get(router, 1))
            self.assertEqual(len(parts), op(router, "sizes")(EXPERTS)[4])
            self.assertEqual(parts.dtype, torch.float32)
            torch.testing.assert_close(parts.sum(), loss, rtol=1e-6, atol=0)
            self.assertFalse(parts.requires_grad)
            on_meta = op(router, "losses")(saved.to("meta"), EXPERTS, sequences)
            self.assertEqual((on_meta.shape, on_meta.dtype), (parts.shape, parts.dtype))
        x = smooth_logits(15)
        saved = ops.balanced_forward(x, state_of("balanced")[0])[4]
        torch.testing.assert_close(ops.balanced_losses(saved, EXPERTS)[1].double(), 0.5 * (torch.logsumexp(x, 1)**2).mean(), rtol=1e-6, atol=0)
        with self.assertRaisesRegex((ValueError, RuntimeError), "losses: saved.size is 2; allowed: "):
            ops.balanced_losses(saved[:2], EXPERTS)

    def test_route_asks_for_no_gradient(self):
        x = smooth_logits(1).requires_grad_()
        self.assertFalse(any(result.requires_grad for result in ops.plain_route(x)))
        self.assertTrue(ops.plain_forward(x)[1].requires_grad)

    @unittest.skipUnless(stable, "libtorch is for one program, which CMake links")
    def test_libraries_share_no_router_of_one_name(self):
        names = subprocess.run(["nm", "-DC", "--defined-only", sys.argv[1]], capture_output=True, text=True, check=True).stdout
        self.assertNotRegex(names, "routers::")

    def test_a_recomputation_reads_the_load_as_it_is(self):
        _, load = state_of("global_batch")
        x = smooth_logits(6)
        _, _, counts, first, saved = ops.global_batch_forward(x, None, load)
        _, _, _, again, saved_again = ops.global_batch_forward(x, None, load + counts, accumulate=False)
        self.assertTrue(torch.equal(first, again) and torch.equal(saved, saved_again))

    def test_checkpointing_with_a_copy_of_the_load_changes_no_gradient(self):
        gradients = []
        for checkpointed in (False, True):
            _, load = state_of("global_batch")
            x = smooth_logits(6).requires_grad_()
            for _ in range(3):
                block = lambda x, load: ops.global_batch_forward(x, None, load)[1:4]
                run = functools.partial(torch.utils.checkpoint.checkpoint, block, use_reentrant=False) if checkpointed else block
                weights, counts, loss = run(x, load.clone())
                load += counts
                (weights[:, 0].sum() + loss).backward()
            gradients.append(x.grad)
        self.assertTrue(torch.equal(*gradients))

    def test_element_types(self):
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
            bias, _ = state_of("balanced")
            x = smooth_logits(2, dtype=dtype).requires_grad_()
            ids, weights, _, loss, _ = ops.balanced_forward(x, bias)
            want = Expected("balanced", y := x.detach().double().requires_grad_(), bias)
            self.assertEqual(weights.dtype, torch.float32)
            self.assertTrue(torch.equal(ids.long(), want.ids))
            torch.testing.assert_close(weights.double(), want.weights, rtol=1e-5, atol=1e-6)
            (weights[:, 1].sum() + loss).backward()
            (want.weights[:, 1].sum() + want.loss).backward()
            self.assertEqual(x.grad.dtype, dtype)
            torch.testing.assert_close(x.grad.double(), y.grad, rtol=tolerance, atol=tolerance * y.grad.abs().max().item())

    def test_rows_may_lie_apart(self):
        x = smooth_logits(8)
        wide = torch.full((TOKENS, EXPERTS + 5), math.nan, dtype=torch.float64)
        wide[:, 3:3 + EXPERTS] = x
        strided = wide[:, 3:3 + EXPERTS].requires_grad_()
        self.assertFalse(strided.is_contiguous())
        for got, want in zip(ops.plain_route(strided), ops.plain_route(x)):
            self.assertTrue(torch.equal(got, want))
        weights = ops.plain_forward(strided)[1]
        gradient, = torch.autograd.grad(weights, strided, torch.ones(K, TOKENS, dtype=torch.float64).t() * torch.tensor([1.0, 3.0]))
        want = Expected("plain", y := x.clone().requires_grad_()).weights
        torch.testing.assert_close(gradient, torch.autograd.grad((want * torch.tensor([1.0, 3.0])).sum(), y)[0])

    def test_two_threads_give_the_bits_of_one(self):
        logits = smooth_logits(9, dtype=torch.float32).repeat(5000, 1)  # enough for two threads (tuning.hpp)
        alone = op("plain", "route")(logits)
        torch.set_num_threads(2)
        try:
            together = op("plain", "route")(logits)
        finally:
            torch.set_num_threads(1)
        for one, two in zip(alone, together, strict=True):
            self.assertTrue(torch.equal(one, two))

    def test_no_tokens(self):
        ids, weights, counts, loss, _ = ops.balanced_forward(x := torch.zeros(0, EXPERTS, requires_grad=True), torch.zeros(EXPERTS))
        self.assertEqual((tuple(ids.shape), tuple(weights.shape), counts.sum().item(), loss.item()), ((0, K), (0, K), 0, 0.0))
        (weights.sum() + loss).backward()  # the gradient of a sum is an expanded number
        self.assertEqual(tuple(x.grad.shape), (0, EXPERTS))
        _, row_of_slot, slot_of_row, _ = ops.permutation(ids, EXPERTS)
        rows = ops.permute(hidden := torch.zeros(0, 5, requires_grad=True), row_of_slot, slot_of_row)
        ops.combine(rows, row_of_slot, slot_of_row).sum().backward()
        self.assertEqual(tuple(hidden.grad.shape), (0, 5))

    def test_update_moves_the_bias_and_clears_the_load(self):
        for shape in ((EXPERTS,), (3, EXPERTS)):
            load = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(1))
            bias = torch.linspace(-1, 1, load.numel()).reshape(shape)
            want = bias + 0.25 * torch.sign(load.double().mean(-1, keepdim=True) - load).float()
            ops.balanced_update(bias, load)
            torch.testing.assert_close(bias, want)
            self.assertTrue((load == 0).all())
        ops.global_batch_update(None, load := torch.ones(EXPERTS, dtype=torch.int64))
        self.assertTrue((load == 0).all())

    def test_update_keeps_what_a_rule_keeps_behind_the_bias(self):
        for shape in ((EXPERTS,), (3, EXPERTS)):
            counts = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(1))
            bias = torch.linspace(-1, 1, 2 * counts.numel()).reshape((2, *shape))
            mean = counts.double().mean(-1, keepdim=True)
            momentum = 0.75 * bias[1].double() + 0.25 * 0.25 * torch.tanh(2 * (mean - counts) / mean)
            want = torch.stack([bias[0].double() + momentum, momentum]).float()
            ops.momentum_update(bias, load := counts.clone())
            torch.testing.assert_close(bias, want)
            self.assertTrue((load == 0).all())
        ids, weights, counts = ops.momentum_route(logits := torch.randn(6, EXPERTS), bias[0, 1])
        self.assertEqual(ids.tolist(), (logits.softmax(1) + bias[0, 1]).topk(2).indices.tolist())
        one = bias.clone()  # a layer alone, as it lies among all, and as a row
        for layer in (one[:, 1:2], one[:, 1]):
            ops.momentum_update(layer, counts := torch.randint(0, 9, layer.shape[1:], generator=torch.Generator().manual_seed(2)))
        self.assertTrue((one[:, 1] != bias[:, 1]).any() and (one[:, ::2] == bias[:, ::2]).all())
        alone = bias[:, 1].clone()
        for _ in range(2):
            ops.momentum_update(alone, torch.randint(0, 9, (EXPERTS,), generator=torch.Generator().manual_seed(2)))
        self.assertTrue(torch.equal(alone, one[:, 1]))
        load = torch.ones((3, EXPERTS), dtype=torch.int64)
        for wrong, message in ((bias[0], r"update: bias.shape\[0\] is 3; allowed: 2"), (bias[:1], r"update: bias.shape\[0\] is 1; allowed: 2"),
                               (torch.zeros(2, 4, EXPERTS)[:, :3], r"update: bias.strides\[0\] is \d+; allowed: \d+"),
                               (torch.zeros(2, 4, EXPERTS), "update: bias.layers is 4; allowed: 3"),
                               (torch.zeros(2, 3, EXPERTS)[..., ::2], r"update: bias.strides\[2\] is 2; allowed: 1"),
                               (torch.zeros(2, 3, EXPERTS).double(), "update: bias.dtype is float64; allowed: float32"),
                               (torch.tensor(1.0), "update: bias.ndim is 0; allowed: 2 to 3"),
                               (torch.zeros(2), "update: bias.ndim is 1; allowed: 2 to 3"),
                               (torch.zeros(2, 1, 3, EXPERTS), "update: bias.ndim is 4; allowed: 2 to 3")):
            with self.assertRaisesRegex((RuntimeError, ValueError), message):
                ops.momentum_update(wrong, load)
        self.assertTrue((load == 1).all())

    def test_counts_of_a_rule_that_reads_margins_have_their_histograms_behind_them(self):
        active = torch.arange(TOKENS) % 5 != 3
        for router, (low, high, bins) in RANGES.items():
            load = torch.zeros((1 + bins) * EXPERTS, dtype=torch.int64)
            margins = []
            for bias, scale in ((torch.zeros(EXPERTS), 1), (torch.zeros(EXPERTS), 4), (torch.linspace(-0.8, 0.8, EXPERTS), 4)):
                x = scale * smooth_logits(3)
                ids, _, counts, _, _ = op(router, "forward")(x, bias, load)
                self.assertEqual(counts.dtype, torch.int64)
                self.assertTrue(torch.equal(counts, counts_of(router, x, bias)))
                self.assertTrue((counts[EXPERTS:].reshape(EXPERTS, bins).sum(1) == TOKENS).all())
                self.assertTrue(torch.equal(op(router, "route")(x, bias)[2], counts[:EXPERTS]))
                masked = op(router, "forward")(x, bias, load, active=active)[2]
                self.assertTrue(torch.equal(masked, counts_of(router, x[active], bias)))
                again = op(router, "forward")(x, bias, load, accumulate=False)[2]
                self.assertTrue(torch.equal(again[:EXPERTS], counts[:EXPERTS]) and not again[EXPERTS:].any())
                self.assertFalse(op(router, "forward")(x[:0], bias, load)[2].any())
                margins.append(margins_of(router, x, bias))
            self.assertFalse(load.any())
        self.assertTrue(torch.cat(margins).min() < low and torch.cat(margins).max() > high, "no margin lies outside")

    def test_two_threads_count_the_margins_of_one(self):
        logits, bias = smooth_logits(9, dtype=torch.float32).repeat(5000, 1), torch.linspace(-0.2, 0.2, EXPERTS)
        alone = ops.quantile_forward(logits, bias)[2]
        torch.set_num_threads(2)
        try:
            together = ops.quantile_forward(logits, bias)[2]
        finally:
            torch.set_num_threads(1)
        self.assertTrue(torch.equal(alone, together))
        self.assertTrue(torch.equal(alone, 5000 * counts_of("quantile", logits[:TOKENS], bias)))

    def test_update_reads_the_margins_behind_the_load_of_each_layer(self):
        for router, (low, high, bins) in RANGES.items():
            load = torch.zeros(3, (1 + bins) * EXPERTS, dtype=torch.int64)
            bias = torch.linspace(-0.1, 0.1, 3 * EXPERTS).reshape(3, EXPERTS)
            margins = []
            for layer in range(3):
                batches = [(1 + layer) * smooth_logits(5 * layer + seed, TOKENS + seed) for seed in range(2)]
                for x in batches:
                    load[layer] += op(router, "forward")(x, bias[layer], load[layer])[2]
                self.assertTrue(torch.equal(load[layer], sum(counts_of(router, x, bias[layer]) for x in batches)))
                margins.append(torch.cat([margins_of(router, x, bias[layer]) for x in batches]).clamp(low, high))
            want = torch.stack([bias_from_margins(router, bias[layer], load[layer]) for layer in range(3)])
            exact = [m.sort(0, descending=True).values[len(m) * K // EXPERTS] for m in margins]
            for layer, quantile in enumerate(exact):  # the oracle's, which knows bins only, lies in the same bin
                moved = 0.75 * bias[layer].double() - 0.25 * quantile
                self.assertLess((moved - moved.mean() - want[layer]).abs().max().item(), 0.25 * (high - low) / bins)
            one, apart = bias[1].clone(), bias.clone()
            wide = torch.full((3, (1 + bins) * EXPERTS + 5), 7)
            wide[:, :-5] = load
            op(router, "update")(one, load[1].clone())
            op(router, "update")(apart, wide[:, :-5])  # what lies between the layers stays
            op(router, "update")(bias, load)
            torch.testing.assert_close(bias.double(), want, rtol=0, atol=1e-6)
            self.assertTrue(torch.equal(one, bias[1]) and torch.equal(apart, bias))
            self.assertTrue(not load.any() and not wide[:, :-5].any() and (wide[:, -5:] == 7).all())

    def test_a_global_batch_loss_reads_the_counts_before_the_margins(self):
        x, bias = smooth_logits(6), torch.linspace(0, 0.02, EXPERTS)
        load = torch.randint(1, 9, (3, 11 * EXPERTS), generator=torch.Generator().manual_seed(4))
        before = load.clone()
        y, z = (x.clone().requires_grad_() for _ in range(2))
        _, _, counts, loss, saved = ops.quantile_global_batch_forward(y, bias, load[1])
        want = Expected("global_batch", z, bias, load[1, :EXPERTS])
        self.assertTrue(torch.equal(counts, counts_of("quantile_global_batch", x, bias)) and torch.equal(load, before))
        torch.testing.assert_close(loss.double(), want.loss, rtol=1e-6, atol=1e-7)
        loss.backward()
        want.loss.backward()
        torch.testing.assert_close(y.grad, z.grad, rtol=1e-6, atol=2e-8)
        load[1] += counts
        _, _, _, again, saved_again = ops.quantile_global_batch_forward(x, bias, load[1], accumulate=False)
        self.assertTrue(torch.equal(again, loss) and torch.equal(saved_again, saved))

    def test_a_load_without_its_margins_is_refused(self):
        x, bias = smooth_logits(0), torch.zeros(3, EXPERTS)
        load = torch.ones(3, 11 * EXPERTS, dtype=torch.int64)
        forward = lambda load: lambda: ops.quantile_global_batch_forward(x, bias[0], load)
        update = lambda load, bias=bias: lambda: ops.quantile_global_batch_update(bias, load)
        multiple = "allowed: a multiple of 11: for each expert a count and the bins that the balancer's rule reads"
        for call, message in (
                (forward(load[0, :EXPERTS]), "forward: load.size is 8; allowed: 88"),
                (forward(load[:1]), "forward: load.ndim is 2; allowed: 1"),
                (forward(load[0].repeat(2)[::2]), "forward: load.strides[0] is 2; allowed: 1"),
                (forward(load[0].int()), "forward: load.dtype is int32; allowed: int64"),
                (forward(None), "forward: load.counts is null"),
                (update(load[:, :EXPERTS]), "update: load.columns is 8; " + multiple),
                (update(load[0, 1:], bias[0]), "update: load.columns is 87; " + multiple),
                (update(load[:, 11:]), "update: bias.experts is 8; allowed: 7"),
                (update(load[:2]), "update: bias.layers is 3; allowed: 2 (the layers of load)"),
                (update(load[..., ::2]), "update: load.strides[1] is 2; allowed: 1: rows must be contiguous"),
                (update(load[None]), "update: load.ndim is 3; allowed: 2"),
                (update(load, torch.zeros(2, 3, EXPERTS)), "update: bias.ndim is 3; allowed: 2"),
                (update(load.double()), "update: load.dtype is float64; allowed: int64"),
                (lambda: ops.quantile_forward(x[:, :2], bias[0, :2]), "forward: logits.columns is 2; allowed: 3 to 2048 (experts to leave unchosen")):
            with self.subTest(message=message), self.assertRaises((RuntimeError, ValueError)) as raised:
                call()
            self.assertIn("moe_balance: " + message, str(raised.exception))
        self.assertTrue((load == 1).all() and (bias == 0).all())

    def test_autograd_sees_that_update_changes_bias_and_load(self):
        bias, load, factors = torch.linspace(0.1, 0.8, EXPERTS), torch.arange(EXPERTS), torch.ones(EXPERTS, requires_grad=True)
        product = (factors * bias).sum()
        ops.balanced_update(bias, load)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            product.backward()
        self.assertEqual((bias._version, load._version), (1, 1))
        with self.assertRaises((RuntimeError, ValueError)):
            ops.balanced_update(bias, load[1:])
        self.assertEqual((bias._version, load._version), (1, 1))
        with torch.inference_mode():
            ops.balanced_update(torch.zeros(EXPERTS), torch.arange(EXPERTS))

    def test_second_derivatives_are_refused_when_they_are_asked_for(self):
        x = smooth_logits(1).requires_grad_()
        gradient, = torch.autograd.grad((ops.plain_forward(x)[1] ** 2).sum(), x, create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "moe_balance: moeb_test::plain_backward: the derivative is the second; allowed: the first"):
            gradient.sum().backward()

    def test_shapes_without_data(self):
        def layer(x, bias):
            routed = ops.balanced_forward(x, bias)
            order = ops.permutation(ops.balanced_route(x, bias)[0], EXPERTS, 4)
            rows = ops.permute(x, *order[1:3], routed[1])
            return *routed, *order, rows, ops.combine(rows, *order[1:3])

        given = torch.zeros(TOKENS, K, dtype=torch.int32)
        for call, results in (("forward", 5), ("route", 3)):
            real = op("replay", call)(smooth_logits(1), torch.zeros(EXPERTS), replay_experts=given)
            shapes = op("replay", call)(torch.empty(TOKENS, EXPERTS, dtype=torch.float64, device="meta"), torch.zeros(EXPERTS, device="meta"),
                                        replay_experts=given.to("meta"))
            self.assertEqual([(r.shape, r.dtype) for r in real], [(s.shape, s.dtype) for s in shapes])
            self.assertEqual(len(real), results)

        bias, _ = state_of("balanced")
        marks = torch.ones(TOKENS, dtype=torch.bool)
        real = ops.marked_forward(smooth_logits(1).float(), bias, balanced=marks)
        shapes = ops.marked_forward(torch.empty(TOKENS, EXPERTS, device="meta"), bias.to("meta"), balanced=marks.to("meta"))
        self.assertEqual([(r.shape, r.dtype) for r in real], [(s.shape, s.dtype) for s in shapes])
        bias, offsets = state_of("sequence")[0], torch.tensor([0, 2, 9, 9, 12])
        real = ops.sequence_forward(smooth_logits(1).float(), bias, sequence_offsets=offsets)
        shapes = ops.sequence_forward(torch.empty(TOKENS, EXPERTS, device="meta"), bias.to("meta"), sequence_offsets=offsets.to("meta"))
        self.assertEqual([(r.shape, r.dtype) for r in real], [(s.shape, s.dtype) for s in shapes])
        bias, _ = state_of("balanced")
        real = layer(smooth_logits(1).float(), bias)
        shapes = layer(torch.empty(TOKENS, EXPERTS, device="meta"), bias.to("meta"))
        self.assertEqual([(r.shape, r.dtype) for r in real], [(s.shape, s.dtype) for s in shapes])
        self.assertTrue(all(s.is_meta for s in shapes))

    def test_counts_with_margins_have_their_shape_without_data(self):
        for router, (_, _, bins) in RANGES.items():
            x, bias = torch.empty(TOKENS, EXPERTS, device="meta"), torch.empty(EXPERTS, device="meta")
            load = torch.empty(3, (1 + bins) * EXPERTS, dtype=torch.int64, device="meta")
            counts = op(router, "forward")(x, bias, load[1])[2]
            self.assertTrue(counts.is_meta)
            self.assertEqual((tuple(counts.shape), counts.dtype), (((1 + bins) * EXPERTS,), torch.int64))
            self.assertEqual(op(router, "sizes")(EXPERTS)[3], bins)
            with self.assertRaisesRegex((ValueError, RuntimeError), "load.ndim is 2; allowed: 1"):
                ops.quantile_global_batch_forward(x, bias, load)
        self.assertEqual(ops.balanced_sizes(EXPERTS)[3], 0)


class Fused(unittest.TestCase):
    """Calls that route and permute in one give the bits of the two, and their gradients."""

    def arguments_of(self, router, seed):
        """Of forward, by their names; route takes those that it has."""
        generator = torch.Generator().manual_seed(seed)
        named = {"active": torch.arange(TOKENS) % 5 != 3}
        if router != "plain":
            named["bias"] = 0.02 * torch.rand(EXPERTS, generator=generator)
        if router in ("global_batch", "quantile_global_batch", "marked_margins"):
            bins = op(router, "sizes")(EXPERTS)[3]
            named["load"] = torch.randint(1, 9, ((1 + bins) * EXPERTS,), generator=generator)
        if router == "sequence":
            named["sequence_offsets"] = torch.tensor([0, 5, 5, TOKENS])
        if router == "replay":
            named["replay_experts"] = torch.stack([torch.randperm(EXPERTS, generator=generator)[:K] for _ in range(TOKENS)]).int()
            named["replay_tokens"] = torch.arange(TOKENS) % 2 == 0
        if router == "marked_margins":
            named["balanced"] = torch.arange(TOKENS) % 3 != 1
        return named

    def test_results_and_gradients_are_those_of_two_calls(self):
        for router, accumulate, align in itertools.product(FUSED, (True, False), (1, 3, 8)):
            with self.subTest(router=router, accumulate=accumulate, align=align):
                named = self.arguments_of(router, align)
                gradients = []
                results = []
                for fused in (True, False):
                    x = smooth_logits(align, dtype=torch.float32).requires_grad_()
                    if fused:
                        got = op(router, "forward_and_permute")(x, accumulate=accumulate, align=align, **named)
                    else:
                        got = op(router, "forward")(x, accumulate=accumulate, **named)
                        got = (*got, *ops.permutation(got[0], EXPERTS, align)[:3])
                    weights, loss = got[1], got[3]
                    self.assertEqual([r.requires_grad for r in got], [i in (1, 3) for i in range(8)])
                    ((weights * torch.linspace(-1, 2, weights.numel()).reshape(weights.shape)).sum() + 3 * loss).backward()
                    results.append(got)
                    gradients.append(x.grad)
                for got, want in zip(*results, strict=True):
                    self.assertTrue(torch.equal(got, want))
                self.assertTrue(torch.equal(*gradients))
                self.assertTrue(gradients[0].any())
                of_route = {name: value for name, value in named.items() if name in ("bias", "active", "replay_experts", "replay_tokens")}
                routed = op(router, "route")(x.detach(), **of_route)
                routed = (*routed, *ops.permutation(routed[0], EXPERTS, align)[:3])
                for got, want in zip(op(router, "route_and_permute")(x.detach(), align=align, **of_route), routed, strict=True):
                    self.assertTrue(torch.equal(got, want) and not got.requires_grad)

    def test_no_tokens_and_other_types(self):
        for router in FUSED:
            named = self.arguments_of(router, 1)
            for name in ("active", "balanced", "replay_experts", "replay_tokens"):
                if name in named:
                    named[name] = named[name][:0]
            if "sequence_offsets" in named:
                named["sequence_offsets"] = torch.zeros(3, dtype=torch.int64)
            got = op(router, "forward_and_permute")(torch.zeros(0, EXPERTS), **named)
            self.assertFalse(got[5].any() or len(got[0]) or len(got[7]))
            named = self.arguments_of(router, 1)
            for dtype in (torch.bfloat16, torch.float64):
                x = smooth_logits(2, dtype=dtype)
                for a, b in zip(op(router, "forward_and_permute")(x, **named), op(router, "forward")(x, **named)):
                    self.assertTrue(torch.equal(a, b))

    def test_shapes_without_data(self):
        on_meta = lambda value: value.to("meta") if isinstance(value, torch.Tensor) else value
        for router, align in itertools.product(FUSED, (1, 8)):
            named = self.arguments_of(router, 2)
            real = op(router, "forward_and_permute")(smooth_logits(1), align=align, **named)
            shapes = op(router, "forward_and_permute")(on_meta(smooth_logits(1)), align=align, **{name: on_meta(value) for name, value in named.items()})
            self.assertEqual([(r.shape, r.dtype) for r in real], [(s.shape, s.dtype) for s in shapes])
        real = ops.plain_route_and_permute(smooth_logits(1), align=4)
        self.assertEqual([(r.shape, r.dtype) for r in real], [(s.shape, s.dtype) for s in ops.plain_route_and_permute(on_meta(smooth_logits(1)), align=4)])

    def test_errors_name_the_call(self):
        x, bias = smooth_logits(0), torch.zeros(EXPERTS)
        for call, message in (
            (lambda: ops.balanced_forward_and_permute(x, bias, align=0), "forward_and_permute: align is 0; allowed: 1 to 1073741824"),
            (lambda: ops.balanced_forward_and_permute(x), "forward_and_permute: bias is None; allowed: a tensor [E] of float32"),
            (lambda: ops.balanced_route_and_permute(x, bias[1:]), "route_and_permute: bias.size is 7; allowed: 8"),
            (lambda: ops.plain_route_and_permute(x[:, :1]), "route_and_permute: top_k.k is 2; allowed: 1 (K may not exceed the experts)"),
            (lambda: ops.replay_route_and_permute(x), "route_and_permute: replay_experts is None"),
        ):
            with self.subTest(message=message), self.assertRaises((RuntimeError, ValueError)) as raised:
                call()
            self.assertIn(message, str(raised.exception))


class Dispatch(unittest.TestCase):
    def setUp(self):
        self.ids = Expected("plain", smooth_logits(9)).ids.int()
        self.ids[3, 1] = self.ids[5, 0] = -1
        self.hidden = torch.randn(TOKENS, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        self.factors = torch.rand(TOKENS, K, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def gather(self, hidden, row_of_slot, rows, factors=None):
        """permute, slot by slot."""
        out = [torch.zeros(hidden.shape[1], dtype=torch.float64)] * rows
        for t, k in itertools.product(range(TOKENS), range(K)):
            if row_of_slot[t, k] >= 0:
                out[row_of_slot[t, k]] = hidden[t] * (1 if factors is None else factors[t, k])
        return torch.stack(out)

    def sum(self, rows, row_of_slot, factors=None):
        """combine, slot by slot."""
        factors = torch.ones(TOKENS, K, dtype=torch.float64) if factors is None else factors
        padded = torch.cat([rows, torch.zeros(1, rows.shape[1], dtype=torch.float64)])
        return (padded[row_of_slot] * factors[:, :, None]).sum(1)

    def test_permutation_groups_slots_by_expert(self):
        for align in (1, 4):
            offsets, row_of_slot, slot_of_row, counts = ops.permutation(self.ids, EXPERTS, align)
            self.assertEqual(counts.tolist(), [(self.ids == e).sum().item() for e in range(EXPERTS)])
            self.assertEqual(offsets.tolist(), [0, *itertools.accumulate(-(-c // align) * align for c in counts.tolist())])
            rows = []
            for e in range(EXPERTS):
                slots = (self.ids.flatten() == e).nonzero().flatten().tolist()
                first = offsets[e].item()
                self.assertEqual(slot_of_row[first:offsets[e + 1]].tolist(), slots + [-1] * (offsets[e + 1].item() - first - len(slots)))
                rows += [(slot, first + i) for i, slot in enumerate(slots)]
            want = torch.full((TOKENS * K,), -1)
            for slot, row in rows:
                want[slot] = row
            self.assertTrue(torch.equal(row_of_slot.flatten(), want))

    def test_rows_and_their_gradients(self):
        _, row_of_slot, slot_of_row, _ = ops.permutation(self.ids, EXPERTS, 4)
        rows = torch.randn(len(slot_of_row), 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        for factors in (None, self.factors):
            for got, want, start in (
                (lambda h, f: ops.permute(h, row_of_slot, slot_of_row, f), lambda h, f: self.gather(h, row_of_slot, len(slot_of_row), f), self.hidden),
                (lambda h, f: ops.combine(h, row_of_slot, slot_of_row, f), lambda h, f: self.sum(h, row_of_slot, f), rows)):
                a, b = [(start.clone().requires_grad_(), None if factors is None else factors.clone().requires_grad_()) for _ in range(2)]
                left, right = got(*a), want(*b)
                torch.testing.assert_close(left, right)
                direction = torch.randn(left.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
                (left * direction).sum().backward()
                (right * direction).sum().backward()
                torch.testing.assert_close(a[0].grad, b[0].grad)
                if factors is not None:
                    torch.testing.assert_close(a[1].grad, b[1].grad.masked_fill(row_of_slot < 0, 0))

    def test_gradcheck(self):
        _, row_of_slot, slot_of_row, _ = ops.permutation(self.ids, EXPERTS, 2)
        h, f = self.hidden.requires_grad_(), self.factors.requires_grad_()
        permute = lambda h, f=None: ops.permute(h, row_of_slot, slot_of_row, f)
        combine = lambda r, f=None: ops.combine(r, row_of_slot, slot_of_row, f)
        self.assertTrue(torch.autograd.gradcheck(permute, h) and torch.autograd.gradcheck(permute, (h, f)))
        rows = permute(h).detach().requires_grad_()
        self.assertTrue(torch.autograd.gradcheck(combine, rows) and torch.autograd.gradcheck(combine, (rows, f)))

    def test_once_per_rank_gives_outputs_and_gradients_of_experts_on_one_rank(self):
        ranks, local = 4, EXPERTS // 4
        for align in (1, 3):
            results = []
            for once in (True, False):
                hidden, weights = self.hidden.clone().requires_grad_(), self.factors.clone().requires_grad_()
                if once:
                    rank_ids = ops.once_per_rank(self.ids, local, ranks)
                    offsets, row_of_slot, slot_of_row, counts = ops.permutation(rank_ids, ranks, align)
                    wanted = [set((row[row >= 0] // local).tolist()) for row in self.ids]
                    self.assertEqual(counts.tolist(), [sum(rank in there for there in wanted) for rank in range(ranks)])
                    rows = ops.permute(hidden, row_of_slot, slot_of_row)
                    row_experts, row_weights = ops.routing_of_rows(weights, self.ids, row_of_slot, slot_of_row, local)
                    returned, bounds = [], offsets.tolist()
                    for rank, (first, last) in enumerate(zip(bounds, bounds[1:])):  # what an all-to-all would bring, and take back
                        returned.append(self.layer(rows[first:last], row_experts[first:last], row_weights[first:last], local, rank * local))
                    returned.append(rows[bounds[-1]:])
                    output = ops.combine(torch.cat(returned), row_of_slot, slot_of_row)
                    self.assertFalse(row_experts.requires_grad)
                else:
                    output = self.layer(hidden, self.ids, weights, EXPERTS, 0)
                (output * torch.linspace(-1, 2, output.numel(), dtype=torch.float64).reshape(output.shape)).sum().backward()
                results.append((output, hidden.grad, weights.grad))
            for got, want in zip(*results, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)

    def layer(self, hidden, ids, weights, experts, first):
        """Expert e multiplies by first + e + 1."""
        offsets, row_of_slot, slot_of_row, _ = ops.permutation(ids, experts)
        rows = ops.permute(hidden, row_of_slot, slot_of_row)
        expert = torch.bucketize(torch.arange(len(slot_of_row)), offsets, right=True)
        return ops.combine(rows * (first + expert)[:, None], row_of_slot, slot_of_row, weights)

    def test_rows_of_ranks_have_shapes_and_one_derivative(self):
        given = torch.rand(TOKENS, K, dtype=torch.float64, requires_grad=True)
        rank_ids = ops.once_per_rank(self.ids, 2, 4)
        _, row_of_slot, slot_of_row, _ = ops.permutation(rank_ids, 4)
        real = (rank_ids, *ops.routing_of_rows(given, self.ids, row_of_slot, slot_of_row, 2))
        on_meta = [t.detach().to("meta") for t in (given, self.ids, row_of_slot, slot_of_row)]
        shapes = (ops.once_per_rank(on_meta[1], 2, 4), *ops.routing_of_rows(*on_meta, 2))
        self.assertEqual([(r.shape, r.dtype) for r in real], [(s.shape, s.dtype) for s in shapes])
        gradient, = torch.autograd.grad((real[2] ** 2).sum(), given, create_graph=True)
        with self.assertRaisesRegex((RuntimeError, ValueError), "routing_of_rows_backward: the derivative is the second"):
            gradient.sum().backward()
        for call, message in (
            (lambda: ops.once_per_rank(self.ids, 0, 4), "once_per_rank: experts_per_rank is 0; allowed: 1 to 1048576"),
            (lambda: ops.once_per_rank(self.ids, 1, 4), "once_per_rank: experts["),
            (lambda: ops.once_per_rank(self.ids.long(), 2, 4), "once_per_rank: experts.dtype is int64; allowed: int32"),
            (lambda: ops.routing_of_rows(given, self.ids, row_of_slot, slot_of_row + 99, 2), "routing_of_rows: slot_of_row[0] is "),
            (lambda: ops.routing_of_rows(given, self.ids, row_of_slot[:5], slot_of_row, 2), "routing_of_rows: row_of_slot.rows is 5; allowed: 12 (the tokens of experts)"),
            (lambda: ops.routing_of_rows(given[1:], self.ids, row_of_slot, slot_of_row, 2), "routing_of_rows: weights.rows is 11; allowed: 12"),
        ):
            with self.subTest(message=message), self.assertRaises((RuntimeError, ValueError)) as raised:
                call()
            self.assertIn(message, str(raised.exception))

    @unittest.skipUnless(stable, "moe_ops.py is not given")
    def test_dense_routing_has_each_slot_in_its_expert_s_column(self):
        weights = self.factors.clone().requires_grad_()
        probs, routing_map = importlib.import_module("moe_ops").dense_routing(self.ids, weights, EXPERTS)
        want, wanted_map = torch.zeros(TOKENS, EXPERTS, dtype=torch.float64), torch.zeros(TOKENS, EXPERTS, dtype=torch.bool)
        for t, k in itertools.product(range(TOKENS), range(K)):
            if self.ids[t, k] >= 0:
                want[t, self.ids[t, k]] = self.factors[t, k]
                wanted_map[t, self.ids[t, k]] = True
        self.assertTrue(torch.equal(probs, want) and torch.equal(routing_map, wanted_map))
        self.assertTrue(probs.is_contiguous() and routing_map.is_contiguous() and routing_map.dtype == torch.bool)
        with self.assertRaises(RuntimeError):
            importlib.import_module("moe_ops").dense_routing(torch.full_like(self.ids, EXPERTS), weights, EXPERTS)
        probs.backward(slopes := torch.rand(TOKENS, EXPERTS, dtype=torch.float64))
        for t, k in itertools.product(range(TOKENS), range(K)):
            self.assertEqual(weights.grad[t, k], slopes[t, self.ids[t, k]] if self.ids[t, k] >= 0 else 0)

    def test_weights_of_a_router_meet_hidden_states_of_16_bits(self):
        x = smooth_logits(9, dtype=torch.float32).requires_grad_()
        hidden = self.hidden.bfloat16().requires_grad_()
        ids, weights, _, _, _ = ops.plain_forward(x)
        _, row_of_slot, slot_of_row, _ = ops.permutation(ids, EXPERTS)
        output = ops.combine(ops.permute(hidden, row_of_slot, slot_of_row), row_of_slot, slot_of_row, weights)
        torch.testing.assert_close(output, hidden, rtol=1e-2, atol=1e-2)  # weights sum to 1
        output.sum().backward()
        self.assertEqual((x.grad.dtype, hidden.grad.dtype), (torch.float32, torch.bfloat16))


class Errors(unittest.TestCase):
    def test_errors_name_argument_value_and_what_is_allowed(self):
        x = smooth_logits(0)
        bias = torch.zeros(EXPERTS)
        ids = torch.zeros(TOKENS, K, dtype=torch.int32)
        rows, slots = torch.zeros(TOKENS, K, dtype=torch.int64), torch.zeros(TOKENS * K, dtype=torch.int64)
        cases = (
            (lambda: ops.plain_route(x.long()), "route: logits.dtype is int64; allowed: float32, bfloat16, float16, float64"),
            (lambda: ops.plain_route(x.t()), "route: logits.strides[1] is 8; allowed: 1: rows must be contiguous"),
            (lambda: ops.plain_route(x[None]), "route: logits.ndim is 3; allowed: 2"),
            (lambda: ops.plain_route(x[:, :1]), "route: top_k.k is 2; allowed: 1 (K may not exceed the experts)"),
            (lambda: ops.plain_route(torch.zeros(2, 4096)), "route: logits.columns is 4096; allowed: 1 to 2048 (experts)"),
            (lambda: ops.balanced_forward(x), "forward: bias is None; allowed: a tensor [E] of float32"),
            (lambda: ops.replay_forward(x, bias), "forward: replay_experts is None; allowed: a tensor [T, K] of int32"),
            (lambda: ops.replay_route(x, bias, replay_experts=ids.long()), "route: replay_experts.dtype is int64; allowed: int32"),
            (lambda: ops.replay_route(x, bias, replay_experts=ids[:, :1]), "route: replay.experts.columns is 1; allowed: 2"),
            (lambda: ops.replay_route(x, bias, replay_experts=ids, replay_tokens=bias), "route: replay_tokens.dtype is float32; allowed: uint8, bool"),
            (lambda: ops.replay_route(x, bias, replay_experts=ids, replay_tokens=ids[1:, 0].bool()), "route: replay_tokens.size is 11; allowed: 12"),
            (lambda: ops.plain_forward(x, replay_experts=ids), "forward: replay.experts is "),
            (lambda: ops.plain_route(x, replay_tokens=torch.ones(TOKENS, dtype=torch.bool)), "route: replay.tokens is "),
            (lambda: ops.balanced_forward(x, bias, balanced=ids[:, 0].bool()), "forward: balanced is given; allowed: null, unless BalancedTokens is a part"),
            (lambda: ops.marked_forward(x, bias, balanced=ids[1:, 0].bool()), "forward: balanced.size is 11; allowed: 12"),
            (lambda: ops.balanced_forward(x, bias[:3]), "forward: bias.size is 3; allowed: 8"),
            (lambda: ops.balanced_forward(x, bias.double()), "forward: bias.dtype is float64; allowed: float32"),
            (lambda: ops.global_batch_forward(x), "forward: load.counts is null"),
            (lambda: ops.global_batch_forward(x, None, bias), "forward: load.dtype is float32; allowed: int64"),
            (lambda: ops.balanced_forward(x, bias, active=bias), "forward: active.dtype is float32; allowed: uint8, bool"),
            (lambda: ops.sequence_forward(x, sequences=0), "forward: sequences is 0; allowed: 1 to 12"),
            (lambda: ops.sequence_forward(x, sequences=5), "forward: sequences.count is 5; allowed: a divisor of the 12 tokens"),
            (lambda: ops.sequence_forward(x, sequences=5, token_major=True), "forward: sequences.count is 5; allowed: a divisor of the 12 tokens"),
            (lambda: ops.sequence_forward(x, sequence_offsets=slots[:1]), "forward: sequence_offsets.size is 1; allowed: 2 to 2147483648 (the sequences' and one more)"),
            (lambda: ops.sequence_forward(x, sequence_offsets=ids[0]), "forward: sequence_offsets.dtype is int32; allowed: int64"),
            (lambda: ops.sequence_forward(x, sequence_offsets=rows), "forward: sequence_offsets.ndim is 2; allowed: 1"),
            (lambda: ops.sequence_forward(x, sequence_offsets=slots[:3]), "forward: sequences.offsets[2] is 0; allowed: 12"),
            (lambda: ops.sequence_forward(x, sequence_offsets=torch.tensor([0, 7, 6, 12])), "forward: sequences.offsets[2] is 6; allowed: 7 to 12"),
            (lambda: ops.sequence_forward(x, sequences=3, sequence_offsets=torch.tensor([0, 7, 12])), "forward: sequences is 3; allowed: 1, or the 2 of sequence_offsets"),
            (lambda: ops.sequence_forward(x, sequence_offsets=torch.tensor([0, 12]), token_major=True), "forward: token_major is True; allowed: False, where sequence_offsets"),
            (lambda: ops.balanced_backward(x, ids, slots[:1], None, None), "backward: saved.size is 1; allowed: 18"),
            (lambda: ops.balanced_update(bias, rows), "update: bias.experts is 8; allowed: 2"),
            (lambda: ops.balanced_update(None, torch.ones(EXPERTS, dtype=torch.int64)), "update: bias.data is null"),
            (lambda: ops.permutation(ids.long(), EXPERTS), "permutation: experts.dtype is int64; allowed: int32"),
            (lambda: ops.permutation(ids, 0), "permutation: expert_count is 0; allowed: 1 to 1048576"),
            (lambda: ops.permutation(ids + 9, EXPERTS), "permutation: experts[0] is 9; allowed: -1 to 7"),
            (lambda: ops.permute(x, rows[:3], slots), "permute: row_of_slot.rows is 3; allowed: 12 (the tokens of hidden)"),
            (lambda: ops.permute(x, rows, slots + 99), "permute: slot_of_row[0] is 99; allowed: -1 to 23"),
            (lambda: ops.permute(x, rows + 99, slots), "permute: row_of_slot[0] is 99; allowed: -1 to 23"),
            (lambda: ops.combine(x, rows, slots), "combine: slot_of_row.size is 24; allowed: 12"),
            (lambda: ops.combine(x, rows, slots[:TOKENS], torch.zeros(TOKENS, K).half()), "combine: weights.type is float16; allowed: float64"),
        )
        for call, message in cases:
            with self.subTest(message=message), self.assertRaises((RuntimeError, ValueError)) as raised:
                call()
            self.assertIn("moe_balance: " + message, str(raised.exception))
        self.assertTrue((bias == 0).all() and (rows == 0).all())

    def test_tensors_lie_on_one_device(self):
        for name in ("route", "forward"):
            with self.assertRaisesRegex((ValueError, RuntimeError), name + ": bias.device is meta; allowed: cpu, where the call's first tensor lies"):
                op("plain", name)(smooth_logits(0), torch.zeros(EXPERTS, device="meta"))
        _, row_of_slot, slot_of_row, _ = ops.permutation(torch.zeros(TOKENS, K, dtype=torch.int32), EXPERTS)
        with self.assertRaisesRegex((ValueError, RuntimeError), "permute: row_of_slot.device is meta; allowed: cpu"):
            ops.permute(smooth_logits(0), row_of_slot.to("meta"), slot_of_row)
        with self.assertRaisesRegex((ValueError, RuntimeError), "logits.ndim is 3; allowed: 2"):
            ops.plain_route(torch.zeros(1, 2, EXPERTS, device="meta"))


def can_compile_extensions():
    return pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


@unittest.skipUnless(stable, "PyTorch 1.13 has neither opcheck nor compile")
class Tracing(unittest.TestCase):
    def test_opcheck(self):
        bias, load = state_of("balanced")[0], state_of("global_batch")[1]
        x = smooth_logits(0).requires_grad_()
        # Not traced by opcheck, which adds up all outputs and cannot add floats to counts; the next test traces them.
        checks = [(ops.balanced_forward, (x, bias)), (ops.global_batch_forward, (x, None, load)), (ops.capacity_forward, (x,)),
                  (ops.sequence_forward, (x, None, None, True, None, 3)),
                  (ops.sequence_forward, (x, None, None, True, None, 1, None, None, None, torch.tensor([0, 7, 12]))), (ops.plain_route, (x.detach(),)),
                  (ops.sequence_forward_and_permute, (x, None, None, True, None, 1, None, None, None, torch.tensor([0, 7, 12]), False, 8)),
                  (ops.capacity_forward_and_permute, (x,)), (ops.plain_route_and_permute, (x.detach(), None, None, None, None, 4)),
                  (ops.balanced_update, (bias, torch.ones(EXPERTS, dtype=torch.int64))),
                  (ops.quantile_forward, (x, bias)), (ops.quantile_update, (bias, torch.ones(65 * EXPERTS, dtype=torch.int64))),
                  (ops.quantile_global_batch_forward, (x, bias, torch.ones(3, 11 * EXPERTS, dtype=torch.int64)[1]))]
        ids = ops.plain_route(x)[0]
        _, row_of_slot, slot_of_row, _ = ops.permutation(ids, EXPERTS, 4)
        factors = torch.rand(TOKENS, K, dtype=torch.float64, requires_grad=True)
        checks += [(ops.permutation, (ids, EXPERTS, 3)), (ops.permute, (x, row_of_slot, slot_of_row, factors)),
                   (ops.combine, (torch.randn(len(slot_of_row), 5, dtype=torch.float64, requires_grad=True), row_of_slot, slot_of_row, factors))]
        rank_ids = ops.once_per_rank(ids, 2, 4)
        _, row_of_slot, slot_of_row, _ = ops.permutation(rank_ids, 4)
        checks += [(ops.once_per_rank, (ids, 2, 4)), (ops.routing_of_rows, (factors, ids, row_of_slot, slot_of_row, 2))]
        for function, arguments in checks:
            with self.subTest(function=str(function)):
                skipped = ("test_aot_dispatch_dynamic",) if "forward" in str(function) or "routing_of_rows" in str(function) else ()
                torch.library.opcheck(function, arguments, test_utils=[t for t in OPCHECKS if t not in skipped])

    def test_compile_and_export_trace_a_layer(self):
        def layer(x, hidden):
            ids, weights, _, loss, _ = ops.balanced_forward(x, torch.zeros(EXPERTS))
            _, row_of_slot, slot_of_row, _ = ops.permutation(ids, EXPERTS, 4)
            rows = torch.tanh(ops.permute(hidden, row_of_slot, slot_of_row))
            return (ops.combine(rows, row_of_slot, slot_of_row, weights) ** 2).sum() + loss

        x, hidden = smooth_logits(1), torch.ones(TOKENS, 5, dtype=torch.float64)
        program = torch.export.export(Module(layer), (x, hidden)).module()
        self.assertTrue(torch.equal(program(x, hidden), layer(x, hidden)))

        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        for tokens in (TOKENS, TOKENS + 4):
            gradients = []
            for function in (layer, compiled):
                x = smooth_logits(1, tokens).requires_grad_()
                hidden = torch.linspace(-1, 1, tokens * 5, dtype=torch.float64).reshape(tokens, 5).requires_grad_()
                function(x, hidden).backward()
                gradients.append((x.grad, hidden.grad))
            for got, want in zip(*gradients):
                self.assertTrue(torch.equal(got, want))

    def test_compile_traces_rows_that_go_once_to_each_rank(self):
        def step(ids, weights, hidden):
            _, row_of_slot, slot_of_row, _ = ops.permutation(ops.once_per_rank(ids, 2, 4), 4)
            _, row_weights = ops.routing_of_rows(weights, ids, row_of_slot, slot_of_row, 2)
            rows = ops.permute(hidden, row_of_slot, slot_of_row) * row_weights.sum(1, keepdim=True)
            return ops.combine(rows, row_of_slot, slot_of_row)

        compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
        for tokens in (TOKENS, TOKENS + 4):
            ids, results = ops.plain_route(smooth_logits(1, tokens))[0], []
            for function in (step, compiled):
                weights, hidden = smooth_logits(2, tokens)[:, :K].clone().requires_grad_(), smooth_logits(3, tokens).requires_grad_()
                output = function(ids, weights, hidden)
                (output * output).sum().backward()
                results.append((output, weights.grad, hidden.grad))
            for got, want in zip(*results, strict=True):
                self.assertTrue(torch.equal(got, want))

    def test_compile_traces_sequences_of_any_number_once(self):
        def step(x, bias, offsets):
            _, weights, counts, loss, _ = ops.sequence_forward(x, bias, sequence_offsets=offsets)
            return weights.sum() + loss, counts

        traced = []
        def backend(graph, inputs):
            traced.append(graph)
            return torch._dynamo.backends.registry.lookup_backend("aot_eager")(graph, inputs)

        compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=True)
        bias, _ = state_of("sequence")
        for lengths in ([3, 4, 5], [2, 10], [1, 2, 3, 4, 5, 6]):
            results = []
            for function in (step, compiled):
                x = smooth_logits(1, sum(lengths)).requires_grad_()
                value, counts = function(x, bias, torch.tensor([0, *itertools.accumulate(lengths)]))
                value.backward()
                results.append((value, counts, x.grad))
            for got, want in zip(*results, strict=True):
                self.assertTrue(torch.equal(got, want))
        self.assertEqual(len(traced), 1)

    def test_compile_traces_a_step_that_counts_margins(self):
        def step(x, bias, load):
            _, weights, counts, loss, _ = ops.quantile_global_batch_forward(x, bias[1], load[1])
            load[1] += counts
            counted = load.clone()
            ops.quantile_global_batch_update(bias, load)
            return weights.sum() + loss, counted

        compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
        for tokens in (TOKENS, TOKENS + 4):
            results = []
            for function in (step, compiled):
                x, bias, load = smooth_logits(1, tokens).requires_grad_(), torch.zeros(3, EXPERTS), torch.zeros(3, 11 * EXPERTS, dtype=torch.int64)
                value, counted = function(x, bias, load)
                value.backward()
                results.append((value, counted, x.grad, bias, load))
            self.assertTrue(bias[1].any() and not bias[::2].any() and not load.any())
            self.assertTrue(torch.equal(counted[1], counts_of("quantile_global_batch", x.detach(), torch.zeros(EXPERTS))))
            for got, want in zip(*results, strict=True):
                self.assertTrue(torch.equal(got, want))

    def test_the_example_s_layer_can_be_copied_and_saved(self):
        layer = importlib.import_module("layer").MoeLayer("moeb_test", 4, 5, EXPERTS)
        again = copy.deepcopy(layer)
        torch.save(layer, file := io.BytesIO())
        self.assertEqual(again.namespace, "moeb_test")
        self.assertGreater(file.tell(), 0)

    @unittest.skipUnless(can_compile_extensions(), "Inductor compiles a Python extension, and Python.h is not here")
    def test_inductor_compiles_a_step_of_training_to_the_same_bits(self):
        def step(x, hidden, bias, load):
            _, weights, counts, loss, _, _, row_of_slot, slot_of_row = ops.balanced_forward_and_permute(x, bias, align=4)
            rows = torch.relu(ops.permute(hidden, row_of_slot, slot_of_row))
            load += counts
            ops.balanced_update(bias, load)
            return ops.combine(rows, row_of_slot, slot_of_row, weights), 0.5 * loss

        def results(function, tokens):
            x, hidden = smooth_logits(1, tokens, torch.float32).requires_grad_(), smooth_logits(2, tokens, torch.float32).requires_grad_()
            bias, load = torch.zeros(EXPERTS), torch.arange(EXPERTS)
            output, loss = function(x, hidden, bias, load)
            torch.autograd.backward((output, loss), (smooth_logits(3, tokens, torch.float32), torch.tensor(2.0)))
            self.assertTrue(bias.any() and not load.any())
            return output, loss, x.grad, hidden.grad, bias, load

        with tempfile.TemporaryDirectory() as cache, unittest.mock.patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": cache}):
            compiled = torch.compile(step, backend="inductor", fullgraph=True)
            for tokens in (TOKENS, TOKENS + 4):  # the second with dynamic shapes
                for got, want in zip(results(compiled, tokens), results(step, tokens), strict=True):
                    self.assertTrue(torch.equal(got, want))


def main():
    global ops
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # recent versions fill new tensors with NaN, so that nothing unwritten goes unseen
    torch.ops.load_library(sys.argv[1])
    ops = torch.ops.moeb_test
    if stable:
        sys.path.insert(0, sys.argv[2])
        moe_ops = importlib.import_module("moe_ops")
        for router in (*ROUTERS, *RANGES, "replay", "marked", "marked_margins", "first_choices"):
            moe_ops.register_router("moeb_test", router + "_")
        moe_ops.register_dispatch("moeb_test")
    print(f"PyTorch {torch.__version__}, {'the stable ABI' if stable else 'libtorch'}")
    unittest.main(argv=sys.argv[:1], verbosity=1)


main()
