#!/usr/bin/env python3
"""Writes the library as a single header, for projects that copy one file.

    python3 cmake/amalgamate.py OUTPUT [HEADER...]

HEADERs are moe_balance.cuh, for the CUDA engine, too, and what is outside of moe_balance.hpp, which is always there: sync/thread.hpp, say. Every header stands
once, in the order in which a compiler would read it; the same sources give the same bytes, and OUTPUT is left alone where it has them already.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OWN = re.compile(r"^\s*#\s*include\s*<(moe_balance/[^>]+)>\s*$")
SYSTEM = re.compile(r"^#\s*include\s*<([^>]+)>\s*$")
NOTICE = """// moe_balance {version}, all of {headers} in one file, made by cmake/amalgamate.py. Do not edit.
// Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0
#pragma once
#if defined(MOEB_SINGLE_FILE)
#error "moe_balance: two single files in one translation unit; allowed: one (moe_balance.cuh has all of moe_balance.hpp)"
#endif
#define MOEB_SINGLE_FILE
"""


class Amalgamation:
    def __init__(self):
        self.seen = set()
        self.lines = []

    def add(self, header):
        """Appends a header, its own includes first where they stand; nothing where it has been appended before."""
        if header in self.seen:
            return
        self.seen.add(header)
        text = (ROOT / "include" / header).read_text(encoding="utf-8")
        self.lines.append(f"\n// ---- {header} ----")
        conditions = 0
        for line in text.splitlines():
            if re.match(r"\s*#\s*if", line):
                conditions += 1
            elif re.match(r"\s*#\s*endif", line):
                conditions -= 1
            own, system = OWN.match(line), SYSTEM.match(line)
            if own and conditions:
                sys.exit(f"{header}: <{own[1]}> is included under a condition, which one file cannot keep")
            if own:
                self.add(own[1])
            elif system and not conditions:
                if system[1] not in self.seen:
                    self.seen.add(system[1])
                    self.lines.append(line)
            elif line.strip() != "#pragma once":
                self.lines.append(line)


def version():
    text = (ROOT / "include/moe_balance/version.hpp").read_text(encoding="utf-8")
    return ".".join(re.findall(r"^#define MOEB_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", text, re.MULTILINE))


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    wanted = sys.argv[2:]
    if not {"moe_balance.hpp", "moe_balance.cuh"} & set(wanted):
        wanted.insert(0, "moe_balance.hpp")
    headers = ["moe_balance/" + header for header in wanted]
    amalgamation = Amalgamation()
    for header in headers:
        amalgamation.add(header)
    text = NOTICE.format(version=version(), headers=", ".join(f"<{header}>" for header in headers)) + "\n".join(amalgamation.lines) + "\n"
    text = re.sub(r"\n{3,}", "\n\n", text)
    output = pathlib.Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.exists() or output.read_text(encoding="utf-8") != text:
        output.write_text(text, encoding="utf-8")
    print(f"{output}: {len(amalgamation.seen)} headers, {text.count(chr(10))} lines")


if __name__ == "__main__":
    main()
