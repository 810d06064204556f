#!/usr/bin/env python3
"""compare_torch_cuda_test.py LIBRARY: compare_torch_cuda.py's cases, smaller, with the CPU in the GPU's place."""
import argparse
import contextlib
import ctypes
import io
import json
import operator
import os
import sys
import tempfile
import time
import unittest
import unittest.mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import compare_call  # noqa: E402
import compare_torch_cuda  # noqa: E402
import compare_torch_dispatch_cuda as dispatch  # noqa: E402
import compare_torch_routing as routing  # noqa: E402

LIBRARY = sys.argv[1]
TOKENS, EXPERTS, HIDDEN = 40, 64, 24
# The CPU's library has no route and no top-16. Cases that differ in the number of tokens only become one.
CASES = list(dict.fromkeys(case._replace(tokens=TOKENS, experts=EXPERTS) for case in routing.CASES
                           if case.work != "route" and case.router != "softmax_top16"))
DISPATCH_CASES = list(dict.fromkeys(case._replace(tokens=TOKENS, experts=EXPERTS, hidden=HIDDEN) for case in dispatch.CASES))


class CpuMachine:
    device = "cpu"

    def name(self):
        return "a CPU"

    def place(self):
        return 2  # threads

    def synchronize(self):
        pass

    def timer(self, f):
        def microseconds():
            start = time.perf_counter()
            f()
            return 1e6 * (time.perf_counter() - start)

        return microseconds, "graph"


class Wrong:
    """The library, but that after `work` the first two pieces of `size` bytes of an output have changed places."""

    def __init__(self, library, work, output, size):
        self.library, self.work, self.address, self.size = library, work, operator.attrgetter(output), size

    def __getattr__(self, name):
        function = getattr(self.library, name)
        return self.then_swapped(function) if name == self.work else function

    def then_swapped(self, function):
        def call(argument):
            status = function(argument)
            pieces = ((ctypes.c_char * self.size) * 2).from_address(self.address(argument._obj))
            pieces[0].raw, pieces[1].raw = pieces[1].raw, pieces[0].raw
            return status

        return call


class CompareTorchCuda(unittest.TestCase):
    def compare(self, cases, wrong=None, **options):
        """Exit status, output, and what was written."""
        load = compare_call.load
        library = (lambda path: Wrong(load(path), *wrong)) if wrong else load
        output, errors = io.StringIO(), io.StringIO()
        with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(compare_call, "load", library), \
                contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            path = os.path.join(folder, "results.json")
            args = argparse.Namespace(**{"library": LIBRARY, "compile": False, "seconds": 1e9, "repeats": 3, "json": path, **options})
            status = compare_torch_cuda.compare_all(args, CpuMachine(), cases)
            with open(path, encoding="utf-8") as file:
                return status, output.getvalue(), json.load(file)

    def test_every_case_agrees_and_is_one_line_with_a_ratio(self):
        status, output, written = self.compare(CASES + DISPATCH_CASES)
        self.assertEqual((status, written["failures"]), (0, []))
        self.assertEqual([result["case"] for result in written["results"]], [case.name() for case in CASES + DISPATCH_CASES])
        for line, result in zip(output.splitlines()[1:], written["results"], strict=True):
            self.assertEqual(line, result["line"])
            self.assertRegex(line, r" PyTorch +[\d.]+ us, moe_balance +[\d.]+ us \([\d.]+ to [\d.]+\), [\d.]+x$")

    def test_every_work_of_dispatch_is_a_case_that_the_gpu_library_has_kernels_for(self):
        self.assertEqual({case.work for case in dispatch.CASES},
                         {"softmax_and_permutation", "sigmoid_groups_and_permutation", "permutation", "permute", "permute_by_rows", "combine", "combine_backward"})
        self.assertEqual({case.experts for case in dispatch.CASES}, {256})  # as compare_dispatch.cu says

    def test_no_case_is_named_twice(self):
        names = [case.name() for case in routing.CASES + dispatch.CASES]
        self.assertEqual(len(names), len(set(names)))

    def test_dispatch_comes_before_torch_compile_which_has_no_turn_there(self):
        with unittest.mock.patch.object(compare_torch_cuda, "compiled", lambda of_torch: of_torch):
            status, _, written = self.compare(CASES[:1] + DISPATCH_CASES, compile=True)
        self.assertEqual(status, 0)
        self.assertEqual([result["against"] for result in written["results"]], ["PyTorch"] * (1 + len(DISPATCH_CASES)) + ["torch.compile"])

    def test_a_wrong_result_is_a_disagreement_and_costs_no_other_case(self):
        row = 2 * HIDDEN
        for work, output, size, message in (
                ("softmax_and_permutation", "routing.ids", 4, "the ids differ"),
                ("softmax_and_permutation", "routing.weights", 4, "the weights differ"),
                ("softmax_and_permutation", "routing.counts", 8, "the counts differ"),
                ("softmax_and_permutation", "slot_of_row", 8, "the permutations differ"),
                ("sigmoid_groups_and_permutation", "row_of_slot", 8, "the permutations differ"),
                ("sigmoid_groups_and_permutation", "offsets", 8, "the permutations differ"),
                ("permutation", "slot_of_row", 8, "the permutations differ"),
                ("permute", "permuted", row, "the values of permuted differ"),
                ("permute_by_rows", "permuted", row, "the values of permuted differ"),
                ("combine", "combined", row, "the values of combined differ"),
                ("combine", "combined", 2, "the values of combined differ"),
                ("combine_backward", "grad_permuted", row, "the values of grad_permuted differ"),
                ("combine_backward", "grad_weights", 4, "the values of grad_weights differ"),
                ("softmax_forward", "ids", 4, "the ids differ")):
            with self.subTest(work=work, output=output):
                status, _, written = self.compare(CASES[:1] + DISPATCH_CASES, (work, output, size))
                self.assertEqual(status, 1)
                self.assertTrue(all(failure.endswith(message) for failure in written["failures"]), written["failures"])
                self.assertEqual(len(written["failures"]), 5 if work == "permutation" else 1)  # four works need the permutation
                self.assertEqual(len(written["failures"]) + len(written["results"]), 1 + len(DISPATCH_CASES))

    def test_a_call_that_fails_is_a_failure(self):
        case = DISPATCH_CASES[0]._replace(k=7)  # of a router of eight
        status, _, written = self.compare([case])
        self.assertEqual((status, len(written["failures"])), (1, 1))

    def test_no_case_is_begun_after_the_time(self):
        status, _, written = self.compare(DISPATCH_CASES, seconds=-1)
        self.assertEqual((status, len(written["failures"]), written["results"]), (1, len(DISPATCH_CASES), []))

    def test_what_torch_compile_had_no_time_for_fails_nothing(self):
        class Clock:
            seconds = 0

            def monotonic(self):
                return self.seconds

        clock = Clock()
        timed = compare_torch_cuda.time_case

        def time_case(problem, of_torch, against, repeats):
            clock.seconds += 10
            return timed(problem, of_torch, against, repeats)

        with unittest.mock.patch.object(compare_torch_cuda, "time", clock), unittest.mock.patch.object(compare_torch_cuda, "time_case", time_case):
            status, _, written = self.compare(CASES, seconds=10 * len(CASES) - 5, compile=True)
        self.assertEqual([result["against"] for result in written["results"]], ["PyTorch"] * len(CASES))
        self.assertEqual((status, len(written["failures"])), (0, len(CASES)))
        self.assertTrue(all(failure.endswith("TimeoutError: not begun") for failure in written["failures"]), written["failures"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
