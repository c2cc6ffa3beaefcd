"""The same meta-gradient in JAX, run by the Python of ``.venv-peers``: nothing but JAX and NumPy.

``python jax_peer.py REQUEST.json``: the request names the size, the numbers (an npz), the repeats
and where to write. Written are the gradient (an npz) and CPU and wall seconds of every repeat.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

if hasattr(os, "sched_setaffinity"):  # its flags for one thread are not obeyed everywhere
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Tree = Any
FORMS = ("scan", "checkpointed steps", "checkpointed segments")
OVER = ("vmap", "map")
TRIALS = 2


def forward(weights: Tree, x: Any) -> list[Any]:
    """Input and every layer's activity, (B, n)."""
    path = [x]
    for w in weights[:-1]:
        path.append(jax.nn.relu(path[-1] @ w.T))
    return [*path, path[-1] @ weights[-1].T]


def step(size: Tree, feedback: Tree, rates: Tree, weights: Tree, shown: Tree) -> tuple[Tree, None]:
    """One presentation; see ``loop.changes``."""
    x, target = shown
    path = forward(weights, x)
    output = path[-1] if size["regression"] else jax.nn.softmax(path[-1])
    sent = target if size["credit"] == "target" else target - output
    count = x.shape[0]
    if size["credit"] == "backprop":
        after, error = [], sent
        for i in reversed(range(len(weights))):
            after.append(weights[i] + (error * (rates[i] / count)).T @ path[i])
            if i:
                error = (error @ weights[i]) * (path[i] > 0)
        return after[::-1], None
    told = [*(sent @ b.T for b in feedback), sent]
    after = []
    for i, (w, p) in enumerate(zip(weights, rates, strict=True)):
        z = size["mix"] * told[i] + (1 - size["mix"]) * path[i + 1]
        energy = (z * z).mean(0)
        z = z / (1 + energy) / count
        after.append(w + p * (z.T @ path[i] - (energy / (1 + energy))[:, None] * w))
    return after, None


def learned(size: Tree, form: str, parameters: Tree, x: Any, y: Any) -> Tree:
    """The weights after the stream x (T, B, d), y (T, B, K)."""
    weights, feedback, raw = parameters
    rates = [jnp.exp(r) if size["credit"] == "backprop" else jnp.tanh(r) for r in raw]
    one = partial(step, size, feedback, rates)
    if form == "scan":
        return lax.scan(one, weights, (x, y))[0]
    if form == "checkpointed steps":
        return lax.scan(jax.checkpoint(one), weights, (x, y))[0]
    count = x.shape[0]
    length = max(k for k in range(1, math.isqrt(count) + 1) if count % k == 0)

    def segment(weights: Tree, shown: Tree) -> tuple[Tree, None]:
        return lax.scan(one, weights, shown)

    cut = [a.reshape(count // length, length, *a.shape[1:]) for a in (x, y)]
    return lax.scan(jax.checkpoint(segment), weights, tuple(cut))[0]


def meta_gradient(size: Tree, form: str, over: str) -> Callable[..., Any]:
    """The compiled function of (parameters, data): mean query loss and its gradient."""

    def one(parameters: Tree, episode: Tree) -> Any:
        x, y, query_x, query_y = episode
        output = forward(learned(size, form, parameters, x, y), query_x)[-1]
        if size["regression"]:
            return jnp.square(output - query_y).mean()
        return -(query_y * jax.nn.log_softmax(output)).sum(-1).mean()

    def loss(parameters: Tree, data: Tree) -> Any:
        own = partial(one, parameters)
        return (jax.vmap(own)(data) if over == "vmap" else lax.map(own, data)).mean()

    return jax.jit(jax.value_and_grad(loss))


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU and wall seconds, and the result."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = jax.block_until_ready(call())
    return time.process_time() - cpu, time.perf_counter() - wall, found


def main(request: Tree) -> None:
    """Try every form, warm, and repeat the fastest."""
    size = request["size"]
    given = {name: jnp.asarray(value) for name, value in np.load(request["numbers"]).items()}
    kinds = ("weights", "feedback", "rates")
    names = [[n for n in given if n.startswith(kind)] for kind in kinds]
    parameters = tuple([given[n] for n in own] for own in names)
    data = tuple(given[n] for n in ("x", "y", "query_x", "query_y"))
    tried: dict[str, dict[str, Any]] = {}
    calls = {}
    every = request["every"]
    for over in OVER if size["episodes"] > 1 and every else OVER[:1]:
        for form in FORMS if every else FORMS[-1:]:
            function = meta_gradient(size, form, over)
            name = f"{form}, {over}" if size["episodes"] > 1 else form
            calls[name] = partial(function, parameters, data)
            _, first, found = timed(calls[name])
            tried[name] = {"first": first, "loss": float(found[0])}
            if every:
                tried[name]["cpu"] = min(timed(calls[name])[0] for _ in range(TRIALS))
    best = min(tried, key=lambda n: tried[n].get("cpu", 0.0))
    repeats = [timed(calls[best]) for _ in range(request["repeats"])]
    value, gradient = calls[best]()
    flat = {
        n: g for own, gs in zip(names, gradient, strict=True) for n, g in zip(own, gs, strict=True)
    }
    np.savez(request["gradient"], **{n: np.asarray(g) for n, g in flat.items()})
    answer = {
        "version": jax.__version__,
        "form": best,
        "forms": tried,
        "first": tried[best]["first"],
        "loss": float(value),
        "losses": [float(found[0]) for _, _, found in repeats],
        "cpu": [cpu for cpu, _, _ in repeats],
        "wall": [wall for _, wall, _ in repeats],
    }
    with open(request["answer"], "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    jax.config.update("jax_enable_x64", asked["double"])
    main(asked)
