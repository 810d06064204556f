#!/usr/bin/env python3
"""What gpu_check.sh measured, as two tables in docs/performance.md.

gpu_table.py write|check PAGE

PAGE has the tables between two marker lines, the first of which names the results: letters of runs, each with a file of bench/results. `write`
replaces the tables, `check` fails where they are not these results'. The first table has every run's medians, the second the last run's
comparison with PyTorch. Whether a target is met is said of the last run alone.
"""
import json
import os
import re
import sys

BEGIN = re.compile(r"<!-- GPU tables: begin \(bench/gpu_table\.py\)((?: [A-Z]=\S+)+) -->")
END = "<!-- GPU tables: end -->"
COLUMNS = ("T64/warm/graph", "T8192/warm", "T32768/warm")
TOKENS = (64, 8192, 32768)
K = 8

# Label; benchmark, with {} for a column's tokens and way of timing; targets in microseconds by column, or, where bytes count, experts and K.
ROWS = (
    ("forward, softmax, `AuxLoss`, E = 256", "forward/softmax_top8_aux_loss/float32/E256/{}", (2.0, 4.5, 12.0)),
    ("the same, E = 64", "forward/softmax_top8_aux_loss/float32/E64/{}", ()),
    ("E = 128", "forward/softmax_top8_aux_loss/float32/E128/{}", ()),
    ("E = 384 (does not fill its tier)", "forward/softmax_top8_aux_loss/float32/E384/{}", ()),
    ("E = 512", "forward/softmax_top8_aux_loss/float32/E512/{}", (512, 8)),
    ("E = 896, K = 16 (not a usual call)", "forward/softmax_top16_aux_loss/float32/E896/{}", (896, 16)),
    ("forward, sigmoid + bias, 8 groups keep 4", "forward/sigmoid_groups_top8_bias/float32/E256/{}", (None, 5.0, None)),
    ("forward, sigmoid + bias", "forward/sigmoid_top8_bias/float32/E256/{}", ()),
    ("the same with `QuantileBias`", "forward/sigmoid_top8_quantile/float32/E256/{}", ()),
    ("forward, sqrt(softplus) + bias", "forward/sqrt_softplus_top8_bias/float32/E256/{}", ()),
    ("forward, softmax over the selected, E = 128", "forward/softmax_over_selected_top8/float32/E128/{}", ()),
    ("forward, softmax, `TopK<8>`, as the next two are timed", "forward/softmax_plain_top8/float32/E256/{}", ()),
    ("the same with `TopP<8>`", "forward/softmax_top_p8/float32/E256/{}", ()),
    ("the same with `EntropyLoss`", "forward/softmax_top8_entropy/float32/E256/{}", ()),
    ("route, softmax", "route/softmax_top8/float32/E256/{}", (2.0, None, None)),
    ("backward, softmax, `AuxLoss`", "backward/softmax_top8_aux_loss/float32/E256/{}", (None, None, 20.0)),
    ("backward, softmax, `EntropyLoss`", "backward/softmax_top8_entropy/float32/E256/{}", ()),
    ("backward, sigmoid, groups", "backward/sigmoid_groups_top8_bias/float32/E256/{}", ()),
    ("`forward_and_permute`", "forward_and_permute/float32/E256/{}", (None, 8.0, None)),
    ("`route_and_permute`", "route_and_permute/float32/E256/{}", (None, 8.0, None)),
    ("permutation alone", "permutation/float32/E256/{}", ()),
    ("update of 61 layers (in a graph)", "update/sigmoid_groups_top8_bias/E256/L61/warm/graph", ()),
    ("the same with `QuantileBias`", "update/sigmoid_top8_quantile/E256/L61/warm/graph", ()),
    ("`permute`, bfloat16, H = 2048", "permute/bfloat16/E256/{}", ()),
    ("`permute_by_rows`", "permute_by_rows/bfloat16/E256/{}", ()),
    ("`combine`", "combine/bfloat16/E256/{}", ()),
    ("`combine_backward`", "combine_backward/bfloat16/E256/{}", ()),
)


class Run:
    """One report of gpu_check.sh: medians by the name of a benchmark, without how often it ran and the width of its rows."""

    def __init__(self, letter, path):
        with open(path, encoding="utf-8") as file:
            self.report = json.load(file)
        self.letter = letter
        self.benchmarks = {}
        for program in ("router_gpu", "dispatch_gpu"):
            for one in self.report["figures"].get(program, {}).get("benchmarks", []):
                if "median_us" in one:
                    self.benchmarks[re.sub(r"/H\d+|/iterations:\d+|/manual_time", "", one["name"])] = one

    def median(self, name):
        one = self.benchmarks.get(name)
        return one and one["median_us"]


