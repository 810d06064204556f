#!/usr/bin/env python3
"""quotes.py FOLDER FILE.md...: every ```c++ and ```python block is quoted from a file of FOLDER, where it is compiled and run."""

import pathlib
import re
import sys


def main():
    sources = [path.read_text(encoding="utf-8") for path in pathlib.Path(sys.argv[1]).iterdir() if path.is_file()]
    quotes, strays = 0, []
    for document in sys.argv[2:]:
        text = pathlib.Path(document).read_text(encoding="utf-8")
        for block in re.finditer(r"^```(?:c\+\+|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            quotes += 1
            if not any("\n" + block[1] in "\n" + source for source in sources):
                strays.append(f"{document}:{text[:block.start()].count(chr(10)) + 2}: not in {sys.argv[1]}")
    if strays or not quotes:
        sys.exit("\n".join(strays) or "no block to check")
    print(f"{quotes} blocks are quotes")


main()
