"""compare_revisions.py OLD.so NEW.so [options]: times two builds of compare_library.cpp in turns on the CPU, one call after the other of either, and
checks that both give the same bits. compare_revisions.sh builds them. Nanoseconds a token: minimum and median; the ratio is NEW's minimum by OLD's."""
import argparse
import array
import ctypes
import datetime
import random
import statistics
import struct
import sys
import time

import compare_call

ROUTERS = ("softmax", "softmax_over_selected", "sigmoid_bias", "sigmoid_groups")


def elements(numbers, dtype):
    """Numbers as elements of a type; bfloat16's last bits are cut off."""
    if dtype == "float32":
        return array.array("f", numbers)
    bits = (struct.unpack("<H", struct.pack("<e", number))[0] if dtype == "float16" else struct.unpack("<I", struct.pack("<f", number))[0] >> 16
            for number in numbers)
    return array.array("H", bits)


class Problem:
    """Inputs and outputs of one call; all that a call writes is kept, so that two libraries' results can be compared."""

    def __init__(self, library, tokens, experts, k, dtype, threads):
        normal = random.Random(1).gauss
        self.logits = elements((normal(0, 1) for _ in range(tokens * experts)), dtype)
        self.bias = array.array("f", (normal(0, 0.1) for _ in range(experts)))
        self.grad_weights = array.array("f", (normal(0, 1) for _ in range(tokens * k)))
        self.outputs = {"ids": array.array("i", bytes(4 * tokens * k)), "weights": array.array("f", bytes(4 * tokens * k)),
                        "counts": array.array("q", bytes(8 * experts)), "load": array.array("q", bytes(8 * experts)),
                        "saved": array.array("b", bytes(library.saved_bytes(experts))),
                        "grad_logits": array.array(self.logits.typecode, bytes(self.logits.itemsize * tokens * experts))}
        self.type = compare_call.DATA_TYPES.index(dtype)
        self.shape, self.threads = (tokens, experts), threads

    def call(self, work):
        at = {name: values.buffer_info()[0] for name, values in self.outputs.items()}
        bias = self.bias.buffer_info()[0] if work.startswith("sigmoid") else None
        return compare_call.Call(*self.shape, self.logits.buffer_info()[0], at["ids"], at["weights"], at["counts"], bias, at["load"], at["saved"],
                                 len(self.outputs["saved"]), self.grad_weights.buffer_info()[0], at["grad_logits"], self.threads, self.type)

    def results(self, library, work):
        """What the work's calls write, from a clean start; backward after its forward."""
        for values in self.outputs.values():
            ctypes.memset(values.buffer_info()[0], 0, len(values) * values.itemsize)
        for step in dict.fromkeys((work.replace("backward", "forward"), work)):
            if getattr(library, step)(ctypes.byref(self.call(step))) != 0:
                sys.exit(f"compare_revisions: {step} failed")
        return [values.tobytes() for values in self.outputs.values()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=8, help="compare_revisions.sh compiles for it")
    parser.add_argument("--dtype", choices=compare_call.DATA_TYPES, default="float32", help="of the logits")
    parser.add_argument("--router", choices=ROUTERS, action="append", help="may be given several times; else softmax and sigmoid_groups")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    libraries = [compare_call.load(path) for path in options.libraries]
    for path, library in zip(options.libraries, libraries):
        compiled_for = getattr(library, "top_k", lambda: 8)()  # revisions before the option have 8
        if compiled_for != options.top_k:
            parser.error(f"{path} is compiled for --top-k {compiled_for}")
    problem = Problem(libraries[0], options.tokens, options.experts, options.top_k, options.dtype, options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter  # a thread's own time does not grow while others have the core
    print(f"compare_revisions.py {' '.join(sys.argv[3:])}: {compare_call.cpu_name()}, {datetime.date.today()}")
    same = True
    routers = options.router or ("softmax", "sigmoid_groups")
    for work in (f"{router}_{step}" for router in routers for step in ("forward", "backward")):
        old, new = (problem.results(library, work) for library in libraries)
        same = same and old == new
        call = ctypes.byref(problem.call(work))
        times = ([], [])
        for _ in range(options.repeats):
            for library, spent in zip(libraries, times):
                start = clock()
                getattr(library, work)(call)
                spent.append(1e9 * (clock() - start) / options.tokens)
        (old_least, old_median), (new_least, new_median) = ((min(spent), statistics.median(spent)) for spent in times)
        print(f"{work:<30} old {old_least:7.1f} (median {old_median:.1f}), new {new_least:7.1f} ({new_median:.1f}) ns a token, "
              f"{new_least / old_least:.2f}{'' if old == new else '  DIFFERENT BITS'}", flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
