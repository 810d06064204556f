#!/usr/bin/env python3
"""main.py LIBRARY [STEPS]: trains a Mixture-of-Experts layer in JAX and compares every step with a dense reference in plain jax.numpy.

The layer routes with the library (handlers.cpp), groups rows by expert, multiplies them with jax.lax.ragged_dot and combines the results. An optimizer
step has two micro-batches, whose counts the global-batch loss adds up, and moves the bias that evens out the experts' load.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp

import moe_balance_jax

TOKENS, HIDDEN, INNER, EXPERTS, MICRO_BATCHES = 256, 32, 48, 8, 2
K, LOSS_COEFFICIENT, BIAS_RATE = 2, 1e-2, 1e-2  # as router.hpp says


class Parameters(NamedTuple):
    router: jax.Array  # [HIDDEN, EXPERTS]
    inner: jax.Array   # [EXPERTS, HIDDEN, INNER]
    outer: jax.Array   # [EXPERTS, INNER, HIDDEN]


def initial_parameters(key):
    keys = jax.random.split(key, 3)
    return Parameters(jax.random.normal(keys[0], (HIDDEN, EXPERTS)) / HIDDEN**0.5,
                      jax.random.normal(keys[1], (EXPERTS, HIDDEN, INNER)) / HIDDEN**0.5,
                      jax.random.normal(keys[2], (EXPERTS, INNER, HIDDEN)) / INNER**0.5)


def layer(moe, parameters, hidden, bias, load):
    """The layer's output, its balancing loss and what it routed."""
    routing = moe.forward(hidden @ parameters.router, bias=bias, load=load)
    permutation = moe.permutation(routing.experts, EXPERTS)
    rows = moe.permute(hidden, permutation)
    inner = jax.nn.gelu(jax.lax.ragged_dot(rows, parameters.inner, permutation.group_sizes))
    outputs = jax.lax.ragged_dot(inner, parameters.outer, permutation.group_sizes)
    return moe.combine(outputs, permutation, routing.weights), routing.loss, routing


def reference_layer(parameters, hidden, bias, counts_before):
    """The same without the library: every expert works on every token, and weights of 0 leave most of it out."""
    probabilities = jax.nn.softmax(hidden @ parameters.router)
    ids = jnp.argsort(-(probabilities + bias), axis=1, stable=True)[:, :K]
    chosen = jax.nn.one_hot(ids, EXPERTS).sum(axis=1)
    weights = probabilities * chosen
    weights = weights / weights.sum(axis=1, keepdims=True)
    inner = jax.nn.gelu(jnp.einsum("th,ehi->tei", hidden, parameters.inner))
    output = jnp.einsum("te,tei,eih->th", weights, inner, parameters.outer)
    counts = counts_before + chosen.sum(axis=0).astype(jnp.int32)
    share = jax.lax.stop_gradient(counts / counts.sum())
    loss = LOSS_COEFFICIENT * EXPERTS * jnp.sum(share * probabilities.mean(axis=0))
    return output, loss, (ids, counts)


def objective(output_and_loss, target):
    output, balancing_loss, rest = output_and_loss
    return jnp.mean((output - target)**2) + balancing_loss, rest


def make_step(moe):
    """One optimizer step and how far it is from the reference."""
    def mine(parameters, hidden, target, bias, load):
        return objective(layer(moe, parameters, hidden, bias, load), target)

    def reference(parameters, hidden, target, bias, counts):
        return objective(reference_layer(parameters, hidden, bias, counts), target)

    @jax.jit
    def step(parameters, bias, batches, targets):
        load, counts = moe.new_load(EXPERTS), jnp.zeros(EXPERTS, jnp.int32)
        gradient, losses, difference, agree = jax.tree.map(jnp.zeros_like, parameters), [], jnp.float32(0), True
        for hidden, target in zip(batches, targets):
            (loss, routing), slope = jax.value_and_grad(mine, has_aux=True)(parameters, hidden, target, bias, load)
            (wanted, (ids, counts)), wanted_slope = jax.value_and_grad(reference, has_aux=True)(parameters, hidden, target, bias, counts)
            load = routing.load
            agree &= (ids == routing.experts).all() & (counts == moe_balance_jax.as_int32(load)).all()
            for a, b in zip(jax.tree.leaves((loss, slope)), jax.tree.leaves((wanted, wanted_slope))):
                difference = jnp.maximum(difference, jnp.abs(a - b).max() / jnp.abs(b).max())
            gradient = jax.tree.map(lambda total, part: total + part / MICRO_BATCHES, gradient, slope)
            losses.append(loss)
        parameters = jax.tree.map(lambda value, slope: value - 0.3 * slope, parameters, gradient)
        next_bias, _ = moe.update(bias, load)
        agree &= (next_bias == bias + BIAS_RATE * jnp.sign(counts.mean() - counts)).all()
        max_vio = counts.max() / counts.mean() - 1
        return parameters, next_bias, jnp.stack(losses).mean(), max_vio, difference, agree

    return step


def main():
    library, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40
    moe = moe_balance_jax.MoeBalance(library, "jax_moe_layer")
    keys = jax.random.split(jax.random.key(0), 3)
    batches = jax.random.normal(keys[0], (MICRO_BATCHES, TOKENS, HIDDEN))
    batches = batches.at[:, :, 0].add(1.5)  # what tokens have in common sends them to the same experts at first
    teacher = initial_parameters(keys[1])
    targets = jnp.stack([reference_layer(teacher, hidden, 0.0, 0)[0] for hidden in batches])
    parameters, bias = initial_parameters(keys[2]), moe.new_bias(EXPERTS)
    step, violations, losses, worst = make_step(moe), [], [], 0.0
    for number in range(steps):
        parameters, bias, loss, max_vio, difference, agree = step(parameters, bias, batches, targets)
        assert agree, f"step {number}: ids, counts or bias differ from the reference"
        worst = max(worst, float(difference))
        losses.append(float(loss))
        violations.append(float(max_vio))
        if number % 10 == 0 or number + 1 == steps:
            print(f"step {number:3}: loss {losses[-1]:.4f}, MaxVio {violations[-1]:.2f}")
    print(f"largest difference from the dense reference, in loss and gradients: {worst:.1e} of the largest element")
    assert worst < 2e-5, worst
    assert steps < 40 or (losses[-1] < 0.9 * losses[0] and violations[-1] < 0.5 * violations[0])


main()
