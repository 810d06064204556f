#!/usr/bin/env python3
"""Instructions per token of the main kernels, counted in machine code, beside the time that memory takes, as tables in docs/performance.md.

instructions.py write|check|print PAGE BUDGETS NVDISASM NVCC FLAGS... SOURCE

Compiles SOURCE (instructions.cu) to a cubin with line tables and counts, in each kernel, the instructions of the loop over tokens, each as often as
it runs for one token in the common case. How often, and to which phase it belongs, is read off the source lines that the compiler names for it,
innermost call first to last: the lists below. BUDGETS is the program kernel_budgets, NVDISASM the disassembler; exit status 77 without
one. `write` replaces the tables in PAGE, between two marker lines; `check` fails when the page has other kernels or, where it names this
compiler's version, a count that is more than 5% from these.
"""
import itertools
import os
import re
import subprocess
import sys
import tempfile

BEGIN = "<!-- instructions table: begin (tests/compile/instructions.py) -->"
END = "<!-- instructions table: end -->"

TOKENS = 32768
K = 8
GROUPS_KEPT = 4  # of 8 groups: GroupLimitedTopK's defaults
# One H200: what a device-to-device copy moves, reads and writes counted; and one instruction per clock from each SM's four schedulers.
BYTES_PER_SECOND = 4.3e12
WARP_INSTRUCTIONS_PER_SECOND = 132 * 4 * 1.7e9

# Where the loop over tokens jumps back: forward_tokens in engine/forward_kernel.hpp, backward_usual_tokens in engine/backward_kernel.hpp.
TOKEN_LOOPS = r"while \(token < end\)|if \(left <= step\) return;"
# Source lines that are not run in the common case: tiles of a warp apart, logits of other types, no finite weights, infinite logits. The kernels are those of usual
# calls.
NEVER = [
    r"if \(!together\) return",
    r"selection\(tile, layout, keys\)|selection\.take\(\)|selection\.go_on\(|emit_own\(|int k = 0; k \+ 1 < Count",  # rounds by keys
    r"static_cast<b?float16\*>\(nullptr\)",
    r"if \(!has_gradient\) clear_slots",
    r"return softmax_row_with_infinities|if \(!knows_scores\) find_scores|rank\(\[\]\(Real value, int\)|choose\(scores\[slot\] < infinity",
    r"finite = finite_slots\(|silence_non_finite\(|choose\(finite\.holds",
    r"kept_groups<(2|max_group_score_top)",  # groups that do not lie on neighbouring lanes
    r"\* reciprocal\) >> 22|\(1u << 22\)|\(kept >> \(group & 31u\)\)",
    r"for \(int source = 0; source < sources|tile\.shuffle\(chosen\.expert\[r\], source\)|tile\.shuffle\(value\[r\], source\)"
    r"|is_expert\(slot, expert\) \? add",  # an expert chosen twice
    r"store_nothing<|WeightRow<Real>\{\.finite = false\}|return \(problem\.active == nullptr|\(problem\.tokens_on_device == nullptr",  # masks
]
# The same where experts fill a tier, and where they do not.
NEVER_FULL = [r"for_each_quad_of_row<Real, LayoutT>\(|if \(is_padding\) f\(slot\)"]
NEVER_PADDED = [r"(load|store)_whole_quad\(layout, static_cast<(const )?float\*>\(matrix\.data\)"]
# Experts that do not fill their tier.
PADDED_EXPERTS = {256: 160, 512: 384}
# Source lines inside loops, and how often the loop's body runs for one token; a line of a caller multiplies with those of its callees.
LOOPS = [
    (r"best = tile\.maximum\(best\)|best = score\[r\] > best|group = score\[r\] == best|group = tile\.minimum\(group\)|kept \|= 1u << group"
     r"|\? excluded_key<Key> : score\[r\]|int round = 0; round < groups_kept", lambda width, repeats: GROUPS_KEPT if repeats else 1),
]
# The phase of an instruction: the first of these that one of its source lines matches.
PHASES = [
    ("load", r"\bload_first_row\(|load_element<|load_chosen\(|read_for_gradient\(|check_chosen\("),
    ("finite", r"is_known_finite\("),
    ("scores", r"score_row\(|scores_backward\("),
    ("keys", r"rank_keys\("),
    ("groups", r"template narrow<"),
    ("scan", r"best_of_lane\("),
    ("rounds", r"\bselect\(tile, keys|select_k<|select_in_registers<"),
    ("weights", r"\bweigh\(|weigh_scores<|has_unclear_score|find_scores\(|load_chosen_logits\(|read_chosen_logits\(|weight_gradient<"),
    ("scatter", r"scatter_add<"),
    ("losses", r"add_losses\(|add_probabilities\(|add_token_losses\(|loss_gradient\(|add_token_loss_gradient\("),
    ("store", r"store_chosen\(|store_first_row\("),
    ("counts", r"sink\.count|sink\.token"),
    ("places", r"\bmoved\(|::place\("),
    ("rest", r""),
]


