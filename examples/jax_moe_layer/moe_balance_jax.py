"""Calls of moe_balance for JAX, from a shared object that defines MOEB_XLA_HANDLERS(name, router, place). One file, to be copied.

    moe = moe_balance_jax.MoeBalance("libhandlers.so", "name")
    routing = moe.forward(logits, bias=bias, load=load)          # ids, weights, loss, ...
    permutation = moe.permutation(routing.experts, experts)      # which rows belong to which expert
    rows = moe.permute(hidden, permutation)                      # [rows, hidden size], grouped by expert
    hidden = moe.combine(outputs, permutation, routing.weights)  # the weighted sum of the experts' outputs
    bias, load = moe.update(bias, load)                          # once per optimizer step

All of them work under jax.jit, jax.grad and jax.vmap (one call per element). Nothing is changed in place. T = tokens, E = experts, K = experts per token,
R = rows, H = hidden size. Logits and hidden states are float32, bfloat16 or float16; float64 on the CPU.

The library's int64 arrays are int32 [..., 2] here, the low word first, so that they are the same with and without jax_enable_x64: pass them on as they
are. `as_int32` and `from_int32` convert them.
"""

import ctypes
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HANDLERS = ("route", "forward", "backward", "loss", "update", "permutation", "permute", "permute_backward", "combine", "combine_backward")


class Sizes(ctypes.Structure):
    """struct moe_balance::xla::Sizes."""
    _fields_ = [(name, ctypes.c_int64) for name in (
        "top_k", "losses", "has_bias", "needs_load", "reads_global_batch", "has_capacity", "saved_bytes", "workspace_bytes",
        "permutation_rows", "permutation_workspace", "bias_memory", "load_bins")]


class Status(NamedTuple):
    """Counters of one call, int32 []."""
    non_finite_tokens: jax.Array  # tokens with a non-finite logit among their chosen experts: weights and gradient 0
    invalid_experts: jax.Array    # on a GPU: ids outside [-1, E), taken as -1; the CPU raises an error
    invalid_rows: jax.Array
    dropped_slots: jax.Array      # by a capacity


class Routing(NamedTuple):
    """Results of route and forward."""
    experts: jax.Array      # int32 [T, K], best first; -1: none
    weights: jax.Array      # [T, K]; differentiable in the logits
    loss: jax.Array         # float32 []: the balancing loss, differentiable in the logits; 0 from route
    losses: jax.Array       # float32 [number of losses]: its parts, for logs; not differentiable
    counts: jax.Array       # int32 [E]: tokens per expert of this call
    load: jax.Array         # the load with this call's tokens, or as given where none was
    kept_counts: jax.Array  # int32 [E]: tokens per expert after dropping; [0] without a capacity
    status: Status


class Permutation(NamedTuple):
    """Which row of the experts' inputs belongs to which slot (token and choice)."""
    group_sizes: jax.Array  # int32 [E]: rows of each expert, padding included, as jax.lax.ragged_dot wants them
    counts: jax.Array       # int32 [E]: slots of each expert
    offsets: jax.Array      # int32 [E + 1, 2]
    row_of_slot: jax.Array  # int32 [T, K, 2]
    slot_of_row: jax.Array  # int32 [R, 2]
    status: Status


class Options(NamedTuple):
    """What a call of forward is compiled for."""
    weights_dtype: np.dtype
    sequences: int
    token_major: bool
    axis_name: object


def as_int32(words):
    """int32 [...] of int32 [..., 2], for values that fit."""
    return words[..., 0]


def from_int32(values):
    """int32 [..., 2] of int32 [...]."""
    values = jnp.asarray(values, jnp.int32)
    return jnp.stack([values, jnp.where(values < 0, -1, 0).astype(jnp.int32)], axis=-1)


def status_of(words):
    return Status(*as_int32(words))


def shape(dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype)


def words(*sizes):
    """An int64 array of these sizes."""
    return shape(jnp.int32, *sizes, 2)


