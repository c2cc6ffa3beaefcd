"""Whether the rows compute the same: meta-gradients in double precision beside the loop's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from studies.bench import loop
from studies.bench.jax_row import run_jax
from studies.bench.problem import Problem
from studies.bench.rows import JAX, ROWS
from studies.bench.sizes import Size

EPISODES = 2
"""Of a size, at most, whose gradients are compared."""
SHARE = 0.7
"""Of the free memory that a graph may take."""


def error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest difference of a tensor's gradient, relative to its largest entry; the largest
    over all tensors.
    """
    assert found.keys() == wanted.keys()
    worst = 0.0
    for name, right in wanted.items():
        apart = (found[name] - right).abs().max() / right.abs().max().clamp(min=1e-300)
        worst = max(worst, float(apart.nan_to_num(nan=torch.inf)))
    return worst


def agreement(problem: Problem, names: list[str]) -> tuple[int, dict[str, float]]:
    """The presentations compared, fewer than the stream has where the loop's graph would not fit
    the memory, and each row's error. The problem is in double precision.
    """
    size = problem.size
    shown = min(size.presentations, fitting(size, EPISODES))
    part = problem.cut(min(size.episodes, EPISODES), shown)
    _, wanted = loop.meta_gradient(part)
    found = {}
    for name in names:
        given = run_jax(part, 0)[1] if name == JAX else ROWS[name].prepare(part)()[1]
        found[name] = error(given, wanted)
    return shown, found


def fitting(size: Size, together: int) -> int:
    """Presentations whose graph fits the memory in double precision, at least one."""
    together = min(size.episodes, together)
    each = size.graph_bytes(together, 8) / size.presentations
    return max(1, int(SHARE * free_bytes() / each))


def fits(size: Size, name: str) -> bool:
    """Whether a row's graph fits the memory in single precision, by estimate."""
    row = ROWS[name]
    together = size.episodes if row.together else 1
    return not row.graph or size.graph_bytes(together, 4) < SHARE * free_bytes()


def free_bytes() -> int:
    """Memory that processes can still get; 8 GB where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(v.split()[1]) * 1024 for v in lines if v.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 * 10**9
