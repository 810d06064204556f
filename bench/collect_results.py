#!/usr/bin/env python3
"""Makes gpu_check.sh's report from what its steps left behind.

collect_results.py --work DIR --report PREFIX [--table]   writes PREFIX.json and PREFIX.log; --table also prints a table and exits with 1
                                                          unless every step passed (or had to be skipped)
collect_results.py --junit FILE                           exits with 1 unless every test in ctest's JUnit file ran on the GPU and passed

DIR holds machine.tsv (key, value), steps/ORDER.NAME (name, status, milliseconds, limit in seconds, exit status), logs/NAME.log,
junit/*.xml, figures/*.json (Google Benchmark's output and compare_torch.py's) and, if Ninja built, its ninja_log.
"""
import argparse
import json
import os
import re
import sys
import xml.etree.ElementTree

MAY_BE_SKIPPED = ("configure", "build", "compare_torch", "nccl", "nccl_example")  # with --built; PyTorch or NCCL need not be there
HIGHLIGHTS = re.compile(r"/float32/E(256|512|896)/T(64/warm/graph|8192/|32768/)|^update/|/E256/T8192/H")  # what the table shows
PROGRAM_OF_STEP = {  # Google Benchmark exits with 0 whatever fails
    "benchmarks": "router_gpu",
    "dispatch": "dispatch_gpu",
    "user_policy": "user_policy_gpu",
}
TAIL_LINES = 40
SLOW_SECONDS = 2  # test cases that take as long are named
SLOW_BUILD_STEPS = 20  # so many are named
LOG_BYTES = 12 << 20
CUT_OFF = "the program was stopped while it wrote this"


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def in_folder(*parts):
    folder = os.path.join(*parts)
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []


def stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def without_paths(text):
    """The text without the folder that the repository lies in."""
    return text.replace(os.getcwd() + os.sep, "")


def without_folders(command):
    """The command without the folders of its arguments, which are this machine's affair."""
    return re.sub(r"(?<=[ =])/\S*/", "", command)


def tests_of(junit):
    """Every test in a JUnit file of ctest: name, status ("passed", "failed" or "skipped"), seconds, and the cases that took long, as doctest's option
    --duration prints them."""
    try:
        root = xml.etree.ElementTree.parse(junit).getroot()
    except xml.etree.ElementTree.ParseError:  # ctest was stopped while it wrote
        return [{"name": stem(junit), "status": "failed", "seconds": 0.0}]
    tests = []
    for case in root.iter("testcase"):
        output = case.findtext("system-out") or ""
        status = {"run": "passed", "fail": "failed"}.get(case.get("status"), "skipped")
        if status == "passed" and "CUDA engine SKIPPED" in output:
            status = "skipped"
        test = {"name": case.get("name"), "status": status, "seconds": float(case.get("time") or 0)}
        durations = ((float(seconds), name) for seconds, name in re.findall(r"^(\d+\.\d+) s: (.*)$", output, re.MULTILINE))
        slow = [{"case": name, "seconds": seconds} for seconds, name in durations if seconds >= SLOW_SECONDS]
        tests.append({**test, "slow_cases": slow} if slow else test)
    return tests


def slowest_build_steps(ninja_log):
    """Output and seconds of each; Ninja's log has start and end in milliseconds, a time of writing, the output and a hash."""
    if not os.path.isfile(ninja_log):
        return []
    fields = [line.split("\t") for line in read(ninja_log).splitlines() if not line.startswith("#")]
    took = {line[3]: (int(line[1]) - int(line[0])) / 1000 for line in fields if len(line) == 5}
    slowest = sorted(took.items(), key=lambda step: -step[1])[:SLOW_BUILD_STEPS]
    return [{"output": os.path.basename(output), "seconds": seconds} for output, seconds in slowest]


def steps_of(work):
    steps = []
    for path in in_folder(work, "steps"):
        name, status, milliseconds, limit, code = read(path).rstrip("\n").split("\t")
        step = {"name": name, "status": status, "seconds": int(milliseconds) / 1000, "limit_seconds": int(limit), "exit_status": int(code)}
        log = os.path.join(work, "logs", name + ".log")
        if status != "passed" and os.path.isfile(log):
            step["log_tail"] = without_paths(read(log)).splitlines()[-TAIL_LINES:]
        steps.append(step)
    return steps


def whole_part(text):
    """What a file of figures says that was cut off within its list: it ends with the last whole one. Where there is none, that is said."""
    ends = [brace.end() for brace in re.finditer("}", text)]
    for end in ends[:-10:-1]:  # more than one, because the last may lie in a text that was cut off
        try:
            return {**json.loads(text[:end] + "]}"), "truncated": CUT_OFF}
        except ValueError:
            continue
    return {"unreadable": CUT_OFF}


