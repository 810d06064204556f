#!/usr/bin/env python3
"""collect_results.py on sample files."""
import json
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import collect_results  # noqa: E402

JUNIT = """<?xml version="1.0"?><testsuite name="x" tests="5">
<testcase name="cuda.good" time="1.25" status="run"><system-out>[doctest]
0.500000 s: a quick case
12.250000 s: a slow case&lt;CudaEngine&gt;
fine</system-out></testcase>
<testcase name="cuda.bad" time="0.5" status="fail"><failure message=""/><system-out>wrong</system-out></testcase>
<testcase name="cuda.skipped" time="0" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/></testcase>
<testcase name="cuda.not_built" time="0" status="notrun"><skipped message="Unable to find executable"/></testcase>
<testcase name="host.golden_test" time="2" status="run"><system-out>CUDA engine SKIPPED (no CUDA device)</system-out></testcase>
</testsuite>"""
BENCHMARKS = {
    "context": {"host_name": "a host", "executable": "/a/folder/router_gpu", "command": "router_gpu", "gpu": "a GPU"},
    "benchmarks": [
        {"name": "forward/a/float32/E256/T8192/warm/iterations:40/manual_time", "family_index": 0, "threads": 1, "median_us": 4.5,
         "p10_us": 4.0, "p90_us": 5.0, "copy_percent": 70.0, "bytes_per_second": 2e12},
        {"name": "forward/b", "error_occurred": True, "error_message": "out of memory"},
    ],
}