def left_out(dtype=jnp.float32):
    return jnp.zeros((0,), dtype)


def expect(condition, call, argument, value, allowed):
    if not condition:
        raise ValueError(f"moe_balance: {call}: {argument} is {value}; allowed: {allowed}")


def whole_number(call, argument, value, least, most):
    """Sizes are part of what is compiled: numbers, not traced arrays."""
    expect(isinstance(value, (int, np.integer)) and least <= value <= most, call, argument, value, f"whole numbers from {least} to {most}")


def optional(call, argument, array, size, missing):
    """An operand, or `missing`. Handlers take one without elements as left out, so that no other may have none."""
    if array is None:
        return missing
    array = jnp.asarray(array)
    expect(array.size > 0 or size == 0, call, f"{argument}.size", array.size, size)
    return array


def replayed(call, experts, tokens_of_them, tokens, k):
    """The operands of a selection that replays, or none."""
    return (optional(call, "replay_experts", experts, tokens * k, jnp.zeros((0, 0), jnp.int32)),
            optional(call, "replay_tokens", tokens_of_them, tokens, left_out(jnp.bool_)))


def matrix(call, argument, array):
    """A JAX array of two dimensions."""
    array = jnp.asarray(array)
    expect(array.ndim == 2, call, f"{argument}.ndim", array.ndim, 2)
    return array


