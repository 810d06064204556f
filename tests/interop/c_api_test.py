#!/usr/bin/env python3
"""c_api_test.py LIBRARY GOLDEN VERSION: the C interface through ctypes. Every preset reproduces vectors recorded from the models' own code: ids, weights
and their gradient, and the loss with its gradient at the preset's coefficient."""

import ctypes
import json
import pathlib
import sys

# Preset: its recorded cases, and what each recorded loss, of coefficient 1, is multiplied by.
CASES = {
    "deepseek_v3": (("deepseek_v3_t9_e256_k8_g8", "deepseek_v3_gradient_t6_e256_k8_g8"), {}),
    "deepseek_v2": (("deepseek_v2_t9_e160_k6_g8", "deepseek_v2_loss_t10_e160_k6_g8"), {"loss": 0.003}),
    "deepseek_v4": (("deepseek_v4_t6_e256_k6",), {}),
    "minimax_m2": (("minimax_m2_t6_e256_k8",), {}),
    "kimi_k2": (("kimi_k2_t5_e384_k8",), {}),
    "glm_4_5": (("glm_4_5_t8_e160_k8",), {}),
    "longcat_flash": (("longcat_flash_t4_e768_k12",), {}),
    "mixtral": (("mixtral_t48_e16_k2", "mixtral_t20_e8_k2"), {"loss": 0.02}),
    "qwen3": (("qwen3_t9_e128_k8",), {"loss": 0.001 / 8}),
    "gpt_oss": (("gpt_oss_t12_e32_k4", "gpt_oss_t8_e128_k4"), {}),
    "olmoe": (("olmoe_t12_e64_k8",), {"loss": 0.01, "z_loss": 0.001 * 8}),
    "switch": (("switch_t20_e8_k1", "switch_t24_e16_k1", "switch_t9_e128_k1"), {"loss": 0.01}),
    "llama4": (("llama4_t20_e8_k1", "llama4_t24_e16_k1", "llama4_t9_e128_k1"), {}),
}


class Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("rows", ctypes.c_int64), ("columns", ctypes.c_int64),
                ("stride", ctypes.c_int64)]


class ForwardArgs(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("logits", Matrix), ("experts", ctypes.POINTER(ctypes.c_int32)), ("weights", Matrix),
                ("counts", ctypes.POINTER(ctypes.c_int64)), ("bias", ctypes.POINTER(ctypes.c_float)),
                ("load", ctypes.POINTER(ctypes.c_int64)), ("saved", ctypes.c_void_p), ("saved_bytes", ctypes.c_size_t),
                ("active", ctypes.POINTER(ctypes.c_uint8)), ("sequences", ctypes.c_int64), ("status", ctypes.c_void_p),
                ("accumulate", ctypes.c_int32), ("threads", ctypes.c_int32), ("token_major", ctypes.c_int64),
                ("sequence_offsets", ctypes.POINTER(ctypes.c_int64))]


class BackwardArgs(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("logits", Matrix), ("experts", ctypes.POINTER(ctypes.c_int32)), ("grad_weights", Matrix),
                ("grad_logits", Matrix), ("saved", ctypes.c_void_p), ("saved_bytes", ctypes.c_size_t),
                ("active", ctypes.POINTER(ctypes.c_uint8)), ("sequences", ctypes.c_int64), ("loss_scale", ctypes.c_float),
                ("threads", ctypes.c_int32), ("token_major", ctypes.c_int64), ("sequence_offsets", ctypes.POINTER(ctypes.c_int64))]


