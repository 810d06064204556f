#!/usr/bin/env python3
"""links.py ROOT: every relative link and picture in ROOT's Markdown files leads to a file, and every #anchor to a heading of it. Names each link that
does not, as file:line."""

import pathlib
import re
import sys

LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
FENCE = re.compile(r"^\s*(```|~~~)")
SKIPPED = {".git", "build", "planted", ".gpu_deps", ".cache"}


def documents(root):
    for path in sorted(root.rglob("*.md")):
        folders = path.relative_to(root).parts[:-1]
        if not any(folder in SKIPPED or folder.startswith("build-") for folder in folders):
            yield path


def prose(path):
    """(number, line) outside of code blocks, inline code blanked."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, re.sub(r"`[^`]*`", "``", line)


def anchors(path):
    """As code hosts make them of headings: lower case, punctuation dropped, spaces to hyphens, -1 and so on for repeated ones."""
    found = set()
    inside = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            inside = not inside
        heading = None if inside else re.match(r"#+\s+(.*)", line)
        if heading:
            anchor = re.sub(r"[^\w\- ]", "", heading[1].strip().lower()).replace(" ", "-")
            count = 0
            while (name := anchor if count == 0 else f"{anchor}-{count}") in found:
                count += 1
            found.add(name)
    return found


def problem(document, target):
    """What is wrong with a link, or None."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None if target.startswith("https://") else f"{target} is not https"
    path, _, anchor = target.partition("#")
    file = (document.parent / path) if path else document
    if not file.exists():
        return f"{target} does not exist"
    if anchor and file.suffix == ".md" and anchor not in anchors(file):
        return f"{target}: {file.name} has no heading #{anchor}"
    return None


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    links = broken = 0
    for document in documents(root):
        for number, line in prose(document):
            for target in LINK.findall(line):
                links += 1
                what = problem(document, target)
                if what:
                    broken += 1
                    print(f"{document.relative_to(root)}:{number}: {what}")
    if links == 0:
        sys.exit(f"no link in any Markdown file under {root}")
    print(f"{links} links, {broken} broken")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
