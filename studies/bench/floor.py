"""What the machine could do at best, measured, and how far a fused meta-gradient is from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from studies.bench.rows import LeftOut
from studies.bench.sizes import Size

DEGREE = 16
TRIES = 7


@dataclass(frozen=True)
class Rates:
    """One core, single precision, as Numba compiles a loop."""

    multiply_adds: float
    """For each second, in registers: polynomials of numbers that stay in the first cache."""
    near: float
    """Bytes for each second that a <- b + s c moves in arrays of 128 kB altogether."""
    far: float
    """The same in 192 MB, which no cache holds."""


def multiply_adds(size: Size) -> float:
    """What one meta-gradient of all episodes needs of them, neuron by neuron.

    For each synapse and presentation of B examples: B + (B + 2) forward, B + 2 to have the weights
    again on the way back, and 2 B + 4 there, with 2 B more where there is a layer below. For each
    synapse and query 2, and 1 more where there is a layer below.
    """
    b, total = size.batch, 0
    for i, (n_out, n_in) in enumerate(size.layers):
        below = i > 0
        stream = 5 * b + 8 + 2 * b * below
        total += n_out * n_in * (stream * size.presentations + (2 + below) * size.queries)
    return float(total * size.episodes)


def least_bytes(size: Size) -> float:
    """Read or written at least once, in single precision: weights and plasticity, the episode's
    own last weights and the gradients of all three, and every activity with its gradient.
    """
    shown = size.presentations * size.batch + size.queries
    return 4.0 * (4 + 2 * size.episodes) * size.synapses + 8.0 * size.episodes * shown * sum(
        size.widths
    )


def floor_seconds(size: Size, rates: Rates) -> float:
    """The larger of what arithmetic and what memory takes, at the measured rates."""
    return max(multiply_adds(size) / rates.multiply_adds, least_bytes(size) / rates.far)


def measure(scale: float = 1.0) -> Rates:
    """On one thread; ``scale`` below 1 is quicker and rougher.

    Raises:
        LeftOut: without Numba.
    """
    try:
        from numba import njit
    except ImportError:
        raise LeftOut("numba is not installed: pip install numba") from None

    def polynomial(x: Any, out: Any, coefficients: Any, rounds: int) -> None:
        for _ in range(rounds):
            for i in range(x.shape[0]):
                v = out[i]
                for k in range(DEGREE):
                    v = v * x[i] + coefficients[k]
                out[i] = v

    def triad(a: Any, b: Any, c: Any, s: Any, rounds: int) -> None:
        for _ in range(rounds):
            for i in range(a.shape[0]):
                a[i] = b[i] + s * c[i]

    compiled = njit(fastmath={"contract"}, error_model="numpy")
    horner, stream = compiled(polynomial), compiled(triad)
    x = np.full(2048, 0.5, np.float32)
    out, coefficients = np.zeros_like(x), np.full(DEGREE, 0.1, np.float32)
    rounds = max(1, int(5000 * scale))
    best = _best(lambda n: horner(x, out, coefficients, n), rounds)
    near = _moved(stream, 128 * 1024 // 12, max(1, int(20_000 * scale)))
    far = _moved(stream, max(1024, int(16 * 1024**2 * scale)), 3)
    return Rates(len(x) * DEGREE * rounds / best, near, far)


def _moved(stream: Callable[..., None], length: int, rounds: int) -> float:
    a, b, c = (np.ones(length, np.float32) for _ in range(3))
    scalar = np.float32(0.5)
    return 12 * length * rounds / _best(lambda n: stream(a, b, c, scalar, n), rounds)


def _best(function: Callable[[int], None], rounds: int) -> float:
    function(1)
    found = []
    for _ in range(TRIES):
        began = time.perf_counter()
        function(rounds)
        found.append(time.perf_counter() - began)
    return min(found)
