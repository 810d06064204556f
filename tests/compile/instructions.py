#!/usr/bin/env python3
"""Instructions per token of the main kernels, estimated from PTX, beside the time that memory takes, as a table in docs/performance.md.

instructions.py write|check|print PAGE BUDGETS NVCC FLAGS... SOURCE

Compiles SOURCE (instructions.cu) to PTX with NVCC FLAGS and counts, in each kernel, the instructions of the loop over tokens. BUDGETS is the
program kernel_budgets. An estimate, to show what a change costs: PTX is not the machine's code (moves are left out, because ptxas removes most;
what it fuses or adds is not seen), both sides of a branch count, and each loop inside the loop over tokens counts K times, which is what select_k
and scatter_add do, and 8 groups too, as K is 8 here. `write` replaces the table in PAGE, between its two marker lines; `check` fails when the
page has other kernels, or, where it names this compiler's version, a count that is more than 5% from these.
"""
import re
import subprocess
import sys
import tempfile

BEGIN = "<!-- instructions table: begin (tests/compile/instructions.py) -->"
END = "<!-- instructions table: end -->"

TOKENS = 32768
K = 8
# One H200: what a device-to-device copy moves, reads and writes counted; and one instruction per clock from each SM's four schedulers.
BYTES_PER_SECOND = 4.3e12
WARP_INSTRUCTIONS_PER_SECOND = 132 * 4 * 1.7e9


class Block:
    def __init__(self, label):
        self.label = label
        self.instructions = []


def kernels_of(ptx):
    """{mangled name: [blocks in order]}"""
    kernels, blocks = {}, None
    for line in ptx.splitlines():
        entry = re.match(r"(?:\.visible |\.weak )?\.entry (\S+)\(", line)
        text = line.strip()
        if entry:
            blocks = kernels.setdefault(entry.group(1), [Block(None)])
        elif blocks is None or not text or text.startswith((".", "//", "{", "}", ")")):
            continue
        elif text.endswith(":"):
            blocks.append(Block(text[:-1]))
        elif text.endswith(";"):
            blocks[-1].instructions.append(text)
            if re.search(r"\b(bra|ret|exit|trap)\b", text):
                blocks.append(Block(None))
    return kernels


def loops_of(blocks):
    """(first, last) block of every loop: from the target of a backward branch to the branch."""
    position = {block.label: index for index, block in enumerate(blocks) if block.label}
    loops = {}
    for index, block in enumerate(blocks):
        for instruction in block.instructions:
            branch = re.search(r"\bbra(?:\.uni)?\s+(\$?[\w$]+);", instruction)
            if branch and position.get(branch.group(1), index + 1) <= index:
                first = position[branch.group(1)]
                loops[first] = max(index, loops.get(first, 0))
    return sorted(loops.items())


def is_counted(instruction):
    """Moves cost nothing once ptxas has named registers."""
    return not re.match(r"(@!?%p\d+ )?(mov|ret|\.)", instruction)


def blocks_with(blocks, access):
    """Blocks that move whole quads of a row by ld.global or st.global."""
    return [i for i, block in enumerate(blocks) if any(access in text and ".v4." in text for text in block.instructions)]


def count(blocks):
    """Instructions of one lane for one token: the smallest loop that moves all of a row's quads, loops inside it K times each."""
    loops = loops_of(blocks)
    quads = blocks_with(blocks, "ld.global") or blocks_with(blocks, "st.global")
    around = [(first, last) for first, last in loops if quads and first <= quads[0] and quads[-1] <= last]
    if not around:
        sys.exit("a kernel has no loop over tokens")
    begin, end = min(around, key=lambda loop: loop[1] - loop[0])
    total = 0
    for index in range(begin, end + 1):
        depth = sum(1 for first, last in loops if first <= index <= last and (first, last) != (begin, end) and begin <= first and last <= end)
        total += K**depth * sum(map(is_counted, blocks[index].instructions))
    return total


def lane_count(row):
    return int(row.split("|")[7])


def rows(budgets, command):
    widths = {}
    for line in subprocess.run([budgets], check=True, capture_output=True, text=True).stdout.splitlines():
        kind, tier, *rest = line.split()
        if kind == "tier":
            widths[int(tier)] = (int(rest[0]), int(rest[1]))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "-ptx", "-o", f"{folder}/kernels.ptx"], check=True)
        ptx = open(f"{folder}/kernels.ptx", encoding="utf-8").read()
    kernels = kernels_of(ptx)
    names = subprocess.run(["c++filt"], input="\n".join(kernels), check=True, capture_output=True, text=True).stdout.splitlines()
    table = []
    for name, blocks in zip(names, kernels.values()):
        name = re.sub(r"moe_balance::v[0-9_]*::(cuda_[0-9a-z_]*::)?", "", name)
        kernel = re.match(r"void common_(forward|backward)<(\d+), \w+Problem<(.*)> >\(", name)
        if not kernel:
            continue
        experts, width = widths[int(kernel.group(2))]
        per_lane = count(blocks)
        per_token = per_lane * width / 32
        row_bytes = 4 * experts
        # Backward without a loss reads the chosen logits only, a sector of 32 bytes each.
        read = row_bytes if blocks_with(blocks, "ld.global") else 32 * K
        bytes_per_token = read + (row_bytes if kernel.group(1) == "backward" else 0) + 8 * K
        memory = bytes_per_token * TOKENS / BYTES_PER_SECOND * 1e6
        issue = per_token * TOKENS / WARP_INSTRUCTIONS_PER_SECOND * 1e6
        start = f"| {kernel.group(3)} | {kernel.group(1)} | {experts} | {width} | {bytes_per_token} | {memory:.1f} |"
        table.append((kernel.group(1) != "forward", kernel.group(3), experts, start, f"{start} {per_lane} | {per_token:.0f} | {issue:.1f} |"))
    return sorted(table)


def main():
    mode, page, budgets, *command = sys.argv[1:]
    release = re.search(r"V[\d.]+", subprocess.run([command[0], "--version"], check=True, capture_output=True, text=True).stdout)
    version = f"nvcc {release.group(0)}"
    counted = rows(budgets, command)
    fresh = [
        BEGIN,
        f"{version}, PTX. T = {TOKENS}, float32, K = {K}; bytes are logits, ids and weights, for backward gradients, too. Microseconds on one H200: memory "
        "at 4.3 TB/s, issue at one instruction a clock from 132 x 4 schedulers at 1.7 GHz.",
        "",
        "| router | kernel | experts | lanes a token | bytes a token | memory, us | instructions a lane | warp instructions a token | issue, us |",
        "|---|---|---|---|---|---|---|---|---|",
        *[row[-1] for row in counted],
        END,
    ]
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
        print(f"{len(counted)} kernels written to {page}")
        return
    same_compiler = len(written) > 1 and written[1].startswith(version + ",")
    old_rows = [line for line in written if line.startswith("| ") and not line.startswith("| router")]
    differing = len(old_rows) != len(counted)
    for *_, start, row in counted:
        old = next((old for old in old_rows if old.startswith(start)), None)
        differing = differing or old is None or (same_compiler and abs(lane_count(old) / lane_count(row) - 1) > 0.05)
    if differing:
        sys.exit(f"the instructions table of {page} is out of date (build the target instructions_table). Now:\n" + "\n".join(fresh))
    print(f"{len(counted)} kernels as in {page}" + ("" if same_compiler else f"; counts not compared: {version} is not the page's"))


if __name__ == "__main__":
    main()
