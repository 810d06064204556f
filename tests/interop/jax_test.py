#!/usr/bin/env python3
"""jax_test.py LIBRARY EXAMPLE: the handlers of jax_handlers.cpp through examples/jax_moe_layer/moe_balance_jax.py, against the formulas in plain
jax.numpy. Each function named test_* states what must hold; names given as further arguments choose among them."""

import os
import sys
import threading
import time
import warnings

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0")  # two devices, and half the time to compile

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

sys.path.insert(0, sys.argv[2])
from moe_balance_jax import MoeBalance, as_int32, from_int32

MOE = {name: MoeBalance(sys.argv[1], name) for name in ("softmax", "sigmoid", "global_batch", "selected", "capacity")}
TOKENS, EXPERTS, HIDDEN = 48, 16, 12


# ---- the formulas ----------------------------------------------------------------------------------------------------------------

def scores_of(name, logits):
    return jax.nn.sigmoid(logits) if name == "sigmoid" else jax.nn.softmax(logits)


def best(values, k):
    """Columns of the k largest values of each row, largest first, the first of equals."""
    return jnp.argsort(-values, axis=1, stable=True)[:, :k]


def chosen_ids(name, logits, bias):
    ranking = logits if name == "selected" else scores_of(name, logits) + bias
    if name != "sigmoid":
        return best(ranking, MOE[name].top_k)
    groups = ranking.reshape(len(ranking), 4, -1)
    kept = best(jnp.sort(groups, axis=2)[:, :, -2:].sum(axis=2), 2)
    allowed = jax.nn.one_hot(kept, 4).sum(axis=1)[:, :, None] > 0
    return best(jnp.where(allowed, groups, -jnp.inf).reshape(ranking.shape), 4)


def weights_of(name, logits, ids):
    if name == "selected":
        return jax.nn.softmax(jnp.take_along_axis(logits, ids, axis=1))
    chosen = jnp.take_along_axis(scores_of(name, logits), ids, axis=1)
    chosen = chosen / (chosen.sum(axis=1, keepdims=True) + 1e-20)
    return chosen * (2.5 if name == "sigmoid" else 1)


def counts_of(ids, active):
    return (jax.nn.one_hot(ids, EXPERTS, dtype=jnp.int32) * active[:, None, None].astype(jnp.int32)).sum(axis=(0, 1), dtype=jnp.int32)


def switch_loss(scores, counts, active):
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    mean = (probabilities * active[:, None]).sum(axis=0) / jnp.maximum(active.sum(), 1)
    return EXPERTS * jnp.sum(jax.lax.stop_gradient(counts / jnp.maximum(counts.sum(), 1)) * mean)


def loss_of(name, logits, ids, active, load, sequences):
    """`sequences`: how many equal ones, or a list of the bounds between them."""
    scores = scores_of(name, logits)
    counts = counts_of(ids, active)
    if name == "softmax":
        z = jax.nn.logsumexp(logits, axis=1)**2
        return 0.5 * switch_loss(scores, counts, active) + 0.25 * (z * active).sum() / jnp.maximum(active.sum(), 1)
    if name == "sigmoid":
        parts = [switch_loss(s, counts_of(i, a), a) for s, i, a in zip(*(jnp.split(x, sequences) for x in (scores, ids, active)))]
        return 0.5 * sum(parts) / len(parts)
    if name == "global_batch":
        return 0.5 * switch_loss(scores, counts + load, active)
    return 0.5 * switch_loss(scores, counts, active) if name == "capacity" else jnp.zeros((), logits.dtype)


# ---- inputs and comparisons ------------------------------------------------------------------------------------------------------

def inputs(dtype, tokens=TOKENS, seed=0):
    """Logits without near ties, and a bias, a load, a mask and slopes."""
    keys = jax.random.split(jax.random.key(seed), 5)
    steps = jax.vmap(lambda key: jax.random.permutation(key, EXPERTS))(jax.random.split(keys[0], max(tokens, 1)))[:tokens]
    logits = ((steps - EXPERTS / 2) * 0.25 + jax.random.uniform(keys[1], steps.shape) * 0.0625).astype(dtype)
    bias = jax.random.normal(keys[2], (EXPERTS,)) * 0.1
    load = jax.random.randint(keys[3], (EXPERTS,), 0, 30, jnp.int32)
    active = jnp.arange(tokens) % 5 != 3
    slopes = jax.random.normal(keys[4], (tokens, EXPERTS))
    return logits, bias.astype(jnp.float32), load, active, slopes


def options(name, bias, load):
    moe = MOE[name]
    sizes = moe.sizes(TOKENS, EXPERTS)
    return {"bias": bias if sizes.has_bias else None, "load": from_int32(load) if sizes.needs_load else None,
            "sequences": 3 if name == "sigmoid" else 1}


def near(got, wanted, tolerance, what=""):
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, (what, got.shape, wanted.shape)
    assert np.isfinite(got).all(), what
    worst = np.abs(got - wanted).max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-30)
    assert worst <= tolerance, (what, worst)


def same(got, wanted, what=""):
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape and (got == wanted).all(), (what, got, wanted)


def raises(error, words, call):
    try:
        jax.block_until_ready(call())
    except error as raised:
        missing = [word for word in words if word not in str(raised)]
        assert not missing, f"{missing} not in: {raised}"
    else:
        raise AssertionError(f"no {error}: {words}")


RUNTIME = (jax.errors.JaxRuntimeError, ValueError)  # the second where nothing is compiled


# ---- routing ---------------------------------------------------------------------------------------------------------------------

def compare_routing(name, dtype, tolerance, gradient_tolerance):
    """ids and counts exactly; weights, loss and gradient within a tolerance; under jit."""
    moe = MOE[name]
    logits, bias, load, active, slopes = inputs(dtype)
    slopes = slopes[:, :moe.top_k]
    wide = logits.astype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
    its = options(name, bias, load)
    sequences = its["sequences"]
    bias = 0.0 if its["bias"] is None else bias
    load_before = load if its["load"] is not None else 0

    def mine(logits):
        routing = moe.forward(logits, active=active, **its)
        return (routing.weights * slopes).sum() + 3 * routing.loss, routing

    def formula(logits):
        ids = chosen_ids(name, logits, bias)
        weights = jnp.where(active[:, None], weights_of(name, logits, ids), 0)
        loss = loss_of(name, logits, ids, active, load_before, sequences)
        return (weights * slopes).sum() + 3 * loss, (ids, weights, loss)

    (_, routing), slope = jax.jit(jax.value_and_grad(mine, has_aux=True))(logits)
    (_, (ids, weights, loss)), wanted = jax.jit(jax.value_and_grad(formula, has_aux=True))(wide)
    what = f"{name} {np.dtype(dtype).name}"
    same(routing.experts, jnp.where(active[:, None], ids, -1).astype(jnp.int32), what)
    same(routing.counts, counts_of(ids, active), what)
    near(routing.weights, weights, tolerance, what)
    near(routing.loss, loss, 2e-6, what)
    near(routing.losses.sum(), loss, 2e-6, what)
    assert slope.dtype == logits.dtype
    near(slope, wanted, gradient_tolerance, what)
    if its["load"] is not None:
        same(as_int32(routing.load), load + routing.counts, what)
    plain = jax.jit(lambda x: moe.route(x, bias=its["bias"], active=active))(logits)
    same(plain.experts, routing.experts, what)
    same(plain.weights, routing.weights, what)
    same(plain.counts, routing.counts, what)