def matrix(values, columns):
    return Matrix(ctypes.addressof(values), 0, len(values) // columns, columns, columns)


def close(got, want, absolute, relative):
    return len(got) == len(want) and all(abs(a - b) <= absolute + relative * abs(b) for a, b in zip(got, want))


class Case:
    """A recorded case. Its sequences are interleaved in the files; `layout` says how they lie here: one behind the other, by their number (sequence_major) or
    their bounds (offsets), or as in the files (token_major)."""

    def __init__(self, folder, name, layout):
        self.name = f"{name}, {layout}"
        self.token_major = layout == "token_major"
        case = json.loads(pathlib.Path(folder, name + ".json").read_text(encoding="utf-8"))
        self.inputs, self.expected = case["inputs"], case["expected"]
        self.experts, self.tokens = case["config"]["experts"], case["config"]["tokens"]
        self.sequences = case["config"].get("sequences", 1)
        bounds = [s * self.tokens // self.sequences for s in range(self.sequences + 1)]
        self.offsets = (ctypes.c_int64 * len(bounds))(*bounds) if layout == "offsets" else None

    def rows(self, values):
        if self.token_major:
            return values
        width = len(values) // self.tokens
        order = [t for s in range(self.sequences) for t in range(s, self.tokens, self.sequences)]
        return [value for t in order for value in values[t * width:(t + 1) * width]]

    def loss(self, factors, suffix=""):
        """The sum of factor * what was recorded of a loss."""
        parts = []
        for key, factor in factors.items():
            value = self.expected[key + suffix]
            parts.append([factor * x for x in (value if isinstance(value, list) else [value])])
        return [sum(values) for values in zip(*parts)]


class Router:
    def __init__(self, library, preset):
        self.library, self.preset, self.handle = library, preset, ctypes.c_void_p()
        self.check(library.moeb_router_create(preset.encode(), ctypes.byref(self.handle)))
        self.k = library.moeb_top_k(self.handle)

    def check(self, result):
        assert result == 0, (self.preset, self.library.moeb_last_error())

    def run(self, case):
        """Calls route, forward and, where there is a loss, loss; keeps what backward needs."""
        self.logits = (ctypes.c_float * (case.tokens * case.experts))(*case.rows(case.inputs["logits"]))
        self.ids = (ctypes.c_int32 * (case.tokens * self.k))()
        self.weights = (ctypes.c_float * len(self.ids))()
        self.counts, self.load = (ctypes.c_int64 * case.experts)(), (ctypes.c_int64 * case.experts)()
        bias = (ctypes.c_float * case.experts)(*(case.inputs.get("expert_bias") or [0.0] * case.experts))
        self.saved = (ctypes.c_int64 * (self.library.moeb_saved_bytes(self.handle, case.tokens, case.experts, case.sequences) // 8 + 1))()
        args = ForwardArgs(size=ctypes.sizeof(ForwardArgs), logits=matrix(self.logits, case.experts), experts=self.ids,
                           weights=matrix(self.weights, self.k), counts=self.counts, bias=bias, load=self.load, sequences=case.sequences,
                           saved=ctypes.addressof(self.saved), saved_bytes=8 * (len(self.saved) - 1), accumulate=1, threads=1,
                           token_major=case.token_major, sequence_offsets=case.offsets)
        self.check(self.library.moeb_route(self.handle, ctypes.byref(args)))
        routed = list(self.ids), list(self.weights), list(self.counts)
        self.check(self.library.moeb_forward(self.handle, ctypes.byref(args)))
        assert routed == (list(self.ids), list(self.weights), list(self.counts)), "route and forward differ"
        value = ctypes.c_float()
        if self.library.moeb_has_loss(self.handle):
            self.check(self.library.moeb_loss(self.handle, self.saved, 8 * (len(self.saved) - 1), case.experts, case.sequences, ctypes.byref(value)))
        return value.value

    def gradient(self, case, grad_weights, loss_scale):
        incoming = (ctypes.c_float * len(self.ids))(*grad_weights)
        result = (ctypes.c_float * len(self.logits))()
        args = BackwardArgs(size=ctypes.sizeof(BackwardArgs), logits=matrix(self.logits, case.experts), experts=self.ids,
                            grad_weights=matrix(incoming, self.k), grad_logits=matrix(result, case.experts),
                            saved=ctypes.addressof(self.saved), saved_bytes=8 * (len(self.saved) - 1), sequences=case.sequences,
                            loss_scale=loss_scale, threads=1, token_major=case.token_major, sequence_offsets=case.offsets)
        self.check(self.library.moeb_backward(self.handle, ctypes.byref(args)))
        return list(result)


def check(router, case, factors):
    expected = case.expected
    loss = router.run(case)
    assert list(router.ids) == case.rows(expected["experts"]), case.name
    assert close(list(router.weights), case.rows(expected["weights"]), 2e-6, 2e-5), case.name
    assert list(router.counts) == expected["counts"], case.name
    if "grad_logits" in expected:
        gradient = router.gradient(case, case.rows(case.inputs["grad_weights"]), 0.0)
        assert close(gradient, case.rows(expected["grad_logits"]), 5e-6, 5e-5), case.name
    if factors and "loss" in expected:
        absolute = max(factors.values())
        assert close([loss], case.loss(factors), 2e-6 * absolute, 2e-5), case.name
        gradient = router.gradient(case, [0.0] * len(router.ids), 1.0)
        assert close(gradient, case.rows(case.loss(factors, "_grad_logits")), 5e-6 * absolute, 5e-5), case.name


def main():
    library = ctypes.CDLL(sys.argv[1])
    library.moeb_version.restype = library.moeb_last_error.restype = ctypes.c_char_p
    library.moeb_router_destroy.restype, library.moeb_saved_bytes.restype = None, ctypes.c_size_t
    library.moeb_top_k.argtypes = library.moeb_router_destroy.argtypes = library.moeb_has_loss.argtypes = [ctypes.c_void_p]
    library.moeb_saved_bytes.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_int64]
    library.moeb_route.argtypes = library.moeb_forward.argtypes = library.moeb_backward.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.moeb_loss.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p]
    assert library.moeb_version().decode() == sys.argv[3]

    losses = many = 0
    for preset, (names, factors) in CASES.items():
        router = Router(library, preset)
        for name in names:
            for layout in ("sequence_major", "token_major", "offsets"):
                case = Case(sys.argv[2], name, layout)
                check(router, case, factors)
            losses += "loss" in case.expected
            many += case.sequences > 1
        library.moeb_router_destroy(router.handle)
    print(f"{len(CASES)} presets reproduce {sum(len(names) for names, _ in CASES.values())} recorded cases, {losses} with a loss, through ctypes")
    assert many > 0, "no case has sequences"


main()