class CollectResults(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.work = self.folder.name
        for name in ("steps", "logs", "junit", "figures"):
            os.mkdir(os.path.join(self.work, name))
        self.put("machine.tsv", "gpu\ta GPU\ndate\t2026-01-02T03:04:05Z\ncommand\tbash x\twith a tab\n")

    def tearDown(self):
        self.folder.cleanup()

    def put(self, name, text):
        path = os.path.join(self.work, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def step(self, order, name, status):
        self.put(f"steps/{order}.{name}", f"{name}\t{status}\t1500\t60\t{0 if status == 'passed' else 1}\n")

    def test_a_test_that_did_not_run_on_the_gpu_is_no_pass(self):
        path = self.put("junit/x.xml", JUNIT)
        self.assertEqual([test["status"] for test in collect_results.tests_of(path)],
                         ["passed", "failed", "skipped", "skipped", "skipped"])

    def test_slow_cases_are_named(self):
        tests = collect_results.tests_of(self.put("junit/x.xml", JUNIT))
        self.assertEqual(tests[0]["slow_cases"], [{"case": "a slow case<CudaEngine>", "seconds": 12.25}])
        self.assertNotIn("slow_cases", tests[1])

    def test_the_slowest_steps_of_the_build_are_named_the_slowest_first(self):
        self.assertEqual(collect_results.report_of(self.work)["slowest_build_steps"], [])
        self.put("ninja_log", "# ninja log v5\n0\t1500\t1\ta/quick.o\tf\n10\t90010\t1\ta/slow.cu.o\tf\n")
        self.assertEqual(collect_results.report_of(self.work)["slowest_build_steps"],
                         [{"output": "slow.cu.o", "seconds": 90.0}, {"output": "quick.o", "seconds": 1.5}])

    def test_a_cut_off_list_of_tests_is_a_failure(self):
        path = self.put("junit/golden.xml", JUNIT[:200])
        self.assertEqual([(test["name"], test["status"]) for test in collect_results.tests_of(path)], [("golden", "failed")])

    def test_steps_come_in_order_with_their_times(self):
        self.step(102, "second", "passed")
        self.step(101, "first", "passed")
        report = collect_results.report_of(self.work)
        self.assertEqual([step["name"] for step in report["steps"]], ["first", "second"])
        self.assertEqual(report["steps"][0]["seconds"], 1.5)
        self.assertTrue(report["passed"])

    def test_nothing_run_is_no_pass(self):
        self.assertFalse(collect_results.report_of(self.work)["passed"])

    def test_only_what_needs_pytorch_or_nccl_may_be_skipped(self):
        for order, name in enumerate(("compare_torch", "nccl", "nccl_example"), 101):
            self.step(order, name, "skipped")
            self.assertTrue(collect_results.report_of(self.work)["passed"])
        self.step(104, "repeats", "skipped")
        self.assertFalse(collect_results.report_of(self.work)["passed"])

    def test_a_failed_step_keeps_the_end_of_its_log(self):
        self.step(101, "build", "failed")
        self.put("logs/build.log", "\n".join(f"line {i}" for i in range(1000)))
        step = collect_results.report_of(self.work)["steps"][0]
        self.assertEqual(len(step["log_tail"]), collect_results.TAIL_LINES)
        self.assertEqual(step["log_tail"][-1], "line 999")

    def test_figures_name_no_machine_and_a_failed_benchmark_fails_its_step(self):
        self.step(101, "benchmarks", "passed")
        self.put("figures/router_gpu.json", json.dumps(BENCHMARKS))
        report = collect_results.report_of(self.work)
        self.assertEqual(report["figures"]["router_gpu"]["context"], {"command": "router_gpu", "gpu": "a GPU"})
        self.assertNotIn("family_index", report["figures"]["router_gpu"]["benchmarks"][0])
        self.assertEqual(report["steps"][0]["status"], "failed")
        self.assertFalse(report["passed"])

    def test_commands_name_no_folders(self):
        self.assertEqual(collect_results.without_folders("bash bench/gpu_check.sh --output /a/b/out --x=/c/d.json"),
                         "bash bench/gpu_check.sh --output out --x=d.json")
        self.step(101, "compare_torch", "passed")
        self.put("figures/compare_torch.json", '{"command": "compare_torch.py --json /a/b/c.json", "results": []}')
        figures = collect_results.report_of(self.work)["figures"]["compare_torch"]
        self.assertEqual(figures, {"command": "compare_torch.py --json c.json", "results": []})

    def test_a_figure_file_that_was_cut_off_is_said_to_be(self):
        self.step(101, "benchmarks", "timed_out")
        self.put("figures/router_gpu.json", '{"context": {')
        self.assertIn("unreadable", collect_results.report_of(self.work)["figures"]["router_gpu"])

    def test_what_was_whole_in_a_figure_file_that_was_cut_off_is_kept(self):
        text = json.dumps(BENCHMARKS, indent=2)
        ends = [text.index("}", text.index(name)) + 1 for name in ("forward/a", "forward/b")]
        for cut in range(len(text) - 1):
            figures = collect_results.figures_of(self.put("figures/router_gpu.json", text[:cut]))
            whole = sum(end <= cut for end in ends)
            if not whole:
                self.assertIn("unreadable", figures)
                continue
            self.assertIn("truncated", figures)
            self.assertEqual(figures["context"], {"command": "router_gpu", "gpu": "a GPU"})
            self.assertEqual([one["name"] for one in figures["benchmarks"]], [one["name"] for one in BENCHMARKS["benchmarks"][:whole]])
        self.assertNotIn("truncated", collect_results.figures_of(self.put("figures/router_gpu.json", text)))

    def test_a_brace_in_a_text_that_was_cut_off_costs_no_figure(self):
        text = json.dumps(BENCHMARKS)[:-2] + ', {"name": "forward/c", "error_message": "{no} {memory}'
        figures = collect_results.figures_of(self.put("figures/router_gpu.json", text))
        self.assertEqual(len(figures["benchmarks"]), 2)

    def test_a_figure_file_that_was_cut_off_passes_no_step(self):
        self.step(101, "benchmarks", "passed")
        self.put("figures/router_gpu.json", json.dumps(BENCHMARKS)[:-20])
        self.assertEqual(collect_results.report_of(self.work)["steps"][0]["status"], "failed")

    def test_the_log_holds_every_step_and_stays_small_enough(self):
        self.put("logs/a.log", "A" * 100)
        self.put("logs/b.log", "B" * (collect_results.LOG_BYTES * 2))
        log = collect_results.log_of(self.work)
        self.assertIn("==== a ====", log)
        self.assertLess(len(log), collect_results.LOG_BYTES)

    def test_a_line_gives_time_spread_and_share_of_a_copy(self):
        line = collect_results.headline(BENCHMARKS["benchmarks"][0])
        self.assertIn("4.50 us (4.00 to 5.00)", line)
        self.assertIn("2000.0 GB/s", line)
        self.assertIn("70.0% of a copy", line)
        self.assertIn("out of memory", collect_results.headline(BENCHMARKS["benchmarks"][1]))


if __name__ == "__main__":
    unittest.main()