ROUTERS_WITHOUT_CAPACITY = [name for name in MOE if name != "capacity"]


def test_routing_in_float32_is_what_the_formulas_say():
    for name in ROUTERS_WITHOUT_CAPACITY:
        compare_routing(name, jnp.float32, 1e-6, 3e-6)


def test_routing_in_16_bits_computes_in_float32_and_rounds_the_gradient():
    compare_routing("softmax", jnp.bfloat16, 1e-6, 2**-8)
    compare_routing("sigmoid", jnp.bfloat16, 1e-6, 2**-8)
    compare_routing("softmax", jnp.float16, 1e-6, 2**-11)


def test_weights_may_have_the_logits_type():
    logits = inputs(jnp.bfloat16)[0]
    narrow = MOE["softmax"].forward(logits, weights_dtype=jnp.bfloat16)
    wide = MOE["softmax"].forward(logits)
    assert narrow.weights.dtype == jnp.bfloat16 and wide.weights.dtype == jnp.float32
    same(narrow.weights, wide.weights.astype(jnp.bfloat16))
    slope = jax.grad(lambda x: MOE["softmax"].forward(x, weights_dtype=jnp.bfloat16).weights[:, 0].sum().astype(jnp.float32))(logits)
    assert slope.dtype == jnp.bfloat16


def test_jit_eager_and_any_number_of_threads_give_the_same_bits():
    logits = jnp.tile(inputs(jnp.float32)[0], (300, 1))  # enough for two threads (tuning.hpp)
    one_thread = MoeBalance(sys.argv[1], "softmax", threads=1)
    loss = lambda moe: lambda x: moe.forward(x).loss
    wanted, slope = jax.value_and_grad(loss(one_thread))(logits)
    for moe in (MOE["softmax"], MoeBalance(sys.argv[1], "softmax", threads=3)):
        for function in (loss(moe), jax.jit(loss(moe))):
            value, gradient = jax.value_and_grad(function)(logits)
            same(value, wanted)
            same(gradient, slope)


def test_a_capacity_drops_slots_and_their_gradients():
    moe = MOE["capacity"]
    logits, _, _, active, slopes = inputs(jnp.float32)
    logits = logits.at[:, 0].add(3.0)
    capacity = int(np.ceil(TOKENS * 2 / EXPERTS * 0.75))
    ids = chosen_ids("capacity", logits, 0.0)
    weights = weights_of("capacity", logits, ids)
    kept = np.zeros(ids.shape, bool)
    for expert in range(EXPERTS):
        slots = [(-float(weights[t, k]), t, k) for t, k in zip(*np.nonzero(np.asarray(ids) == expert)) if active[t]]
        for _, t, k in sorted(slots)[:capacity]:
            kept[t, k] = True

    def formula(logits):
        values = jnp.where(kept, weights_of("capacity", logits, ids), 0)
        return (values * slopes[:, :2]).sum() + loss_of("capacity", logits, ids, active, 0, 1)

    def mine(logits):
        routing = moe.forward(logits, active=active)
        return (routing.weights * slopes[:, :2]).sum() + routing.loss, routing

    (value, routing), slope = jax.jit(jax.value_and_grad(mine, has_aux=True))(logits)
    wanted, wanted_slope = jax.value_and_grad(formula)(logits)
    same(routing.experts, np.where(kept, ids, -1).astype(np.int32))
    same(routing.counts, counts_of(ids, active))
    same(routing.kept_counts, np.bincount(np.asarray(ids)[kept], minlength=EXPERTS).astype(np.int32))
    assert int(routing.status.dropped_slots) == int(2 * active.sum()) - kept.sum() > 0
    near(value, wanted, 2e-6)
    near(slope, wanted_slope, 3e-6)
    same(moe.route(logits, active=active).experts, routing.experts)


def test_no_tokens_are_a_batch_too():
    for name, moe in MOE.items():
        _, bias, load, _, _ = inputs(jnp.float32)
        its = options(name, bias, load)
        (loss, routing), slope = jax.jit(jax.value_and_grad(
            lambda x: (lambda r: (r.loss + r.weights.sum(), r))(moe.forward(x, **its)), has_aux=True))(jnp.zeros((0, EXPERTS)))
        assert loss == 0 and slope.shape == (0, EXPERTS) and routing.weights.shape == (0, moe.top_k)
        same(routing.counts, np.zeros(EXPERTS, np.int32))
        if its["load"] is not None:
            same(as_int32(routing.load), load)
        permutation = moe.permutation(routing.experts, EXPERTS)
        same(permutation.group_sizes, np.zeros(EXPERTS, np.int32))
        rows = moe.permute(jnp.zeros((0, HIDDEN)), permutation)
        assert rows.shape == (0, HIDDEN) and moe.combine(rows, permutation, routing.weights).shape == (0, HIDDEN)


def test_a_row_of_nan_gets_no_weights_no_gradient_and_is_counted():
    for name in ROUTERS_WITHOUT_CAPACITY:
        moe = MOE[name]
        logits, bias, load, _, _ = inputs(jnp.float32)
        its = options(name, bias, load)
        logits = logits.at[5].set(jnp.nan)
        (_, routing), slope = jax.value_and_grad(
            lambda x: (lambda r: (r.loss + r.weights[:, 0].sum(), r))(moe.forward(x, **its)), has_aux=True)(logits)
        assert int(routing.status.non_finite_tokens) == 1
        assert len(set(np.asarray(routing.experts[5]).tolist())) == moe.top_k and (np.asarray(routing.experts[5]) >= 0).all()
        assert (np.asarray(routing.weights[5]) == 0).all() and (np.asarray(slope[5]) == 0).all()
        assert np.isfinite(np.asarray(slope)).all() and np.isfinite(float(routing.loss))
        rest = moe.route(logits.at[5].set(0.0), bias=its["bias"])
        same(jnp.delete(routing.weights, 5, axis=0), jnp.delete(rest.weights, 5, axis=0))
        assert int(rest.status.non_finite_tokens) == 0


