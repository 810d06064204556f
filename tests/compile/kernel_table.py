#!/usr/bin/env python3
"""Registers, shared memory and theoretical occupancy of the kernels of resources.cu, as a table in docs/performance.md.

kernel_table.py write|check PAGE BUDGETS NVCC sm_80=PTXAS sm_90=PTXAS sm_100=PTXAS

PAGE has the table between two marker lines. BUDGETS is the program kernel_budgets, NVCC the compiler (for its version), and each PTXAS what
ptxas said (OUTPUT.txt of resources.sh). `write` replaces the table. `check` fails when the page's table has other kernels, other shared memory
or other launches than these, or, where the page names this compiler's version, when a kernel's registers are more than one allocation unit (8
a thread) from the page's. Both fail where tuning.hpp launches more blocks than fit, or a kernel has more registers than it says.
"""
import math
import re
import subprocess
import sys

BEGIN = "<!-- kernel table: begin (tests/compile/kernel_table.py) -->"
END = "<!-- kernel table: end -->"

# Per SM: registers, shared memory, warps, blocks. CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
LIMITS = {
    "sm_80": {"registers": 65536, "shared": 164 * 1024, "warps": 64, "blocks": 32},
    "sm_90": {"registers": 65536, "shared": 228 * 1024, "warps": 64, "blocks": 32},
    "sm_100": {"registers": 65536, "shared": 228 * 1024, "warps": 64, "blocks": 32},
}
REGISTER_UNIT = 256  # a warp's registers are allocated in units of so many
SHARED_UNIT = 128
SHARED_RESERVED = 1024  # per block, by the system


def blocks_per_sm(arch, threads, registers, shared):
    """How many blocks an SM holds at once."""
    limit = LIMITS[arch]
    warps = math.ceil(threads / 32)
    warp_registers = math.ceil(registers * 32 / REGISTER_UNIT) * REGISTER_UNIT
    block_shared = math.ceil((shared + SHARED_RESERVED) / SHARED_UNIT) * SHARED_UNIT
    return min(
        limit["registers"] // warp_registers // warps,
        limit["shared"] // block_shared,
        limit["warps"] // warps,
        limit["blocks"],
    )


def occupancy(arch, threads, blocks):
    return blocks * math.ceil(threads / 32) / LIMITS[arch]["warps"]


def kernels_of(ptxas):
    """{(kernel, whether it is that of usual calls, tier, problem): (registers, static shared bytes)} from ptxas's output."""
    found = {}
    name = None
    for line in open(ptxas, encoding="utf-8"):
        entry = re.search(r"Compiling entry function '(.*)' for", line)
        if entry:
            text = re.sub(r"moe_balance::v[0-9_]*::(cuda_[0-9a-z_]*::)?", "", entry.group(1))
            text = re.sub(r"(FromPlainTopK<[^<>]*), 0>", r"\1>", text)  # a default argument
            kernel = re.match(r"void moe_balance_(forward|backward)<(\d+), (true|false), \w+Problem<(.*)> >\(", text)
            name = kernel and (kernel.group(1), kernel.group(3), int(kernel.group(2)), kernel.group(4).replace(" ", ""))
        used = re.search(r"Used (\d+) registers", line)
        if used and name:
            static = re.search(r"(\d+) bytes smem", line)
            found[name] = (int(used.group(1)), int(static.group(1)) if static else 0)
            name = None
    return found