def figures_of(path):
    """One program's figures: Google Benchmark's without this machine's names and folders, other files but for the folders of their command."""
    text = read(path)
    try:
        figures = json.loads(text)
    except ValueError:
        figures = whole_part(text)
    if "benchmarks" not in figures:
        return {**figures, "command": without_folders(figures["command"])} if "command" in figures else figures
    context = {key: value for key, value in figures.get("context", {}).items() if key not in ("host_name", "executable")}
    context["command"] = without_folders(context.get("command", ""))
    dropped = ("family_index", "per_family_instance_index", "run_name", "run_type", "repetitions", "repetition_index", "threads")
    benchmarks = [{key: value for key, value in one.items() if key not in dropped} for one in figures["benchmarks"]]
    return {**figures, "context": context, "benchmarks": benchmarks}


def is_good(step):
    return step["status"] == "passed" or (step["status"] == "skipped" and step["name"] in MAY_BE_SKIPPED)


def failed_benchmarks(program):
    cut_off = ["the end of the figures"] if "truncated" in program or "unreadable" in program else []
    return [one["name"] for one in program.get("benchmarks", []) if one.get("error_occurred")] + cut_off


def report_of(work):
    machine = dict(line.split("\t", 1) for line in read(os.path.join(work, "machine.tsv")).splitlines())
    machine["command"] = without_folders(machine.get("command", ""))
    figures = {stem(path): figures_of(path) for path in in_folder(work, "figures")}
    steps = steps_of(work)
    for step in steps:
        errors = failed_benchmarks(figures.get(PROGRAM_OF_STEP.get(step["name"]), {}))
        if errors and step["status"] == "passed":
            step.update(status="failed", log_tail=[f"failed: {name}" for name in errors])
    return {
        "machine": machine,
        "passed": bool(steps) and all(is_good(step) for step in steps),
        "steps": steps,
        "tests": [test for path in in_folder(work, "junit") for test in tests_of(path)],
        "slowest_build_steps": slowest_build_steps(os.path.join(work, "ninja_log")),
        "figures": figures,
    }


def log_of(work):
    logs = {stem(path): without_paths(read(path)) for path in in_folder(work, "logs")}
    share = LOG_BYTES // max(1, len(logs))
    return "".join(f"==== {name} ====\n{text[-share:]}\n" for name, text in logs.items())


def write(path, text):
    """Whole or not at all."""
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".part", path)


def headline(one):
    """A benchmark in one line: time, spread, bandwidth and share of a copy's."""
    name = re.sub(r"/iterations:\d+|/manual_time", "", one["name"])
    if one.get("error_occurred"):
        return f"  {name:<78} FAILED: {one.get('error_message', '')}"
    return (f"  {name:<78} {one['median_us']:9.2f} us ({one['p10_us']:.2f} to {one['p90_us']:.2f}) "
            f"{one.get('bytes_per_second', 0) / 1e9:8.1f} GB/s {one['copy_percent']:6.1f}% of a copy")


def print_table(report):
    machine = report["machine"]
    print(f"\n{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, {machine['date']}, revision {machine['revision']}")
    for program, figures in report["figures"].items():
        if "truncated" in figures or "unreadable" in figures:
            print(f"{program}: cut off, because {CUT_OFF}")
        if "benchmarks" in figures:
            print(f"{program}: {figures['context'].get('command', '')}")
            for one in figures["benchmarks"]:
                if one.get("error_occurred") or ("median_us" in one and HIGHLIGHTS.search(one["name"])):
                    print(headline(one))
        for result in figures.get("results", []):
            print("  " + result["line"])
    tests = report["tests"]
    print(f"tests: {sum(test['status'] == 'passed' for test in tests)} of {len(tests)} passed")
    for test in tests:
        if test["status"] != "passed":
            print(f"  {test['status'].upper():<8} {test['name']}")
        for slow in test.get("slow_cases", []):
            print(f"  {slow['seconds']:6.1f} s  {slow['case']}")
    for step in report["slowest_build_steps"][:5]:
        print(f"  {step['seconds']:6.1f} s  to build {step['output']}")
    print(f"{'step':<22} {'status':<12} {'seconds':>8}")
    for step in report["steps"]:
        print(f"{step['name']:<22} {step['status']:<12} {step['seconds']:8.1f}")
        for line in step.get("log_tail", [])[-5:]:
            print("    | " + line)
    skipped = ", ".join(step["name"] for step in report["steps"] if step["status"] == "skipped")
    all_passed = f"ALL PASSED, but for what was skipped: {skipped}" if skipped else "ALL PASSED"
    print(all_passed if report["passed"] else "SOMETHING DID NOT PASS: the report and its log say what")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work")
    parser.add_argument("--report")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--junit")
    args = parser.parse_args()
    if args.junit:
        tests = tests_of(args.junit)
        bad = [test for test in tests if test["status"] != "passed"]
        for test in bad:
            print(f"{test['name']}: {test['status']}, and there is a GPU")
        return 1 if bad or not tests else 0
    if not (args.work and args.report):
        parser.error("--work and --report, or --junit")
    report = report_of(args.work)
    write(args.report + ".json", json.dumps(report, indent=1) + "\n")
    write(args.report + ".log", log_of(args.work))
    if not args.table:
        return 0
    print_table(report)
    print(f"report: {args.report}.json")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
