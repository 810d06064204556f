#!/usr/bin/env python3
"""torch_stand_ins.py SITE_PACKAGES: lets PyTorch's wheel be imported without the CUDA libraries that it links (2 GB of packages).

Each shared object that the loader does not find gets a stand-in of that name beside PyTorch's own; the first of them also defines whatever
symbols are missing. Only for work on the CPU, which calls none of them: whoever does stops at an illegal instruction.
"""

import pathlib
import re
import subprocess
import sys
import tempfile


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def missing_objects(objects):
    """Names that the loader does not find. The driver's is opened when a GPU is used, not before."""
    found = "".join(subprocess.run(["ldd", str(path)], capture_output=True, text=True).stdout for path in objects)
    return sorted(set(re.findall(r"(\S+) => not found", found)) - {"libcuda.so.1"})


def symbols(path, flag):
    """Names without versions; what may be absent (weak), or comes from Python or the loader, is left out."""
    lines = [line.split() for line in output("nm", "-D", flag, "--format=posix", str(path)).splitlines()]
    return {line[0].split("@")[0] for line in lines if line[1] not in "wv" and not re.match("_?Py|__", line[0])}


def main():
    libraries = pathlib.Path(sys.argv[1], "torch", "lib")
    objects = sorted(libraries.glob("*.so*"))
    missing = missing_objects(objects)
    if not missing:
        print("PyTorch finds all that it links")
        return
    loaded = {line.split()[2] for path in objects for line in output("ldd", str(path)).splitlines() if "=> /" in line}
    defined = set().union(*(symbols(path, "--defined-only") for path in loaded | set(map(str, objects))))
    wanted = set().union(*(symbols(path, "--undefined-only") for path in objects)) - defined
    with tempfile.NamedTemporaryFile("w", suffix=".s") as source:
        for name in sorted(wanted):
            source.write(f".weak {name}\n{name}:\n")
        source.write(".zero 4096\n.section .note.GNU-stack,\"\",@progbits\n")
        source.flush()
        for name in missing:
            content = [source.name] if name == missing[0] else ["-xc", "/dev/null"]
            output("cc", "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(libraries / name), *content)
    print(f"Stand-ins for {' '.join(missing)}, with {len(wanted)} symbols")


main()