class Instruction:
    def __init__(self, text, frames):
        self.text, self.frames = text, frames  # frames: source lines, innermost first
        self.repeats = False  # whether a loop inside that over tokens has it


class Source:
    """Lines of source files by place."""

    def __init__(self):
        self.files = {}

    def line(self, path, number):
        if path not in self.files:
            self.files[path] = open(path, encoding="utf-8").read().splitlines() if os.path.exists(path) else []
        lines = self.files[path]
        return lines[number - 1] if 0 < number <= len(lines) else ""


def kernels_of(assembly, source):
    """{mangled name: [label or Instruction in order]}"""
    kernels, code, frames, fresh = {}, None, [], False
    for line in assembly.splitlines():
        entry = re.match(r"\.text\.(\S+):", line)
        place = re.match(r'\s*//## File "(.*?)", line (\d+)(?: inlined at ".*", line \d+)?', line)
        label = re.match(r"(\.L_x_\d+):", line)
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line)
        if entry:
            code, frames = kernels.setdefault(entry.group(1), []), []
        elif code is None:
            continue
        elif place:
            frames = (frames if fresh else []) + [source.line(place.group(1), int(place.group(2)))]
            fresh = True
        elif label:
            code.append(label.group(1))
        elif instruction:
            code.append(Instruction(instruction.group(1), frames))
            fresh = False
    return kernels


def loop_over_tokens(code):
    """The instructions of the loop that jumps back at a line of TOKEN_LOOPS, and whether the kernel reads whole rows."""
    position = {item: index for index, item in enumerate(code) if isinstance(item, str)}
    loops = []
    for index, item in enumerate(code):
        branch = None if isinstance(item, str) else re.search(r"\bBRA `\((\.L_x_\d+)\)", item.text)
        if branch and position[branch.group(1)] <= index:
            loops.append((position[branch.group(1)], index))
    over_tokens = [(first, last) for first, last in loops if re.search(TOKEN_LOOPS, (code[last].frames or [""])[0])]
    if len(over_tokens) != 1:
        sys.exit(f"a kernel has {len(over_tokens)} loops over tokens")
    first, last = over_tokens[0]
    for begin, end in loops:
        if first <= begin and end <= last and (begin, end) != (first, last):
            for item in code[begin : end + 1]:
                if not isinstance(item, str):
                    item.repeats = True
    instructions = [item for item in code if not isinstance(item, str)]
    reads_rows = any(re.search(r"\bLDG\.\S*128", item.text) for item in instructions)
    return [item for item in code[first : last + 1] if not isinstance(item, str)], reads_rows


def times(instruction, width, used, is_full):
    """How often a token's warp runs it."""
    result = 1
    for pattern in [*NEVER, *(NEVER_FULL if is_full else NEVER_PADDED)]:
        if any(re.search(pattern, frame) for frame in instruction.frames):
            used.add(pattern)
            return 0
    for pattern, count in LOOPS:
        if any(re.search(pattern, frame) for frame in instruction.frames):
            used.add(pattern)
            result *= count(width, instruction.repeats)
    return result


def phase_of(instruction):
    return next(name for name, pattern in PHASES if any(re.search(pattern, frame) for frame in instruction.frames or [""]))


def count(loop, width, used, is_full):
    """{phase: warp instructions}, one pass over the loop's code: a token of each of a warp's tiles."""
    result = dict.fromkeys((name for name, _ in PHASES), 0.0)
    for instruction in loop:
        result[phase_of(instruction)] += times(instruction, width, used, is_full)
    return result


def tiers_of(budgets):
    """{tier: (experts, lanes a token)}"""
    tiers = {}
    for line in subprocess.run([budgets], check=True, capture_output=True, text=True).stdout.splitlines():
        kind, tier, *rest = line.split()
        if kind == "tier":
            tiers[int(tier)] = (int(rest[0]), int(rest[1]))
    return tiers


def disassembled(nvdisasm, command):
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/kernels.cubin"
        subprocess.run([*command, "-cubin", "-lineinfo", "-o", cubin], check=True)
        return subprocess.run([nvdisasm, "-c", "-gi", cubin], check=True, capture_output=True, text=True).stdout