def micros(value):
    return "-" if value is None else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def names_of(benchmark):
    """The benchmark of each column; what no column can hold is in the first."""
    return [benchmark.format(column) for column in COLUMNS] if "{}" in benchmark else [benchmark, None, None]


def cell(runs, name):
    values = [run.median(name) if name else None for run in runs]
    return ", ".join(map(micros, values)) if any(value is not None for value in values) else ""


def bytes_of_token(experts, k):
    return experts * 4 + k * 8


def verdict(run, benchmark, targets):
    """What the last run says of a row's targets."""
    names = names_of(benchmark)
    if len(targets) == 2:  # experts and K: per byte of E = 256, at 8192 tokens
        base, ours = run.median(ROWS[0][1].format(COLUMNS[1])), run.median(names[1])
        if base is None or ours is None:
            return "E = 256 a byte within 1.5: not measured"
        ratio = ours / bytes_of_token(*targets) / (base / bytes_of_token(256, K))
        return f"E = 256 a byte within 1.5 (T = 8192): {'met' if ratio <= 1.5 else 'missed'}, {ratio:.2f}"
    said = []
    for name, tokens, target in zip(names, TOKENS, targets):
        if target is None:
            continue
        took = run.median(name)
        outcome = "not measured" if took is None else "met" if took <= target else f"missed by {took / target:.1f} times"
        said.append(f"{target:g} (T = {tokens}): {outcome}")
    if benchmark.startswith("backward") and said:
        share = run.benchmarks.get(names[2], {}).get("copy_percent")
        if share is not None:
            said.append(f"75% of a copy: {'met' if share >= 75 else 'missed'}, {share:.1f}%")
    return "; ".join(said)


def measured(runs):
    last = runs[-1]
    lines = [f"| work | T = 64, in a graph | T = 8192, warm | T = 32768, warm | target, {last.letter} |", "|---|---|---|---|---|"]
    for label, benchmark, targets in ROWS:
        cells = [cell(runs, name) for name in names_of(benchmark)]
        lines.append(f"| {label} | {' | '.join(cells)} | {verdict(last, benchmark, targets)} |")
    return lines


def compared(run):
    lines = ["| work | eager | moe_balance | ratio | torch.compile | moe_balance | ratio |", "|---|---|---|---|---|---|---|"]
    results = run.report["figures"].get("compare_torch", {}).get("results", [])
    found = {(one["case"], one["against"]): one for one in results}
    for case in dict.fromkeys(one["case"] for one in results):
        cells = []
        for against in ("PyTorch", "torch.compile"):
            one = found.get((case, against))
            medians = [sorted(one[key])[len(one[key]) // 2] for key in ("torch_us", "moe_balance_us")] if one else []
            cells += [f"{medians[0]:.2f}", f"{medians[1]:.2f}", f"{one['ratio_of_medians']:.1f}x"] if one else ["-", "-", "-"]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return lines


def tables(page, named):
    folder = os.path.join(os.path.dirname(os.path.abspath(page)), "..", "bench", "results")
    runs = [Run(letter, os.path.join(folder, name)) for letter, name in (word.split("=", 1) for word in named.split())]
    letters = ", ".join(run.letter for run in runs)
    return "\n".join(
        [f"Medians in us, float32 and K = 8 unless said, with counts and P sums where forward; {letters}.", "", *measured(runs), ""]
        + [f"`compare_torch.py --device cuda --compile` of {runs[-1].letter}, medians in us, both sides in CUDA graphs; PyTorch "
           f"{runs[-1].report['figures'].get('compare_torch', {}).get('torch', '?')} eager, then torch.compile (dispatch beside eager PyTorch only; "
           "without padding; -: not reached before the deadline):", "", *compared(runs[-1])]
    )


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "check"):
        sys.exit(__doc__)
    way, page = sys.argv[1:]
    with open(page, encoding="utf-8") as file:
        text = file.read()
    begin = BEGIN.search(text)
    if not begin or END not in text[begin.end() :]:
        sys.exit(f"{page}: no markers '<!-- GPU tables: begin (bench/gpu_table.py) LETTER=FILE ... -->' and '{END}'")
    start, end = begin.end(), text.index(END, begin.end())
    new = "\n" + tables(page, begin.group(1)) + "\n"
    if way == "write":
        with open(page, "w", encoding="utf-8") as file:
            file.write(text[:start] + new + text[end:])
    elif text[start:end] != new:
        old_lines, new_lines = text[start:end].split("\n"), new.split("\n")
        differ = [(old, ours) for old, ours in zip(old_lines, new_lines) if old != ours]
        for old, ours in differ[:5]:
            print(f"page:    {old}\nresults: {ours}")
        sys.exit(f"{page}: the GPU tables are not those of the results they name ({len(differ)} lines, {len(old_lines)} and {len(new_lines)} in all)")


if __name__ == "__main__":
    main()
