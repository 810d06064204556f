"""The structs of compare_library.hpp's and compare_dispatch.hpp's functions, and what all who time them need."""
import ctypes

DATA_TYPES = ("float32", "bfloat16", "float16")  # as in moe_balance::DataType


class Call(ctypes.Structure):
    _fields_ = [
        ("tokens", ctypes.c_int64), ("experts", ctypes.c_int64), ("logits", ctypes.c_void_p), ("ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p), ("counts", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("load", ctypes.c_void_p),
        ("saved", ctypes.c_void_p), ("saved_bytes", ctypes.c_int64), ("grad_weights", ctypes.c_void_p),
        ("grad_logits", ctypes.c_void_p), ("place", ctypes.c_int64), ("type", ctypes.c_int64),
    ]


class DispatchCall(ctypes.Structure):
    _fields_ = [("routing", Call)] + [(name, ctypes.c_int64) for name in ("k", "hidden", "type")] + [
        (name, ctypes.c_void_p) for name in ("ids", "weights", "states", "offsets", "row_of_slot", "slot_of_row", "permuted", "combined",
                                             "grad_permuted", "grad_weights", "workspace")] + [("workspace_bytes", ctypes.c_int64)]


def load(path):
    """The library, its functions' results declared."""
    library = ctypes.CDLL(path)
    library.saved_bytes.restype = ctypes.c_int64
    library.saved_bytes.argtypes = [ctypes.c_int64]
    return library


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
