"""How compare_torch.py and compare_torch_dispatch.py time two sides on a CPU."""
import os
import statistics
import time

import torch


clock = time.perf_counter


class Cpu:
    """Where the library's calls run: on so many threads."""
    device = "cpu"

    def __init__(self, threads):
        self.threads = threads

    def place(self):
        return self.threads

    def synchronize(self):
        pass


def use_threads(threads):
    """As many on PyTorch's side as on ours, 0 for all cores: PyTorch's own choice may be fewer. One thread is timed by its CPU time, which does not
    grow while other programs have the core."""
    global clock
    clock = time.thread_time if threads == 1 else time.perf_counter
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def milliseconds(f):
    start = clock()
    f()
    return 1e3 * (clock() - start)


def settled(f):
    """The time of f in a steady state: PyTorch's threads spin for a while after their work, so they are left to settle; sleeping cores
    wake slowly, so one call before the timed one wakes them. Both sides are treated alike."""
    time.sleep(0.02)
    f()
    return milliseconds(f)


def paired(ours, theirs, repeats):
    times = ([], [])
    for _ in range(3):
        ours(), theirs()
    for _ in range(repeats):
        times[0].append(settled(ours))
        times[1].append(settled(theirs))
    return times


def report(name, times, results):
    ours, theirs = (statistics.median(t) for t in times)
    print(f"{name:<72} PyTorch {theirs:8.2f} ms, moe_balance {ours:7.2f} ms ({min(times[0]):.2f} to {max(times[0]):.2f}), "
          f"{theirs / ours:.1f}x", flush=True)
    results.append({"case": name, "torch_ms": sorted(times[1]), "moe_balance_ms": sorted(times[0]), "ratio_of_medians": theirs / ours})
