"""How time grows with the stream, the episodes and the width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from studies.bench.problem import make_problem
from studies.bench.rows import FUSED, LOOP, ROWS, LeftOut
from studies.bench.sizes import Scaling
from studies.bench.study import LIMIT, Say
from studies.bench.timing import Spread, interleaved

DRAWN = (LOOP, FUSED)
REPEATS = 5


@dataclass(frozen=True)
class Curve:
    """Seconds of one row along one axis."""

    axis: str
    row: str
    values: tuple[int, ...]
    seconds: tuple[Spread, ...]
    slope: float
    """Least squares in logarithms: seconds grow as value ** slope."""


def scaling(
    wanted: Scaling,
    rows: Sequence[str],
    device: torch.device,
    seed: int,
    repeats: int,
    say: Say,
) -> list[Curve]:
    """A curve for each axis, of the loop and of fused if it is among the rows; CPU time, or wall
    time on a GPU.
    """
    curves = []
    for axis, sizes in wanted.axes().items():
        say(f"scaling with {axis}: {', '.join(map(str, sizes))}")
        found: dict[str, dict[int, Spread]] = {}
        for value, size in sizes.items():
            problem = make_problem(size, seed).to(device, torch.float32)
            calls = {}
            for name in (n for n in DRAWN if n in (LOOP, *rows)):
                try:
                    calls[name] = ROWS[name].prepare(problem)
                except LeftOut:
                    continue
            times = interleaved(calls, problem, min(repeats, REPEATS), LIMIT)
            for name, own in times.items():
                taken = own.wall if device.type == "cuda" else own.cpu
                if taken:
                    found.setdefault(name, {})[value] = Spread.of(taken)
        curves += [_curve(axis, name, row) for name, row in found.items()]
    return curves


def slope(values: list[int], seconds: list[float]) -> float:
    """Of log seconds over log values; nan for fewer than two."""
    if len(values) < 2:
        return float("nan")
    return float(np.polyfit(np.log(values), np.log(np.maximum(seconds, 1e-9)), 1)[0])


def _curve(axis: str, name: str, row: Mapping[int, Spread]) -> Curve:
    medians = [s.median for s in row.values()]
    return Curve(axis, name, tuple(row), tuple(row.values()), slope(list(row), medians))


def record(wanted: Scaling, curves: list[Curve]) -> dict[str, Any]:
    """For ``result.json``."""
    return {"base": wanted.base.record(), "curves": [asdict(curve) for curve in curves]}