def test_sequences_may_be_interleaved():
    moe = MOE["sigmoid"]
    logits, bias, load, _, _ = inputs(jnp.float32)
    interleaved = logits.reshape(3, TOKENS // 3, EXPERTS).swapaxes(0, 1).reshape(TOKENS, EXPERTS)
    loss = lambda x, token_major: moe.forward(x, bias=bias, load=from_int32(load), sequences=3, token_major=token_major).loss
    major, slope = jax.value_and_grad(loss)(logits, False)
    minor, other = jax.value_and_grad(loss)(interleaved, True)
    same(minor, major)
    same(other.reshape(TOKENS // 3, 3, EXPERTS).swapaxes(0, 1).reshape(TOKENS, EXPERTS), slope)
    assert loss(interleaved, False) != major


def test_sequences_may_have_any_lengths():
    moe = MOE["sigmoid"]
    logits, bias, load, active, _ = inputs(jnp.float32)
    def mine(logits, offsets):
        routing = moe.forward(logits, bias=bias, load=from_int32(load), active=active, sequence_offsets=offsets)
        return 3 * routing.loss, routing

    for between in ([5, 6], [0, 20, 20], [], [TOKENS]):
        offsets = jnp.array([0, *between, TOKENS], jnp.int32)
        ids = chosen_ids("sigmoid", logits, bias)
        want, wanted = jax.value_and_grad(lambda x: 3 * loss_of("sigmoid", x, ids, active, 0, between))(logits)
        for call in (mine, jax.jit(mine)):
            (value, routing), slope = jax.value_and_grad(call, has_aux=True)(logits, offsets)
            near(value, want, 2e-6, between)
            near(slope, wanted, 3e-6, between)
            same(routing.experts, jnp.where(active[:, None], ids, -1).astype(jnp.int32))
    thirds = jnp.arange(4) * (TOKENS // 3)
    same(mine(logits, thirds)[0], 3 * moe.forward(logits, bias=bias, load=from_int32(load), active=active, sequences=3).loss)
    same(mine(logits, thirds)[0], 3 * moe.forward(logits, bias=bias, load=from_int32(load), active=active, sequences=3, sequence_offsets=thirds).loss)
    raises(RUNTIME, ["forward: sequences.offsets[1] is 49", "0 to 48"], lambda: mine(logits, jnp.array([0, TOKENS + 1, TOKENS])))
    raises(RUNTIME, ["forward: sequences.offsets[2] is 47", "allowed: 48"], lambda: mine(logits, jnp.array([0, 1, TOKENS - 1])))
    raises(ValueError, ["forward: sequence_offsets.size is 1", "2 and more"], lambda: mine(logits, jnp.array([0])))
    raises(ValueError, ["forward: sequence_offsets.ndim is 2", "allowed: 1"], lambda: mine(logits, thirds[None]))
    raises(ValueError, ["forward: sequence_offsets.dtype is float32", "allowed: int32"], lambda: mine(logits, thirds.astype(jnp.float32)))
    raises(ValueError, ["forward: sequences is 2", "the 3 of sequence_offsets"],
           lambda: moe.forward(logits, bias=bias, load=from_int32(load), sequences=2, sequence_offsets=thirds))
    raises(ValueError, ["forward: token_major is True", "False, where sequence_offsets"],
           lambda: moe.forward(logits, bias=bias, load=from_int32(load), token_major=True, sequence_offsets=thirds))


def test_replayed_ids_are_taken_and_weigh_what_the_scores_say():
    moe = MoeBalance(sys.argv[1], "replay")
    logits, bias, load, active, slopes = inputs(jnp.float32)
    given = jax.vmap(lambda key: jax.random.permutation(key, EXPERTS)[:2])(jax.random.split(jax.random.key(7), TOKENS)).astype(jnp.int32)
    free = best(jax.nn.softmax(logits) + bias, 2)
    some = jnp.arange(TOKENS) % 3 != 1
    for tokens in (None, some):
        ids = given if tokens is None else jnp.where(some[:, None], given, free)

        def mine(logits):
            routing = moe.forward(logits, bias=bias, load=from_int32(load), active=active, replay_experts=given, replay_tokens=tokens)
            return (routing.weights * slopes[:, :2]).sum() + routing.loss, routing

        def formula(logits):
            weights = jnp.where(active[:, None], weights_of("softmax", logits, ids), 0)
            return (weights * slopes[:, :2]).sum() + 0.5 * switch_loss(jax.nn.softmax(logits), counts_of(ids, active), active)

        (value, routing), slope = jax.jit(jax.value_and_grad(mine, has_aux=True))(logits)
        want, wanted = jax.value_and_grad(formula)(logits)
        same(routing.experts, jnp.where(active[:, None], ids, -1).astype(jnp.int32))
        same(as_int32(routing.load), load + counts_of(ids, active))
        near(value, want, 2e-6)
        near(slope, wanted, 3e-6)
        plain = moe.route(logits, bias=bias, active=active, replay_experts=given, replay_tokens=tokens)
        same(plain.experts, routing.experts)
        same(plain.weights, routing.weights)
    empty = moe.forward(logits[:0], bias=bias, load=from_int32(load), replay_experts=given[:0])
    assert empty.experts.shape == (0, 2)
    raises(RUNTIME, ["forward: replay.experts.rows is 0", f"{TOKENS}"], lambda: moe.forward(logits, bias=bias, load=from_int32(load)))
    raises(RUNTIME, ["route: replay_experts.dtype is F32", "S32"], lambda: moe.route(logits, bias=bias, replay_experts=given.astype(jnp.float32)))
    raises(RUNTIME, ["route: replay.experts is given", "Replay"], lambda: MOE["softmax"].route(logits, replay_experts=given))


def test_tokens_that_are_routed_and_not_balanced():
    moe = MoeBalance(sys.argv[1], "marked")
    logits, bias, load, active, slopes = inputs(jnp.float32)
    ids = best(jax.nn.softmax(logits) + bias, 2)
    some = jnp.arange(TOKENS) % 3 != 1
    for given, marks in ((None, jnp.ones(TOKENS, bool)), (some, some)):
        seen = active & marks

        def mine(logits):
            routing = moe.forward(logits, bias=bias, load=from_int32(load), active=active, balanced=given)
            return (routing.weights * slopes[:, :2]).sum() + 3 * routing.loss, routing

        def formula(logits):
            weights = jnp.where(active[:, None], weights_of("softmax", logits, ids), 0)
            return (weights * slopes[:, :2]).sum() + 1.5 * switch_loss(jax.nn.softmax(logits), counts_of(ids, seen) + load, seen)

        (value, routing), slope = jax.jit(jax.value_and_grad(mine, has_aux=True))(logits)
        want, wanted = jax.value_and_grad(formula)(logits)
        same(routing.counts, counts_of(ids, active))
        same(as_int32(routing.load), load + counts_of(ids, seen))
        near(value, want, 2e-6)
        near(slope, wanted, 3e-6)
    raises(RUNTIME, ["forward: balanced is given", "BalancedTokens"], lambda: MOE["softmax"].forward(logits, balanced=some))


def test_update_moves_the_bias_by_its_rule_and_clears_the_load():
    moe = MOE["sigmoid"]
    bias = jax.random.normal(jax.random.key(1), (3, EXPERTS))
    load = jax.random.randint(jax.random.key(2), (3, EXPERTS), 0, 9)
    wanted = bias + 0.125 * jnp.sign(load.mean(axis=1, keepdims=True) - load)
    for update in (moe.update, jax.jit(moe.update), jax.jit(moe.update, donate_argnums=(0, 1))):
        new_bias, new_load = update(bias + 0, from_int32(load))
        same(new_bias, wanted)
        same(new_load, moe.new_load(EXPERTS, layers=3))
    one, _ = moe.update(bias[1], from_int32(load[1]))
    same(one, wanted[1])
    same(MOE["global_batch"].update(None, from_int32(load[0]))[1], MOE["global_batch"].new_load(EXPERTS))


def test_update_keeps_what_a_rule_keeps_behind_the_bias():
    moe = MoeBalance(sys.argv[1], "momentum")
    assert moe.new_bias(EXPERTS).shape == (2, EXPERTS)
    bias = moe.new_bias(EXPERTS, layers=3) + jax.random.normal(jax.random.key(3), (2, 3, EXPERTS))
    load = jax.random.randint(jax.random.key(4), (3, EXPERTS), 0, 9)
    mean = load.mean(axis=1, keepdims=True)
    momentum = 0.75 * bias[1] + 0.25 * 0.25 * jnp.tanh(2 * (mean - load) / mean)
    new_bias, new_load = jax.jit(moe.update)(bias, from_int32(load))
    near(new_bias, jnp.stack([bias[0] + momentum, momentum]), 1e-6)
    same(new_load, moe.new_load(EXPERTS, layers=3))
    same(moe.update(bias[:, 1], from_int32(load[1]))[0], new_bias[:, 1])
    logits = jax.random.normal(jax.random.key(5), (TOKENS, EXPERTS))
    assert (moe.route(logits, bias=new_bias[0, 1]).counts == moe.forward(logits, bias=new_bias[0, 1], load=from_int32(load[1])).counts).all()
    for wrong, words in ((bias[0], "bias.rank is 2; allowed: 3"), (bias[:1], "bias.tables is 1; allowed: 2"), (bias[:, :2], "bias.layers is 2; allowed: 3")):
        raises(RUNTIME, ["INVALID_ARGUMENT: moe_balance: update: " + words], lambda: moe.update(wrong, from_int32(load)))


RANGES = {"quantile": (-1.0, 1.0, 64), "quantile_global_batch": (-0.5, 0.75, 10)}  # low, high, bins of routers whose rule reads margins


def scores_in_numpy(name, logits):
    x = np.asarray(logits, np.float64)
    powers = np.exp(x)
    return 1 / (1 + np.exp(-x)) if name == "quantile" else powers / powers.sum(axis=1, keepdims=True)


def margins_of(name, logits, bias):
    """What each expert's score has over the best ranking value that its token leaves unchosen: [T, E]."""
    scores = scores_in_numpy(name, logits)
    return scores - np.sort(scores + np.asarray(bias), axis=1)[:, -3, None]


def load_of(name, logits, bias, active):
    """Tokens per expert, and behind them all how many of an expert's margins lie in each bin: int32 [(1 + bins) * E]."""
    low, high, bins = RANGES[name]
    logits = np.asarray(logits)[np.asarray(active)]
    index = np.clip(np.floor((margins_of(name, logits, bias) - low) * bins / (high - low)), 0, bins - 1).astype(int)
    chosen = np.argsort(-(scores_in_numpy(name, logits) + np.asarray(bias)), axis=1)[:, :2]
    return np.concatenate([np.bincount(chosen.reshape(-1), minlength=EXPERTS), *(np.bincount(each, minlength=bins) for each in index.T)]).astype(np.int32)


def bias_from_margins(name, bias, load):
    """The next bias [E] from a layer's load: each bin's margins evenly spread over it, and of all the (T K / E + 1)-th largest."""
    low, high, bins = RANGES[name]
    quantiles = []
    for histogram in load[EXPERTS:].reshape(EXPERTS, bins):
        margins = np.concatenate([low + (high - low) * (b + (np.arange(n) + 0.5) / n) / bins for b, n in enumerate(histogram) if n > 0])
        quantiles.append(np.sort(margins)[::-1][len(margins) * 2 // EXPERTS])
    moved = 0.75 * np.asarray(bias, np.float64) - 0.25 * np.array(quantiles)
    return moved - moved.mean()


def test_a_load_has_its_margins_behind_the_counts():
    for name, (low, high, bins) in RANGES.items():
        moe = MoeBalance(sys.argv[1], name)
        load = moe.new_load(EXPERTS, layers=3)
        assert load.shape == (3, (1 + bins) * EXPERTS, 2) and moe.new_load(EXPERTS).shape == load.shape[1:]
        assert moe.sizes(TOKENS, EXPERTS).load_bins == bins and MOE["sigmoid"].sizes(TOKENS, EXPERTS).load_bins == 0
        bias = 0.5 * jax.random.normal(jax.random.key(6), (3, EXPERTS))
        forward = jax.jit(lambda logits, bias, load, active: moe.forward(logits, bias=bias, load=load, active=active))
        wanted, lowest = np.zeros(load.shape[:2], np.int32), low
        for layer in range(3):
            for seed in range(2):  # micro-batches
                logits, _, _, active, _ = inputs(jnp.float32, seed=10 * layer + seed)
                logits = logits * (0.5 + layer)
                routing = forward(logits, bias[layer], load[layer], active)
                load = load.at[layer].set(routing.load)
                wanted[layer] += load_of(name, logits, bias[layer], active)
                lowest = min(lowest, margins_of(name, logits, bias[layer]).min())
                same(routing.counts, load_of(name, logits, bias[layer], active)[:EXPERTS])
        same(as_int32(load), wanted, name)
        assert lowest < low, "no margin lies outside"
        next_bias = np.stack([bias_from_margins(name, bias[layer], wanted[layer]) for layer in range(3)])
        for update in (moe.update, jax.jit(moe.update), jax.jit(moe.update, donate_argnums=(0, 1))):
            new_bias, new_load = update(bias + 0, load + 0)
            near(new_bias, next_bias, 1e-5, name)
            same(new_load, moe.new_load(EXPERTS, layers=3))
        one, its_load = moe.update(bias[1], load[1])
        same(one, new_bias[1])
        same(its_load, moe.new_load(EXPERTS))


def test_handlers_copy_a_load_with_margins_that_is_not_aliased():
    logits, bias, _, _, _ = inputs(jnp.float32)
    results = []
    for moe in (MoeBalance(sys.argv[1], "quantile"), Unaliased(sys.argv[1], "quantile")):
        load = moe.new_load(EXPERTS) + jnp.array([1, 0], jnp.int32)
        results.append((moe.forward(logits, bias=bias, load=load).load, *moe.update(bias, load)))
        same(load, jnp.zeros((65 * EXPERTS, 2), jnp.int32).at[..., 0].set(1))
    for aliased, copied in zip(*results):
        same(copied, aliased)
    same(as_int32(results[0][0]), 1 + load_of("quantile", logits, bias, np.ones(TOKENS, bool)))


def test_a_load_without_its_margins_is_refused():
    logits, bias, _, _, _ = inputs(jnp.float32)
    moe = MoeBalance(sys.argv[1], "quantile_global_batch")
    load, biases = moe.new_load(EXPERTS, layers=3), moe.new_bias(EXPERTS, layers=3)
    for words, call in (
            ("forward: load.size is 16; allowed: 176 (a count and bins for each of the experts of logits)",
             lambda: moe.forward(logits, bias=bias, load=load[0, :EXPERTS])),
            ("forward: load.rank is 2; allowed: 1", lambda: moe.forward(logits, bias=bias, load=load)),
            ("forward: load.dtype is F32", lambda: moe.forward(logits, bias=bias, load=jnp.ones(11 * EXPERTS))),
            ("forward: logits.columns is 2; allowed: 3 to 2048 (experts to leave unchosen",
             lambda: moe.forward(logits[:, :2], bias=bias[:2], load=moe.new_load(2))),
            ("update: load.columns is 16; allowed: a multiple of 11: for each expert a count and the bins that the balancer's rule reads",
             lambda: moe.update(biases, load[:, :EXPERTS])),
            ("update: load.columns is 175; allowed: a multiple of 11", lambda: moe.update(bias, load[0, 1:])),
            ("update: bias.experts is 16; allowed: 15 (the experts of load)", lambda: moe.update(biases, load[:, 11:])),
            ("update: bias.layers is 3; allowed: 2 (the layers of load)", lambda: moe.update(biases, load[:2])),
            ("update: load.rank is 3; allowed: 2", lambda: moe.update(bias, load[None])),
            ("update: bias.rank is 1; allowed: 2", lambda: moe.update(bias, load))):
        raises(RUNTIME, ["INVALID_ARGUMENT: moe_balance: " + words], jax.jit(call))
    raises(ValueError, [f"forward: load.size is 0; allowed: {11 * 2 * EXPERTS}"], lambda: moe.forward(logits, bias=bias, load=load[0, :0]))
    wrong = MoeBalance(sys.argv[1], "no_bins")
    for call, operands in ((wrong.forward, (logits, bias)), (wrong.update, (bias,))):
        raises(RUNTIME, ["INVALID_ARGUMENT: moe_balance: ", "QuantileBias.bins is 0; allowed: 3 to 65536"],
               lambda: call(*operands, from_int32(jnp.ones(EXPERTS))))


def test_a_global_batch_loss_reads_the_counts_before_the_margins():
    moe = MoeBalance(sys.argv[1], "quantile_global_batch")
    logits, bias, counts, _, _ = inputs(jnp.float32)
    load = from_int32(jax.random.randint(jax.random.key(7), (3, 11 * EXPERTS), 0, 30)).at[1, :EXPERTS].set(from_int32(counts))
    ids, every = best(jax.nn.softmax(logits) + bias, 2), jnp.ones(TOKENS)
    value, slope = jax.value_and_grad(lambda x: loss_of("global_batch", x, ids, every, counts, 1))(logits)

    def loss(logits):
        routing = moe.forward(logits, bias=bias, load=load[1])
        return routing.loss, routing

    (mine, routing), its_slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    near(mine, value, 2e-6)
    near(its_slope, slope, 3e-6)
    same(as_int32(routing.load), as_int32(load[1]) + load_of("quantile_global_batch", logits, bias, np.ones(TOKENS, bool)))

    halves = jnp.stack([load[1] // 3, load[1] - load[1] // 3])  # of two devices

    def step(logits, load):
        routing = moe.forward(logits, bias=bias, load=load[0], axis_name="data")
        return routing.loss[None], routing.load[None]

    losses, loads = on_two_devices(step, (True, True), (True, True))(logits, halves)
    near(losses.mean(), value, 2e-6)
    same(as_int32(loads.sum(axis=0)), as_int32(routing.load))


def test_operands_are_left_as_they_were():
    moe = MOE["sigmoid"]
    logits, bias, load, _, _ = inputs(jnp.float32)
    words = from_int32(load)
    before = [np.array(x) for x in (logits, bias, words)]
    aliased = moe.forward(logits, bias=bias, load=words)
    moe.update(bias, words)
    for array, copy in zip((logits, bias, words), before):
        same(array, copy)
    same(as_int32(aliased.load), load + aliased.counts)


class Unaliased(MoeBalance):
    """A caller that aliases nothing."""

    def call(self, *arguments, aliases=None, **attributes):
        return super().call(*arguments, **attributes)


def test_handlers_copy_what_is_not_aliased():
    logits, bias, load, _, _ = inputs(jnp.float32)
    words = from_int32(load)
    results = []
    for moe in (MOE["sigmoid"], Unaliased(sys.argv[1], "sigmoid")):
        results.append((moe.forward(logits, bias=bias, load=words).load, *moe.update(bias, words)))
    for aliased, copied in zip(*results):
        same(copied, aliased)
    same(as_int32(words), load)


def test_recomputation_and_scans_count_each_token_once():
    moe = MOE["global_batch"]
    batches = inputs(jnp.float32)[0].reshape(3, TOKENS // 3, EXPERTS)
    wanted, load = jnp.float32(0), jnp.zeros(EXPERTS, jnp.int32)
    slopes = []
    for batch in batches:
        ids = chosen_ids("global_batch", batch, 0.0)
        every = jnp.ones(len(batch))
        value, slope = jax.value_and_grad(lambda x: loss_of("global_batch", x, ids, every, load, 1))(batch)
        wanted, load = wanted + value, load + counts_of(ids, every)
        slopes.append(slope)

    def step(load, batch):
        routing = moe.forward(batch, load=load)
        return routing.load, routing.loss

    def total(batches, step):
        load, losses = jax.lax.scan(step, moe.new_load(EXPERTS), batches)
        return losses.sum(), load

    for function in (step, jax.checkpoint(step)):
        (value, words), slope = jax.jit(jax.value_and_grad(lambda x: total(x, function), has_aux=True))(batches)
        same(as_int32(words), load)
        near(value, wanted, 2e-6)
        near(slope, jnp.stack(slopes), 3e-6)


def test_vmap_is_one_call_per_element():
    moe = MOE["global_batch"]
    batches = jnp.stack([inputs(jnp.float32, seed=seed)[0] for seed in range(3)])
    hidden = jax.random.normal(jax.random.key(0), (3, TOKENS, HIDDEN))
    load = from_int32(inputs(jnp.float32)[2])

    def layer(logits, hidden):
        routing = moe.forward(logits, load=load)
        permutation = moe.permutation(routing.experts, EXPERTS)
        outputs = jnp.tanh(moe.permute(hidden, permutation))
        return moe.combine(outputs, permutation, routing.weights).sum() + routing.loss, routing.load

    mapped = jax.jit(jax.vmap(jax.value_and_grad(layer, argnums=(0, 1), has_aux=True)))(batches, hidden)
    for i in range(3):
        single = jax.value_and_grad(layer, argnums=(0, 1), has_aux=True)(batches[i], hidden[i])
        for got, wanted in zip(jax.tree.leaves(mapped), jax.tree.leaves(single)):
            near(got[i], wanted, 1e-6)


def on_two_devices(function, inputs, outputs):
    """A function of data-parallel devices; True in `inputs` and `outputs` for what they have parts of."""
    assert len(jax.devices()) == 2
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    specs = [tuple(jax.sharding.PartitionSpec("data") if divided else jax.sharding.PartitionSpec() for divided in sides)
             for sides in (inputs, outputs)]
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False))


def test_devices_sum_their_loads_before_update():
    moe = MOE["sigmoid"]
    logits, bias, _, _, _ = inputs(jnp.float32)

    def step(logits, bias):
        routing = moe.forward(logits, bias=bias, load=moe.new_load(EXPERTS))
        load = from_int32(jax.lax.psum(as_int32(routing.load), "data"))
        return routing.experts, moe.update(bias, load)[0]

    ids, new_bias = on_two_devices(step, (True, False), (True, False))(logits, bias)
    whole = moe.forward(logits, bias=bias, load=moe.new_load(EXPERTS))
    same(ids, whole.experts)
    same(new_bias, moe.update(bias, whole.load)[0])


def test_a_global_batch_loss_reads_the_counts_of_all_devices():
    moe = MOE["global_batch"]
    logits, _, load, _, _ = inputs(jnp.float32)
    halves = jnp.stack([load // 3, load - load // 3])  # of micro-batches before, as devices have them

    def step(logits, load):
        def loss(logits):
            routing = moe.forward(logits, load=from_int32(load[0]), axis_name="data")
            return routing.loss, routing

        (value, routing), slope = jax.value_and_grad(loss, has_aux=True)(logits)
        return value[None], routing.losses, as_int32(routing.load)[None], slope

    losses, parts, loads, slope = on_two_devices(step, (True, True), (True, True, True, True))(logits, halves)
    ids, every = chosen_ids("global_batch", logits, 0.0), jnp.ones(TOKENS)
    whole, wanted = jax.value_and_grad(lambda x: loss_of("global_batch", x, ids, every, load, 1))(logits)
    near(losses.mean(), whole, 2e-6)
    near(slope / 2, wanted, 3e-6)
    same(parts, losses)
    same(loads, halves + jnp.stack([counts_of(part, jnp.ones(len(part))) for part in jnp.split(ids, 2)]))
    own = moe.forward(logits[:TOKENS // 2], load=from_int32(halves[0])).loss
    assert abs(own - losses[0]) > 1e-4


def test_a_global_batch_loss_of_first_choices_reads_those_of_all_devices():
    moe = MoeBalance(sys.argv[1], "first_choices")
    logits = inputs(jnp.float32)[0]

    def step(logits):
        def loss(logits):
            return moe.forward(logits, load=moe.new_load(EXPERTS), axis_name="data").loss

        value, slope = jax.value_and_grad(loss)(logits)
        return value[None], slope

    losses, slope = on_two_devices(step, (True,), (True, True))(logits)
    counts = counts_of(logits.argmax(axis=1)[:, None], jnp.ones(TOKENS))
    whole, wanted = jax.value_and_grad(lambda x: 0.5 * switch_loss(jax.nn.softmax(x), counts, jnp.ones(TOKENS)))(logits)
    near(losses.mean(), whole, 2e-6)
    near(slope / 2, wanted, 3e-6)


def test_threads_may_call_at_the_same_time():
    moe = MOE["softmax"]
    function = jax.jit(jax.value_and_grad(lambda x: moe.forward(x).loss))
    batches = [inputs(jnp.float32, seed=seed)[0] for seed in range(4)]
    wanted = [function(batch) for batch in batches]
    wrong = []

    def work(i):
        for _ in range(20):
            got = function(batches[i])
            if not all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(got, wanted[i])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_handler_defined_by_the_macro_of_xla_is_the_same():
    moe = MOE["softmax"]
    logits = inputs(jnp.float32)[0]
    jax.ffi.register_ffi_target("softmax_route_by_xla", jax.ffi.pycapsule(moe._library.softmax_route_by_xla), platform="cpu")
    wanted = moe.route(logits)
    results = [jax.ShapeDtypeStruct(s, d) for s, d in (((TOKENS, 2), jnp.int32), ((TOKENS, 2), jnp.float32), ((EXPERTS, 2), jnp.int32),
                                                       ((0, 2), jnp.int32), ((4, 2), jnp.int32), ((0,), jnp.uint8))]
    left_out = jnp.zeros(0, jnp.bool_)
    ids, weights = moe.call("route_by_xla", results, logits, jnp.zeros(0), left_out, jnp.zeros((0, 0), jnp.int32), left_out)[:2]
    same(ids, wanted.experts)
    same(weights, wanted.weights)


# ---- dispatch --------------------------------------------------------------------------------------------------------------------

def some_ids():
    """ids [T, 2] with empty slots and an expert without any."""
    ids = chosen_ids("softmax", inputs(jnp.float32)[0], 0.0).astype(jnp.int32)
    ids = jnp.where(ids == 7, 6, ids)
    return ids.at[3].set(-1).at[9, 1].set(-1)


def rows_of(ids, align):
    """row_of_slot, slot_of_row, group sizes: each expert's slots in order, then padding."""
    flat = np.asarray(ids).reshape(-1)
    row_of_slot, slot_of_row, sizes = np.full(flat.shape, -1), [], []
    for expert in range(EXPERTS):
        slots = np.nonzero(flat == expert)[0].tolist()
        row_of_slot[slots] = np.arange(len(slots)) + len(slot_of_row)
        sizes.append(-(-len(slots) // align) * align)
        slot_of_row += slots + [-1] * (sizes[-1] - len(slots))
    return row_of_slot.reshape(ids.shape), slot_of_row, sizes


def test_permutation_groups_slots_by_expert_in_token_order():
    ids = some_ids()
    for align in (1, 8):
        got = jax.jit(lambda ids: MOE["softmax"].permutation(ids, EXPERTS, align=align))(ids)
        row_of_slot, slot_of_row, sizes = rows_of(ids, align)
        same(got.group_sizes, np.array(sizes, np.int32))
        same(got.counts, counts_of(ids, jnp.ones(TOKENS)))
        same(as_int32(got.row_of_slot), row_of_slot.astype(np.int32))
        rows = as_int32(got.slot_of_row)
        same(rows[:len(slot_of_row)], np.array(slot_of_row, np.int32))
        same(rows[len(slot_of_row):], np.full(len(rows) - len(slot_of_row), -1, np.int32))
        same(as_int32(got.offsets), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
        assert (np.asarray(got.row_of_slot[..., 1]) == np.where(row_of_slot < 0, -1, 0)).all()
        same(from_int32(as_int32(got.row_of_slot)), got.row_of_slot)


def test_permutation_serves_more_experts_than_routers_do():
    ids = some_ids().at[0, 0].set(4095)
    got = MOE["softmax"].permutation(ids, 4096)
    flat = np.asarray(ids).reshape(-1)
    same(got.counts, np.bincount(flat[flat >= 0], minlength=4096).astype(np.asarray(got.counts).dtype))
    assert as_int32(got.row_of_slot)[0, 0] == (flat >= 0).sum() - 1


def dispatch_inputs(dtype, align):
    ids = some_ids()
    permutation = MOE["softmax"].permutation(ids, EXPERTS, align=align)
    keys = jax.random.split(jax.random.key(3), 4)
    rows = permutation.slot_of_row.shape[0]
    return (permutation, jax.random.normal(keys[0], (TOKENS, HIDDEN), dtype), jax.random.normal(keys[1], (rows, HIDDEN), dtype),
            jax.random.normal(keys[2], (TOKENS, 2), dtype))


def permute_by_formula(permutation, hidden, scale):
    slots = as_int32(permutation.slot_of_row)
    factors = scale.reshape(-1, 1)[slots] if scale is not None else 1
    return jnp.where(slots[:, None] >= 0, hidden[slots // 2] * factors, 0)


def combine_by_formula(permutation, rows, weights):
    index = as_int32(permutation.row_of_slot)
    parts = rows[index] * (weights[:, :, None] if weights is not None else 1)
    return jnp.where(index[:, :, None] >= 0, parts, 0).sum(axis=1)


def value_and_slopes(function, states, factors):
    """function(states, factors) and what jax.vjp makes of one slope."""
    def both(states, factors):
        value, back = jax.vjp(function, states, factors)
        return value, back(jax.random.normal(jax.random.key(4), value.shape, jnp.float32).astype(states.dtype).astype(value.dtype))

    return jax.jit(both)(states, factors)


def compare_dispatch(dtype, tolerance, cases=((1, False), (8, True))):
    moe = MOE["softmax"]
    for align, with_factors in cases:
        permutation, hidden, rows, factors = dispatch_inputs(dtype, align)
        for mine, formula, states in ((moe.permute, permute_by_formula, hidden), (moe.combine, combine_by_formula, rows)):
            given = factors if with_factors else None
            got, slopes = value_and_slopes(lambda s, f: mine(s, permutation, f), states, given)
            wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(dtype, jnp.float32)), (states, given))
            wanted, wanted_slopes = value_and_slopes(lambda s, f: formula(permutation, s, f), *wide)
            assert got.dtype == dtype
            near(got, wanted, tolerance, mine)
            for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(wanted_slopes)):
                near(a, b, tolerance, mine)


def test_permute_and_combine_and_their_gradients_are_what_the_formulas_say():
    compare_dispatch(jnp.float32, 2e-6)
    compare_dispatch(jnp.bfloat16, 2**-7, [(1, True)])
    compare_dispatch(jnp.float16, 2**-10, [(1, True)])


def test_permute_gives_the_same_where_row_of_slot_is_left_out():
    moe = MOE["softmax"]
    permutation, hidden, _, factors = dispatch_inputs(jnp.float32, 8)
    wanted = moe.permute(hidden, permutation, factors)
    results = [jax.ShapeDtypeStruct(wanted.shape, wanted.dtype), jax.ShapeDtypeStruct((4, 2), jnp.int32)]
    got, _ = moe.call("permute", results, hidden, jnp.zeros((0, 0, 2), jnp.int32), permutation.slot_of_row, factors, top_k=2)
    same(got, wanted)


# ---- errors ----------------------------------------------------------------------------------------------------------------------

def test_errors_name_the_call_the_argument_and_what_is_allowed():
    logits, bias, load, active, _ = inputs(jnp.float32)
    words, moe = from_int32(load), MOE["sigmoid"]
    cases = [
        (["forward", "logits.dtype is S32", "F32, BF16, F16, F64"], lambda: moe.forward(logits.astype(jnp.int32), bias=bias, load=words)),
        (["forward", "bias.size is 15", "16 (the experts of logits)"], lambda: moe.forward(logits, bias=bias[:-1], load=words)),
        (["forward", "bias.dtype is S32", "F32"], lambda: moe.forward(logits, bias=load, load=words)),
        (["forward", "load.size is 15", "16"], lambda: moe.forward(logits, bias=bias, load=words[:-1])),
        (["forward", "load.dtype is S32 with a last dimension of 16"], lambda: moe.forward(logits, bias=bias, load=load)),
        (["forward", "load.dtype is F32", "S64"], lambda: moe.forward(logits, bias=bias, load=bias)),
        (["forward", "active.size is 47", "48 (the tokens"], lambda: moe.forward(logits, bias=bias, load=words, active=active[:-1])),
        (["forward", "active.dtype is S32", "U8, PRED"], lambda: moe.forward(logits, bias=bias, load=words, active=active.astype(jnp.int32))),
        (["forward", "sequences.count is 5", "a divisor of the 48 tokens"], lambda: moe.forward(logits, bias=bias, load=words, sequences=5)),
        (["forward", "weights.type is bfloat16", "float32"], lambda: moe.forward(logits, bias=bias, load=words, weights_dtype=jnp.bfloat16)),
        (["route", "top_k.groups is 4", "a divisor of the 15 experts"], lambda: moe.route(logits[:, :15])),
        (["route", "top_k.k is 2", "allowed: 1 (K may not exceed"], lambda: MOE["softmax"].route(logits[:, :1])),
        (["loss", "balancer is without a global-batch loss", "one with it"], lambda: losses_of("softmax", EXPERTS)),
        (["loss", "saved.size is 392", "368 (bytes that"], lambda: losses_of("global_batch", EXPERTS - 1)),
        (["loss", "global_counts.size is 4096", "1 to 2048"], lambda: losses_of("global_batch", 4096)),
        (["loss", "sequences is 1099511627776", "1 to 2147483647"], lambda: losses_of("global_batch", EXPERTS, 2**40)),
        (["update", "bias.experts is 15", "16"], lambda: moe.update(bias[:-1], words)),
        (["update", "bias.rank is 1", "2"], lambda: moe.update(bias, words[None])),
        (["update", "bias.data is null"], lambda: moe.update(None, words)),
        (["permutation", "experts[7] is 16", "-1 to 15"], lambda: permutation_with(16)),
        (["permutation", "experts[7] is -2", "-1 to 15"], lambda: permutation_with(-2)),
        (["permutation", "experts.dtype is F32", "S32"], lambda: MOE["softmax"].permutation(logits[:, :2], EXPERTS)),
        (["route", "threads is -1", "0 to 2147483647"], lambda: MoeBalance(sys.argv[1], "softmax", threads=-1).route(logits)),
    ]
    for message, call in cases:
        # As one computation: an error that reaches others is INTERNAL to those, with the same text behind it.
        raises(RUNTIME, ["INVALID_ARGUMENT: moe_balance: " + message[0] + ": " + message[1]] + message[2:], jax.jit(call))


def test_what_no_call_takes_has_no_size():
    for moe in MOE.values():
        for experts, sequences in ((0, 1), (4096, 1), (EXPERTS, 0), (EXPERTS, -5)):
            assert moe.sizes(TOKENS, experts, sequences).saved_bytes == 0
    assert MOE["sigmoid"].sizes(TOKENS, EXPERTS, 2**60).saved_bytes == 0  # whose loss is of sequences
    assert MOE["sigmoid"].sizes(TOKENS, EXPERTS, 2).saved_bytes > 0


def losses_of(name, experts, sequences=1):
    saved = jnp.zeros(MOE[name].sizes(0, EXPERTS).saved_bytes, jnp.uint8)
    results = [jax.ShapeDtypeStruct(s, d) for s, d in ((saved.shape, jnp.uint8), ((), jnp.float32), ((0,), jnp.float32))]
    return MOE[name].call("loss", results, saved, jnp.zeros((experts, 2), jnp.int32), sequences=sequences)


def permutation_with(wrong):
    return MOE["softmax"].permutation(some_ids().at[3, 1].set(wrong), EXPERTS)


def test_dispatch_errors_name_the_argument():
    moe = MOE["softmax"]
    permutation, hidden, rows, factors = dispatch_inputs(jnp.float32, 1)
    spoiled = permutation._replace(row_of_slot=permutation.row_of_slot.at[2, 1].set(jnp.array([TOKENS * 2, 0])),
                                   slot_of_row=permutation.slot_of_row.at[4].set(jnp.array([-2, -1])))
    for message, call in [
        (["permute: slot_of_row[4] is -2", "-1 to 95"], lambda: moe.permute(hidden, spoiled)),
        (["permute: row_of_slot[5] is 96", "-1 to 95"], lambda: moe.permute(hidden, permutation._replace(row_of_slot=spoiled.row_of_slot))),
        (["combine: row_of_slot[5] is 96", "-1 to 95"], lambda: moe.combine(rows, spoiled)),
        (["permute: scale.columns is 1", "2"], lambda: moe.permute(hidden, permutation, factors[:, :1])),
        (["combine: weights.type is bfloat16", "float32"], lambda: moe.combine(rows, permutation, factors.astype(jnp.bfloat16))),
    ]:
        raises(RUNTIME, ["INVALID_ARGUMENT: moe_balance: " + message[0]] + message[1:], jax.jit(call))


def test_an_error_leaves_every_operand_as_it_was_and_the_next_call_works():
    moe = MOE["sigmoid"]
    logits, bias, load, _, _ = inputs(jnp.float32)
    words = from_int32(load)
    step = jax.jit(lambda x, bias, load: moe.forward(x, bias=bias, load=load, sequences=5))
    for _ in range(2):
        raises(RUNTIME, ["sequences.count is 5"], lambda: step(logits, bias, words))
        same(as_int32(words), load)
        assert int(moe.forward(logits, bias=bias, load=words).counts.sum()) == TOKENS * 4


def test_python_says_what_is_missing_before_anything_runs():
    logits = inputs(jnp.float32)[0]
    raises(ValueError, ["forward: bias is None", "new_bias"], lambda: MOE["sigmoid"].forward(logits))
    raises(ValueError, ["forward: load is None", "new_load"], lambda: MOE["global_batch"].forward(logits))
    raises(ValueError, ["forward: axis_name is data", "None"], lambda: MOE["softmax"].forward(logits, axis_name="data"))
    raises(ValueError, ["forward: logits.ndim is 3", "2"], lambda: MOE["softmax"].forward(logits[None]))
    raises(ValueError, ["permutation: ids.shape[1] is 16", "2"], lambda: MOE["softmax"].permutation(logits, EXPERTS))
    moe, (permutation, hidden, rows, factors) = MOE["softmax"], dispatch_inputs(jnp.float32, 1)
    raises(ValueError, ["forward: sequences is 1099511627776", "whole numbers from 1 to 2147483647"], lambda: moe.forward(logits, sequences=2**40))
    raises(ValueError, ["sizes: tokens is 2.5", "whole numbers"], lambda: moe.sizes(2.5, EXPERTS))
    raises(ValueError, ["forward: sequences is 2.0", "whole numbers"], lambda: moe.forward(logits, sequences=2.0))
    raises(ValueError, ["permutation: experts is -3", "1 to 1048576"], lambda: moe.permutation(some_ids(), -3))
    raises(ValueError, ["permutation: align is 0", "1 to 1073741824"], lambda: moe.permutation(some_ids(), EXPERTS, align=0))
    # Without elements they would count as left out.
    for call in (moe.route, moe.forward):
        raises(ValueError, ["active.size is 0", f"{TOKENS}"], lambda: call(logits, active=jnp.ones(0, bool)))
    raises(ValueError, ["forward: bias.size is 0", f"{EXPERTS}"], lambda: MOE["sigmoid"].forward(logits, bias=jnp.ones(0), load=MOE["sigmoid"].new_load(EXPERTS)))
    raises(ValueError, ["permute: scale.size is 0", f"{2 * TOKENS}"], lambda: moe.permute(hidden, permutation, factors[:0]))
    raises(ValueError, ["combine: weights.size is 0", f"{2 * TOKENS}"], lambda: moe.combine(rows, permutation, factors[:0]))
    raises(AttributeError, ["absent_route"], lambda: MoeBalance(sys.argv[1], "absent"))


def test_arrays_of_numpy_serve_as_well():
    logits, bias, load, active, _ = inputs(jnp.float32)
    arguments = {"bias": bias, "load": from_int32(load), "active": active}
    wanted = MOE["sigmoid"].forward(logits, **arguments)
    got = MOE["sigmoid"].forward(np.asarray(logits, np.float64), **{name: np.asarray(value) for name, value in arguments.items()})
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        same(a, b)
    hidden = np.ones((TOKENS, HIDDEN))
    permutation = MOE["sigmoid"].permutation(np.asarray(wanted.experts), EXPERTS)
    near(MOE["sigmoid"].combine(MOE["sigmoid"].permute(hidden, permutation), permutation, wanted.weights)[active],
         2.5 * hidden[np.asarray(active)], 1e-6)


def test_what_has_no_derivative_says_so():
    logits = inputs(jnp.float32)[0]
    weight = lambda x: MOE["softmax"].forward(x).weights[0, 0]
    raises(ValueError, ["softmax_forward", "cannot be differentiated"], lambda: jax.grad(lambda x: jax.grad(weight)(x).sum())(logits))
    raises(TypeError, ["custom_vjp", "forward-mode"], lambda: jax.jvp(weight, (logits,), (logits,)))
    same(jax.grad(lambda x: MOE["softmax"].route(x).weights.sum())(logits), jnp.zeros_like(logits))


# ---- float64, last: it changes what every literal is -----------------------------------------------------------------------------

def test_float64_routing_is_what_the_formulas_say():
    for name in ROUTERS_WITHOUT_CAPACITY:
        compare_routing(name, jnp.float64, 1e-14, 1e-6)  # losses and their slopes are float32


def test_float64_gradients_are_what_central_differences_say():
    for name, moe in MOE.items():
        logits, bias, load, active, slopes = inputs(jnp.float64, tokens=6)
        its = {**options(name, bias, load), "active": active}
        check_grads(jax.jit(lambda x: (moe.forward(x, **its).weights * slopes[:, :moe.top_k]).sum()), (logits,), order=1, modes=["rev"],
                    atol=1e-7, rtol=1e-7, eps=1e-6)
        if name == "selected":
            continue
        # The value of a loss is a float32.
        check_grads(jax.jit(lambda x: moe.forward(x, **its).loss.astype(jnp.float64)), (logits,), order=1, modes=["rev"], atol=2e-4, rtol=2e-3,
                    eps=1e-2)
    compare_dispatch(jnp.float64, 1e-14)
    permutation, hidden, rows, factors = dispatch_inputs(jnp.float64, 8)
    moe = MOE["softmax"]
    check_grads(jax.jit(lambda h, f: moe.permute(h, permutation, f)), (hidden, factors), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)
    check_grads(jax.jit(lambda r, f: moe.combine(r, permutation, f)), (rows, factors), order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


def test_float64_takes_int64_arrays_as_they_are():
    moe = MOE["sigmoid"]
    bias, load = jnp.zeros((2, EXPERTS), jnp.float32), jnp.arange(2 * EXPERTS).reshape(2, EXPERTS)
    assert load.dtype == jnp.int64
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (bias, load)]
    new_bias, new_load = moe.call("update", shapes, bias, load)
    same(new_bias, moe.update(bias, from_int32(load))[0])
    same(new_load, jnp.zeros_like(load))
    moe = MoeBalance(sys.argv[1], "quantile")
    logits = inputs(jnp.float32)[0]
    load = jnp.zeros((2, 65 * EXPERTS), jnp.int64)
    pairs = moe.new_load(EXPERTS, layers=2)
    for layer in range(2):
        load = load.at[layer].set(moe.forward(logits, bias=bias[layer], load=load[layer]).load)
        pairs = pairs.at[layer].set(moe.forward(logits, bias=bias[layer], load=pairs[layer]).load)
    assert load.dtype == jnp.int64 and load.any()
    same(load, as_int32(pairs).astype(jnp.int64))
    for its_bias, its_load, its_pairs in ((bias, load, pairs), (bias[1], load[1], pairs[1])):
        new_bias, new_load = moe.update(its_bias, its_load)
        same(new_bias, moe.update(its_bias, its_pairs)[0])
        same(new_load, jnp.zeros_like(its_load))
    moe = MOE["sigmoid"]
    large = jnp.array([[2**33] + [0] * (EXPERTS - 1)])
    pairs = jnp.stack([large & 0xffffffff, large >> 32], axis=-1).astype(jnp.int32)
    same(moe.update(bias[:1], pairs)[0], jnp.where(large > 0, -0.125, 0.125).astype(jnp.float32))


def main():
    warnings.simplefilter("error")
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    wanted = sys.argv[3:] or [name for name, _ in tests]
    failed = []
    for name, test in tests:
        if name not in wanted:
            continue
        if name.startswith("test_float64"):
            jax.config.update("jax_enable_x64", True)
        started = time.monotonic()
        try:
            test()
        except Exception as error:  # each test by itself
            failed.append(name)
            print(f"FAILED {name}: {type(error).__name__}: {error}")
        print(f"{time.monotonic() - started:5.1f} s {name}")
    print(f"{len(wanted) - len(failed)} of {len(wanted)} tests passed with jax {jax.__version__}")
    sys.exit(1 if failed else 0)


main()
