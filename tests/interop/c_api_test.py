#!/usr/bin/env python3
"""c_api_test.py LIBRARY GOLDEN VERSION: the C interface through ctypes, against vectors recorded from the models' reference code."""

import ctypes
import json
import math
import pathlib
import sys


class Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("rows", ctypes.c_int64), ("columns", ctypes.c_int64),
                ("stride", ctypes.c_int64)]


class ForwardArgs(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("logits", Matrix), ("experts", ctypes.POINTER(ctypes.c_int32)), ("weights", Matrix),
                ("counts", ctypes.POINTER(ctypes.c_int64)), ("bias", ctypes.POINTER(ctypes.c_float)),
                ("load", ctypes.POINTER(ctypes.c_int64)), ("saved", ctypes.c_void_p), ("saved_bytes", ctypes.c_size_t),
                ("active", ctypes.POINTER(ctypes.c_uint8)), ("sequences", ctypes.c_int64), ("status", ctypes.c_void_p),
                ("accumulate", ctypes.c_int32), ("threads", ctypes.c_int32)]


def close(got, want):
    return len(got) == len(want) and all(math.isclose(a, b, rel_tol=2e-5, abs_tol=2e-6) for a, b in zip(got, want))


def route(library, preset, logits, experts, bias=None):
    """ids and weights of a preset, as flat lists."""
    router = ctypes.c_void_p()
    assert library.moeb_router_create(preset.encode(), ctypes.byref(router)) == 0, library.moeb_last_error()
    k = library.moeb_top_k(router)
    tokens = len(logits) // experts
    x = (ctypes.c_float * len(logits))(*logits)
    ids = (ctypes.c_int32 * (tokens * k))()
    weights = (ctypes.c_float * (tokens * k))()
    counts = (ctypes.c_int64 * experts)()
    args = ForwardArgs(size=ctypes.sizeof(ForwardArgs), logits=Matrix(ctypes.addressof(x), 0, tokens, experts, experts), experts=ids,
                       weights=Matrix(ctypes.addressof(weights), 0, tokens, k, k), counts=counts, threads=1)
    if bias is not None:
        args.bias = (ctypes.c_float * experts)(*bias)
    assert library.moeb_route(router, ctypes.byref(args)) == 0, library.moeb_last_error()
    library.moeb_router_destroy(router)
    assert [list(ids).count(e) for e in range(experts)] == list(counts)
    return list(ids), list(weights)


def main():
    library = ctypes.CDLL(sys.argv[1])
    library.moeb_version.restype = library.moeb_last_error.restype = ctypes.c_char_p
    library.moeb_router_destroy.restype = None
    library.moeb_top_k.argtypes = library.moeb_router_destroy.argtypes = [ctypes.c_void_p]
    library.moeb_route.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    assert library.moeb_version().decode() == sys.argv[3]

    cases = {"deepseek_v3": "deepseek_v3_t9_e256_k8_g8", "deepseek_v2": "deepseek_v2_t9_e160_k6_g8", "mixtral": "mixtral_t48_e16_k2"}
    for preset, name in cases.items():
        case = json.loads(pathlib.Path(sys.argv[2], name + ".json").read_text(encoding="utf-8"))
        ids, weights = route(library, preset, case["inputs"]["logits"], case["config"]["experts"], case["inputs"].get("expert_bias"))
        assert ids == case["expected"]["experts"], name
        assert close(weights, case["expected"]["weights"]), name

    # The others, on one row of distinct logits.
    row = [math.sin(37.0 * i) for i in range(64)]
    order = sorted(range(64), key=lambda e: -row[e])
    softmax = [math.exp(x) / sum(map(math.exp, row)) for x in row]
    share = lambda k: [softmax[e] / sum(softmax[i] for i in order[:k]) for e in order[:k]]
    expected = {"qwen3": share(8), "gpt_oss": share(4), "olmoe": [softmax[e] for e in order[:8]], "switch": [softmax[order[0]]],
                "llama4": [1 / (1 + math.exp(-row[order[0]]))]}
    for preset, want in expected.items():
        ids, weights = route(library, preset, row, 64)
        assert ids == order[:len(want)], preset
        assert close(weights, want), preset
    print(f"{len(cases)} recorded cases and {len(expected)} presets agree through ctypes")


main()
