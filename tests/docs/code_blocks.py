#!/usr/bin/env python3
"""code_blocks.py ROOT BUILD CXX CMAKE PREFIX [NVCC]: no block of README.md and docs/*.md goes unchecked.

    cpp            compiled by tests/snippets
    cpp FILE       lines of FILE, which is compiled elsewhere
    cmake          configured: once with add_subdirectory, once with find_package of the tree installed at PREFIX
    sh             lines `bash FILE`: the file is there; otherwise run in an empty folder beside `include`, without optimisation
    c++, python    quoted from a file of examples/ or tests/, where it is compiled and run; or the page has a test of its own there, which names it
    text FILE      what a compiler says of FILE, as the first line of the first error
    text           output, of what stands before it

A block without one of these words is an error."""

import pathlib
import re
import shutil
import subprocess
import sys

FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*(.*?)\s*$")


class Block:
    def __init__(self, document, line, words):
        self.where, self.words, self.lines = f"{document.name}:{line}", words, []

    @property
    def text(self):
        return "\n".join(self.lines) + "\n"


def blocks_of(document):
    block, found = None, []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if block is None and fence:
            block = Block(document, number, fence[3].split())
        elif fence:
            found.append(block)
            block = None
        elif block is not None:
            block.lines.append(line)
    if block is not None:
        sys.exit(f"{block.where}: this block does not end")
    return found


def run(command, where, directory):
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    return [] if result.returncode == 0 else [f"{where}: {' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}"]


class Checks:
    def __init__(self, root, build, cxx, cmake, prefix, nvcc=None):
        self.root, self.build, self.cxx, self.cmake, self.prefix, self.nvcc = root, build, cxx, cmake, prefix, nvcc

    def cpp(self, block):
        if len(block.words) == 1:
            return []
        lines = (self.root / block.words[1]).read_text(encoding="utf-8").splitlines()
        return [f"{block.where}: {block.words[1]} has no line '{line}'" for line in block.lines if line not in lines]

    def quote(self, block):
        page = block.where.split(":")[0]
        for folder in ("examples", "tests"):
            for path in sorted((self.root / folder).rglob("*")):
                if path.is_file() and path.suffix in (".cpp", ".cu", ".hpp", ".py", ".sh", ".cmake", ".txt") and "docs" not in path.parts[-2:]:
                    text = path.read_text(encoding="utf-8", errors="replace")
                    if "\n" + block.text in "\n" + text or (folder == "tests" and f"docs/{page}" in text):
                        return []
        return [f"{block.where}: quoted from no file of examples/ or tests/, and no test names docs/{page}"]

    def text(self, block):
        if len(block.words) == 1:
            return []
        command = [self.cxx, "-std=c++20", "-fsyntax-only", f"-I{self.root}/include", str(self.root / block.words[1])]
        output = subprocess.run(command, capture_output=True, text=True).stderr
        first = next((line for line in output.splitlines() if "error:" in line), "")
        said = block.text.strip()
        return [] if said in first else [f"{block.where}: the first error of {block.words[1]} is '{first}'"]

    def sh(self, block):
        commands = [re.sub(r"\s+#.*", "", line) for line in block.lines if line]
        scripts = [re.fullmatch(r"bash ([\w./-]+)( .*)?", command) for command in commands]
        if all(scripts):
            return [f"{block.where}: there is no {script[1]}" for script in scripts if not (self.root / script[1]).is_file()]
        folder = self.build / f"sh_{re.sub('[^a-z0-9]', '_', block.where)}"
        folder.mkdir(parents=True)
        (folder / "include").symlink_to(self.root / "include")
        script = "\n".join(commands).replace("-O2", "-O0").replace("c++ ", f"{self.cxx} ")
        return run(["bash", "-euc", script], block.where, folder)

    def cmake_(self, block):
        """Alternatives stand in one block, and targets of the reader's are called app and gpu_app."""
        errors = []
        for way in ("add_subdirectory", "find_package"):
            folder = self.build / f"cmake_{re.sub('[^a-z0-9]', '_', block.where)}_{way}"
            (folder / "project").mkdir(parents=True)
            (folder / "project" / "moe_balance").symlink_to(self.root)
            other = {"add_subdirectory": "find_package", "find_package": "add_subdirectory"}[way]
            left_out = [other] + ([] if self.nvcc else ["gpu_app"])
            lines = [line for line in block.lines if not any(word in line for word in left_out)]
            if not any(way in line for line in lines):
                continue
            (folder / "project" / "main.cpp").write_text("int main() {}\n", encoding="utf-8")
            head = f"cmake_minimum_required(VERSION 3.25)\nproject(reader LANGUAGES CXX {'CUDA' if self.nvcc else ''})\n"
            head += "add_executable(app main.cpp)\nadd_executable(gpu_app main.cpp)\n"
            (folder / "project" / "CMakeLists.txt").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
            command = [self.cmake, "-S", folder / "project", "-B", folder / "build", f"-DCMAKE_CXX_COMPILER={self.cxx}", f"-DCMAKE_PREFIX_PATH={self.prefix}"]
            if self.nvcc:
                command += [f"-DCMAKE_CUDA_COMPILER={self.nvcc}", "-DCMAKE_CUDA_ARCHITECTURES=90"]
            errors += run(command, block.where, folder)
        return errors

    def of(self, block):
        languages = {"cpp": self.cpp, "c++": self.quote, "python": self.quote, "text": self.text, "sh": self.sh, "cmake": self.cmake_}
        if not block.words or block.words[0] not in languages or len(block.words) > 2:
            return [f"{block.where}: '{' '.join(block.words)}' is none of {', '.join(languages)}, so that nothing checks this block"]
        return languages[block.words[0]](block)


def main():
    root, build = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True)
    checks = Checks(root, build, *sys.argv[3:])
    documents = [path for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))] if path.is_file()]
    blocks = [block for document in documents for block in blocks_of(document)]
    errors = [error for block in blocks for error in checks.of(block)]
    print("\n".join(errors))
    print(f"{len(blocks)} blocks in {len(documents)} documents, {len(errors)} errors")
    sys.exit(1 if errors or not blocks else 0)


main()