def rows(budgets, nvdisasm, command):
    """[(router, kernel, experts, width, fixed start of the row, {phase: instructions}, us of memory)], in the table's order"""
    tiers = tiers_of(budgets)
    kernels = kernels_of(disassembled(nvdisasm, command), Source())
    names = subprocess.run(["c++filt"], input="\n".join(kernels), check=True, capture_output=True, text=True).stdout.splitlines()
    table, used = [], set()
    for name, code in zip(names, kernels.values()):
        name = re.sub(r"moe_balance::v[0-9_]*::(cuda_[0-9a-z_]*::)?", "", name)
        kernel = re.match(r"void moe_balance_(forward|backward)<(\d+), true, \w+Problem<(.*)> >\(", name)
        if not kernel:
            continue
        tier_experts, width = tiers[int(kernel.group(2))]
        loop, reads_rows = loop_over_tokens(code)
        for experts in [tier_experts, *([PADDED_EXPERTS[tier_experts]] if tier_experts in PADDED_EXPERTS else [])]:
            counted = count(loop, width, used, experts == tier_experts)
            phases = {phase: instructions * width / 32 for phase, instructions in counted.items()}
            row_bytes = 4 * experts
            # Backward without a loss reads the chosen logits only, a sector of 32 bytes each.
            read = row_bytes if reads_rows else 32 * K
            bytes_per_token = read + (row_bytes if kernel.group(1) == "backward" else 0) + 8 * K
            memory = bytes_per_token * TOKENS / BYTES_PER_SECOND * 1e6
            start = f"| {kernel.group(3)} | {kernel.group(1)} | {experts} | {width} | {bytes_per_token} | {memory:.1f} |"
            table.append((kernel.group(1) != "forward", kernel.group(3), experts, start, phases))
    unused = [pattern for pattern in [*NEVER, *NEVER_FULL, *NEVER_PADDED, *(pattern for pattern, _ in LOOPS)] if pattern not in used]
    if unused:
        sys.exit("no instruction comes from these source lines any more, so that counts are wrong:\n" + "\n".join(unused))
    return [(start, phases) for *_, start, phases in sorted(table, key=lambda row: row[:3])]


def table_of(version, counted):
    lines = [
        BEGIN,
        f"{version}, sm_90. T = {TOKENS}, float32, K = {K}; bytes are logits, ids and weights, for backward gradients, too. Microseconds on one H200: memory "
        "at 4.3 TB/s, issue at one instruction a clock from 132 x 4 schedulers at 1.7 GHz.",
        "",
        "| router | kernel | experts | lanes a token | bytes a token | memory, us | warp instructions a token | issue, us |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for start, phases in counted:
        total = sum(phases.values())
        lines.append(f"{start} {total:.0f} | {total * TOKENS / WARP_INSTRUCTIONS_PER_SECOND * 1e6:.1f} |")
    names = [name for name, _ in PHASES if any(phases[name] >= 0.5 for _, phases in counted)]
    lines += ["", "The same by phase:", "", "| router | kernel | experts | lanes | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 4)]
    for start, phases in counted:
        where = "|".join(start.split("|")[:5])
        lines.append(f"{where}| " + " | ".join(f"{phases[name]:.0f}" for name in names) + " |")
    return [*lines, END]


def kernel_rows(lines):
    """The rows of the first table."""
    return [line for line in itertools.takewhile(lambda line: line != "The same by phase:", lines) if line.startswith("| ") and "memory, us" not in line]


def is_far(old, new):
    return abs(int(old.split("|")[7]) / int(new.split("|")[7]) - 1) > 0.05


def main():
    mode, page, budgets, nvdisasm, *command = sys.argv[1:]
    if not os.access(nvdisasm, os.X_OK):
        print(f"SKIPPED: no disassembler at {nvdisasm}; `python3 -m pip install nvidia-cuda-nvdisasm` brings one")
        sys.exit(77)
    release = re.search(r"V[\d.]+", subprocess.run([command[0], "--version"], check=True, capture_output=True, text=True).stdout)
    version = f"nvcc {release.group(0)}"
    fresh = table_of(version, rows(budgets, nvdisasm, command))
    if mode == "print":
        print("\n".join(fresh[1:-1]))
        return
    lines = open(page, encoding="utf-8").read().splitlines()
    if BEGIN not in lines or END not in lines:
        sys.exit(f"{page} has no lines '{BEGIN}' and '{END}'")
    begin, end = lines.index(BEGIN), lines.index(END)
    written = lines[begin : end + 1]
    if mode == "write":
        open(page, "w", encoding="utf-8").write("\n".join(lines[:begin] + fresh + lines[end + 1 :]) + "\n")
        print(f"{len(kernel_rows(fresh))} kernels written to {page}")
        return
    same_compiler = len(written) > 1 and written[1].startswith(version + ",")
    old_rows, new_rows = kernel_rows(written), kernel_rows(fresh)
    differing = len(old_rows) != len(new_rows) or any(
        old.split("|")[:7] != new.split("|")[:7] or (same_compiler and is_far(old, new)) for old, new in zip(old_rows, new_rows)
    )
    if differing:
        sys.exit(f"the instructions table of {page} is out of date (build the target instructions_table). Now:\n" + "\n".join(fresh))
    print(f"{len(new_rows)} kernels as in {page}" + ("" if same_compiler else f"; counts not compared: {version} is not the page's"))


if __name__ == "__main__":
    main()