def split_arguments(text):
    """Template arguments at the outermost level."""
    parts, depth = [""], 0
    for character in text:
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def rows(budgets, ptxas):
    """The table's lines, without registers and occupancy first, then with them."""
    tiers, launches = {}, {}
    for line in subprocess.run([budgets], check=True, capture_output=True, text=True).stdout.splitlines():
        kind, tier, *rest = line.split()
        if kind == "tier":
            tiers[int(tier)] = tuple(map(int, rest))
        elif kind == "launch":
            launches[(rest[0], rest[1], int(tier), rest[2])] = tuple(map(int, rest[3:]))
    by_arch = {arch: kernels_of(path) for arch, path in ptxas.items()}
    names = set().union(*by_arch.values())
    for arch, kernels in by_arch.items():
        if set(kernels) != names:
            sys.exit(f"{arch} has other kernels: {sorted(names - set(kernels))[:3]} are missing")
    plain, full = [], []
    for name in sorted(names, key=lambda name: (name[3], name[0] != "forward", name[1], name[2])):
        kernel, usual, tier, problem = name
        scoring, selection, balancer = split_arguments(problem)
        if name not in launches:
            sys.exit(f"kernel_budgets.cpp does not print launches of {problem}, {kernel}")
        experts, width = tiers[tier]
        threads, dynamic, most, *launched = launches[name]
        router = f"{scoring}, {selection}, {balancer}".replace(",", ", ").replace(",  ", ", ")
        static = max(by_arch[arch][name][1] for arch in ptxas)
        calls = "usual" if usual == "true" else "any"
        start = f"| {router} | {kernel} | {calls} | {experts} | {width} | {threads} | {static} + {dynamic} |"
        registers, resident = [], []
        for arch, asked in zip(LIMITS, launched):
            used = by_arch[arch][name][0]
            blocks = blocks_per_sm(arch, threads, used, by_arch[arch][name][1] + dynamic)
            if used > most:
                sys.exit(f"{router}, {kernel} of {calls} calls, {experts} experts has {used} registers on {arch}, and may have {most}")
            if asked > blocks:
                sys.exit(f"tuning.hpp asks for {asked} blocks of {router}, {kernel} of {calls} calls, {experts} experts on {arch}, and {blocks} fit")
            registers.append(str(used))
            resident.append(f"{asked} of {blocks} ({occupancy(arch, threads, asked):.0%})")
        plain.append(start)
        full.append(f"{start} {' / '.join(registers)} of {most} | {' / '.join(resident)} |")
    return plain, full


def registers_of(row):
    return [int(used) for used in row.split("|")[8].split(" of ")[0].split("/")]


def is_far(old, new):
    return len(old) != len(new) or any(abs(a - b) > 8 for a, b in zip(old, new))


def table(version, architectures, full):
    archs = " / ".join(architectures)
    return [
        BEGIN,
        f"{version}, {archs}. Threads are those of the largest block; shared memory is static + dynamic bytes of it; occupancy is theoretical. Usual calls: include/moe_balance/engine/usual_call.hpp.",
        "",
        f"| router | kernel | calls | experts up to | lanes a token | threads | shared memory | registers {archs} | blocks an SM of those that fit (occupancy) {archs} |",
        "|---|---|---|---|---|---|---|---|---|",
        *full,
        END,
    ]


def main():
    mode, page, budgets, nvcc, *outputs = sys.argv[1:]
    ptxas = dict(output.split("=", 1) for output in outputs)
    release = re.search(r"V[\d.]+", subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout)
    version = f"nvcc {release.group(0)}"
    plain, full = rows(budgets, ptxas)
    fresh = table(version, list(ptxas), full)
    lines = open(page, encoding="utf-8").read().splitlines()
    if BEGIN not in lines or END not in lines:
        sys.exit(f"{page} has no lines '{BEGIN}' and '{END}'")
    begin, end = lines.index(BEGIN), lines.index(END)
    written = lines[begin : end + 1]
    if mode == "write":
        open(page, "w", encoding="utf-8").write("\n".join(lines[:begin] + fresh + lines[end + 1 :]) + "\n")
        print(f"{len(full)} kernels written to {page}")
        return
    same_compiler = len(written) > 1 and written[1].startswith(version + ",")
    old_rows = [line for line in written if line.startswith("| ") and "kernel" not in line]
    differing = []
    for start, line in zip(plain, full):
        old = next((old for old in old_rows if old.startswith(start)), None)
        if old is None or (same_compiler and is_far(registers_of(old), registers_of(line))):
            differing.append(f"now {line}\npage {old}")
    if differing or len(old_rows) != len(full):
        sys.exit(f"the kernel table of {page} is out of date (build the target kernel_table). For example:\n" + "\n".join(differing[:5]))
    print(f"{len(full)} kernels as in {page}" + ("" if same_compiler else f"; registers not compared: {version} is not the page's"))


if __name__ == "__main__":
    main()