class MoeBalance:
    """The handlers NAME_* of a shared object, registered with XLA. `threads` of the CPU serve each call, 0: all that the calling thread may run on."""

    def __init__(self, library, name, platform="cpu", threads=0):
        self._library = ctypes.CDLL(str(library))
        self._name = name
        self._threads = threads
        for handler in HANDLERS:
            symbol = getattr(self._library, f"{name}_{handler}")
            jax.ffi.register_ffi_target(f"{name}_{handler}", jax.ffi.pycapsule(symbol), platform=platform)
        self._sizes = getattr(self._library, f"{name}_sizes")
        self._sizes.restype = None
        self._sizes.argtypes = [ctypes.c_int64] * 4 + [ctypes.POINTER(Sizes)]
        self.top_k = self.sizes(0, 1).top_k

    def sizes(self, tokens, experts, sequences=1, align=1):
        for argument, value in (("tokens", tokens), ("experts", experts), ("sequences", sequences), ("align", align)):
            whole_number("sizes", argument, value, -2**63, 2**63 - 1)  # symbolic shapes (jax.export) are none
        result = Sizes()
        self._sizes(tokens, experts, sequences, align, ctypes.byref(result))
        return result

    def call(self, handler, results, *operands, aliases=None, **attributes):
        """Calls a handler as xla_ffi.hpp documents it. It has no gradient of its own. Under vmap it is called once per element."""
        function = jax.ffi.ffi_call(f"{self._name}_{handler}", results, vmap_method="sequential", input_output_aliases=aliases)
        return function(*operands, threads=np.int64(self._threads), **{key: np.int64(value) for key, value in attributes.items()})

    # ---- state ---------------------------------------------------------------------------------------------------------------

    def new_bias(self, experts, layers=None):
        """float32 [E] or [L, E] of zeros; empty where the router has no bias. Where its rule keeps n values for each bias, [1 + n, E] or [1 + n, L, E]:
        `forward` and `route` read bias[0] or bias[0, l]."""
        sizes = self.sizes(0, experts)
        if not sizes.has_bias:
            return left_out()
        tables = (1 + sizes.bias_memory,) if sizes.bias_memory else ()
        return jnp.zeros(tables + ((experts,) if layers is None else (layers, experts)), jnp.float32)

    def new_load(self, experts, layers=None):
        """int32 [E, 2] or [L, E, 2] of zeros. Where the bias's rule reads margins in n bins, each E is (1 + n) * E: counts [E] and behind them
        histograms [E, n]."""
        row = (1 + self.sizes(0, experts).load_bins) * experts
        return jnp.zeros((row, 2) if layers is None else (layers, row, 2), jnp.int32)

    # ---- routing -------------------------------------------------------------------------------------------------------------

    def route(self, logits, bias=None, active=None, weights_dtype=None, replay_experts=None, replay_tokens=None):
        """Inference: ids and weights. Gradients stop here: use forward to train. replay_experts, replay_tokens: as forward's."""
        logits = matrix("route", "logits", logits)
        (tokens, experts), k = logits.shape, self.top_k
        sizes = self.sizes(tokens, experts)
        results = [shape(jnp.int32, tokens, k), shape(weights_dtype or weights_type(logits), tokens, k), words(experts),
                   words(experts if sizes.has_capacity else 0), words(4), shape(jnp.uint8, sizes.workspace_bytes)]
        bias = optional("route", "bias", bias, experts if sizes.has_bias else 0, left_out())
        active = optional("route", "active", active, tokens, left_out(jnp.bool_))
        replay = replayed("route", replay_experts, replay_tokens, tokens, k)
        ids, weights, counts, kept, status, _ = self.call("route", results, *map(jax.lax.stop_gradient, (logits, bias, active, *replay)))
        return Routing(ids, weights, jnp.zeros((), jnp.float32), jnp.zeros((0,), jnp.float32), as_int32(counts),
                       jnp.zeros((0, 2), jnp.int32), as_int32(kept), status_of(status))

    def forward(self, logits, bias=None, load=None, active=None, weights_dtype=None, sequences=1, token_major=False,
                axis_name=None, replay_experts=None, replay_tokens=None, balanced=None, sequence_offsets=None):
        """Training: weights and loss that can be differentiated in the logits [T, E], and the load with this call's tokens added.

        bias float32 [E] and load int32 [E, 2], where the router has a bias or a global-batch loss (load as new_load makes it, one layer); active bool [T]:
        False marks padding; replay_experts int32 [T, K], and optionally replay_tokens bool [T], where the router replays; balanced bool [T], where the
        balancer has BalancedTokens: False marks a token that is routed, and that neither load nor loss sees; sequences: equal sequences in the batch, one behind the other or, with token_major, interleaved, or
        sequence_offsets int32 [S + 1]: the bounds of S packed sequences of any lengths, the first 0, the last T; axis_name: the mesh axes
        under shard_map whose devices share the batch, for a global-batch loss: each device's loss then reads the counts of all, and their mean is that of the whole batch. Recomputation (jax.checkpoint) counts no token twice, as long
        as the load is taken from the results.
        """
        logits = matrix("forward", "logits", logits)
        whole_number("forward", "sequences", sequences, 1, 2**31 - 1)
        offsets = jnp.zeros((0, 2), jnp.int32)
        if sequence_offsets is not None:
            sequence_offsets = jnp.asarray(sequence_offsets)
            expect(sequence_offsets.dtype in (jnp.int32, jnp.int64), "forward", "sequence_offsets.dtype", sequence_offsets.dtype, "int32")
            offsets = from_int32(sequence_offsets)
            expect(offsets.ndim == 2, "forward", "sequence_offsets.ndim", offsets.ndim - 1, 1)
            expect(offsets.shape[0] >= 2, "forward", "sequence_offsets.size", offsets.shape[0], "2 and more: the sequences' and one more")
            expect(sequences in (1, offsets.shape[0] - 1), "forward", "sequences", sequences, f"1, or the {offsets.shape[0] - 1} of sequence_offsets")
            expect(not token_major, "forward", "token_major", token_major, "False, where sequence_offsets say which tokens belong together")
            sequences = offsets.shape[0] - 1
        tokens, experts = logits.shape
        sizes = self.sizes(tokens, experts, sequences)
        expect(bias is not None or not sizes.has_bias, "forward", "bias", None, "float32 [E], as new_bias makes it")
        expect(load is not None or not sizes.needs_load, "forward", "load", None, "int32 [E, 2], as new_load makes it")
        expect(axis_name is None or sizes.reads_global_batch, "forward", "axis_name", axis_name, "None: no loss reads other devices' counts")
        options = Options(np.dtype(weights_dtype or weights_type(logits)), sequences, token_major, axis_name)
        return forward(self, options, logits, optional("forward", "bias", bias, experts if sizes.has_bias else 0, left_out()),
                       optional("forward", "load", load, 2 * (1 + sizes.load_bins) * experts if sizes.needs_load else 0, jnp.zeros((0, 2), jnp.int32)),
                       optional("forward", "active", active, tokens, left_out(jnp.bool_)),
                       *replayed("forward", replay_experts, replay_tokens, tokens, self.top_k),
                       optional("forward", "balanced", balanced, tokens, left_out(jnp.bool_)), offsets)

    def update(self, bias, load):
        """Once per optimizer step: the next bias, and a load of zeros. Over several devices psum the load before: as_int32, from_int32."""
        bias, load = map(jax.lax.stop_gradient, (left_out() if bias is None else bias, load))
        results = [shape(bias.dtype, *bias.shape), shape(load.dtype, *load.shape)]
        return tuple(self.call("update", results, bias, load, aliases={0: 0, 1: 1}))

    # ---- dispatch ------------------------------------------------------------------------------------------------------------

    def permutation(self, ids, experts, align=1):
        """Groups the slots of ids [T, K] by expert, each expert's rows padded to a multiple of `align`."""
        ids = matrix("permutation", "ids", ids)
        expect(ids.shape[1] == self.top_k, "permutation", "ids.shape[1]", ids.shape[1], self.top_k)
        whole_number("permutation", "experts", experts, 1, 2**20)
        whole_number("permutation", "align", align, 1, 2**30)
        sizes = self.sizes(ids.shape[0], experts, align=align)
        results = [words(experts + 1), words(*ids.shape), words(sizes.permutation_rows), words(experts), words(4),
                   shape(jnp.uint8, sizes.permutation_workspace)]
        offsets, row_of_slot, slot_of_row, counts, status, _ = self.call("permutation", results, jax.lax.stop_gradient(ids), align=align,
                                                                          rows_per_expert=0)
        group_sizes = as_int32(offsets)[1:] - as_int32(offsets)[:-1]
        return Permutation(group_sizes, as_int32(counts), offsets, row_of_slot, slot_of_row, status_of(status))

    def permute(self, hidden, permutation, scale=None):
        """Rows of hidden [T, H] as the experts want them: [R, H], times scale [T, K] if given. Padding rows are 0."""
        hidden = matrix("permute", "hidden", hidden)
        scale = optional("permute", "scale", scale, permutation.row_of_slot.size // 2, jnp.zeros((0, 0), hidden.dtype))
        return permute(self, hidden, scale, permutation.row_of_slot, permutation.slot_of_row)

    def combine(self, rows, permutation, weights=None):
        """The sum over k of weights[t, k] * rows[row of (t, k)]: [T, H]."""
        rows = matrix("combine", "rows", rows)
        weights = optional("combine", "weights", weights, permutation.row_of_slot.size // 2, jnp.zeros((0, 0), rows.dtype))
        return combine(self, rows, weights, permutation.row_of_slot, permutation.slot_of_row)


def weights_type(logits):
    return jnp.float64 if logits.dtype == jnp.float64 else jnp.float32


# ---- gradients -------------------------------------------------------------------------------------------------------------------
# Integer operands have no gradient, which custom_vjp writes as None; the bias takes part in the selection only, and selection has none.

def forward_and_saved(moe, options, logits, bias, load, active, replay_experts, replay_tokens, balanced, sequence_offsets):
    (tokens, experts), k = logits.shape, moe.top_k
    sizes = moe.sizes(tokens, experts, options.sequences)
    results = [shape(jnp.int32, tokens, k), shape(options.weights_dtype, tokens, k), shape(jnp.float32),
               shape(jnp.float32, sizes.losses), words(experts), shape(load.dtype, *load.shape), shape(jnp.uint8, sizes.saved_bytes),
               shape(jnp.int32, tokens if sizes.has_capacity else 0, k), words(experts if sizes.has_capacity else 0),
               words(experts if sizes.reads_global_batch else 0), words(4), shape(jnp.uint8, sizes.workspace_bytes)]
    ids, weights, loss, losses, counts, load, saved, chosen, kept, loss_counts, status, _ = moe.call(
        "forward", results, logits, bias, load, active, replay_experts, replay_tokens, balanced, sequence_offsets, aliases={2: 5},
        sequences=options.sequences, token_major=options.token_major)
    if options.axis_name is not None:
        total = from_int32(jax.lax.psum(as_int32(loss_counts), options.axis_name))
        results = [shape(jnp.uint8, sizes.saved_bytes), shape(jnp.float32), shape(jnp.float32, sizes.losses)]
        saved, loss, losses = moe.call("loss", results, saved, total, aliases={0: 0}, sequences=options.sequences)
    routing = Routing(ids, weights, loss, losses, as_int32(counts), load, as_int32(kept), status_of(status))
    return routing, (logits, bias, active, ids, chosen, saved, balanced, sequence_offsets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def forward(moe, options, *operands):
    return forward_and_saved(moe, options, *operands)[0]


def forward_gradient(moe, options, kept, gradient):
    logits, bias, active, ids, chosen, saved, balanced, sequence_offsets = kept
    sizes = moe.sizes(*logits.shape, options.sequences)
    results = [shape(logits.dtype, *logits.shape), shape(jnp.uint8, sizes.workspace_bytes)]
    grad_logits, _ = moe.call("backward", results, logits, ids, chosen, gradient.weights, gradient.loss, saved, active, balanced, sequence_offsets,
                              sequences=options.sequences, token_major=options.token_major)
    return grad_logits, jnp.zeros_like(bias), None, None, None, None, None, None


forward.defvjp(forward_and_saved, forward_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def permute(moe, hidden, scale, row_of_slot, slot_of_row):
    results = [shape(hidden.dtype, slot_of_row.shape[0], hidden.shape[1]), words(4)]
    return moe.call("permute", results, hidden, row_of_slot, slot_of_row, scale, top_k=row_of_slot.shape[1])[0]


def permute_and_kept(moe, hidden, scale, row_of_slot, slot_of_row):
    return permute(moe, hidden, scale, row_of_slot, slot_of_row), (hidden, scale, row_of_slot)


def permute_gradient(moe, kept, grad_rows):
    hidden, scale, row_of_slot = kept
    results = [shape(hidden.dtype, *hidden.shape), shape(scale.dtype, *scale.shape), words(4)]
    grad_hidden, grad_scale, _ = moe.call("permute_backward", results, grad_rows, row_of_slot, scale, hidden)
    return grad_hidden, grad_scale, None, None


permute.defvjp(permute_and_kept, permute_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def combine(moe, rows, weights, row_of_slot, slot_of_row):
    results = [shape(rows.dtype, row_of_slot.shape[0], rows.shape[1]), words(4)]
    return moe.call("combine", results, rows, row_of_slot, weights)[0]


def combine_and_kept(moe, rows, weights, row_of_slot, slot_of_row):
    return combine(moe, rows, weights, row_of_slot, slot_of_row), (rows, weights, row_of_slot, slot_of_row)


def combine_gradient(moe, kept, grad_hidden):
    rows, weights, row_of_slot, slot_of_row = kept
    results = [shape(rows.dtype, *rows.shape), shape(weights.dtype, *weights.shape), words(4)]
    grad_rows, grad_weights, _ = moe.call("combine_backward", results, grad_hidden, row_of_slot, slot_of_row, weights, rows)
    return grad_rows, grad_weights, None, None


combine.defvjp(combine_and_kept, combine_gradient)
