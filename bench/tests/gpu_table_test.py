#!/usr/bin/env python3
"""gpu_table.py on results of its own: what it writes, what it says of targets and of what was not measured, and that it sees a figure changed."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "gpu_table.py")


def benchmark(name, median, **more):
    return {"name": f"{name}/iterations:40/manual_time", "median_us": median, **more}


def report(forward, extra=()):
    router = [benchmark("forward/softmax_top8_aux_loss/float32/E256/T8192/warm", forward), *extra]
    compared = [{"case": "forward, T=8", "against": "PyTorch", "torch_us": [9.0, 30.0, 20.0], "moe_balance_us": [2.0, 1.0, 9.0], "ratio_of_medians": 10.0}]
    return {"figures": {"router_gpu": {"benchmarks": router}, "compare_torch": {"torch": "2.99", "results": compared}}}


class GpuTable(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for name in ("docs", "bench/results"):
            os.makedirs(os.path.join(folder.name, name))
        self.page = os.path.join(folder.name, "docs", "page.md")
        self.results = os.path.join(folder.name, "bench", "results")

    def have(self, **reports):
        for letter, content in reports.items():
            with open(os.path.join(self.results, letter + ".json"), "w", encoding="utf-8") as file:
                json.dump(content, file)
        named = " ".join(f"{letter}={letter}.json" for letter in reports)
        self.put(f"before\n<!-- GPU tables: begin (bench/gpu_table.py) {named} -->\nold\n<!-- GPU tables: end -->\nafter\n")

    def put(self, text):
        with open(self.page, "w", encoding="utf-8") as file:
            file.write(text)

    def text(self):
        with open(self.page, encoding="utf-8") as file:
            return file.read()

    def run_tool(self, way):
        return subprocess.run([sys.executable, TOOL, way, self.page], capture_output=True, text=True, check=False)

    def row(self, label):
        return next(line for line in self.text().splitlines() if line.startswith(f"| {label} |"))

    def test_writes_what_the_results_say(self):
        more = (
            benchmark("forward/softmax_top8_aux_loss/float32/E256/T64/warm/graph", 2.0),
            benchmark("forward/softmax_top8_aux_loss/float32/E512/T8192/warm", 4.0 * 1.6 * 2112 / 1088),
            benchmark("backward/softmax_top8_aux_loss/float32/E256/T32768/warm", 25.0, copy_percent=74.6),
            benchmark("permute/bfloat16/E256/T8192/H2048/warm", 131.04),
        )
        self.have(A=report(5.0), B=report(4.0, more))
        self.assertNotEqual(self.run_tool("check").returncode, 0)
        self.assertEqual(self.run_tool("write").returncode, 0)
        self.assertEqual(self.run_tool("check").returncode, 0)
        self.assertTrue(self.text().startswith("before\n") and self.text().endswith("-->\nafter\n") and "old" not in self.text())
        self.assertEqual(
            self.row("forward, softmax, `AuxLoss`, E = 256"),
            "| forward, softmax, `AuxLoss`, E = 256 | -, 2.00 | 5.00, 4.00 |  | 2 (T = 64): met; 4.5 (T = 8192): met; 12 (T = 32768): not measured |",
        )
        self.assertIn("(T = 8192): missed, 1.60", self.row("E = 512"))
        self.assertIn("20 (T = 32768): missed by 1.2 times; 75% of a copy: missed, 74.6%", self.row("backward, softmax, `AuxLoss`"))
        self.assertIn("| -, 131.0 |", self.row("`permute`, bfloat16, H = 2048"))
        self.assertIn("PyTorch 2.99 eager", self.text())
        self.assertEqual(self.row("forward, T=8"), "| forward, T=8 | 20.00 | 2.00 | 10.0x | - | - | - |")

    def test_sees_a_figure_that_is_not_the_results(self):
        self.have(A=report(5.0))
        self.run_tool("write")
        self.put(self.text().replace("| 5.00 |", "| 4.00 |"))
        said = self.run_tool("check")
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("results: | forward, softmax, `AuxLoss`, E = 256 |  | 5.00 |", said.stdout)
        self.assertIn("1 lines", said.stderr)

    def test_wants_its_markers(self):
        self.put("no markers\n")
        for way in ("write", "check"):
            said = self.run_tool(way)
            self.assertIn("no markers", said.stderr)
            self.assertNotEqual(said.returncode, 0)
        self.assertEqual(self.text(), "no markers\n")


if __name__ == "__main__":
    unittest.main()
