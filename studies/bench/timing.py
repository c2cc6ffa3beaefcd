"""Times taken in turn, so that whatever else the machine does meets every row alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from studies.bench.problem import Problem
from studies.bench.rows import Call

AGREE = 1e-5
"""Of a row's losses from one repeat to the next, relative."""


@dataclass
class Times:
    """One row's seconds: CPU time of all threads, and wall time."""

    first: float
    """Wall time of the first call of this process."""
    loss: float
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Spread:
    """Median and range."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return cls(statistics.median(values), min(values), max(values))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, PyTorch and the kernels compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(call: Call, device: torch.device) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and the loss of one call."""
    _wait(device)
    cpu, wall = time.process_time(), time.perf_counter()
    loss, _ = call()
    _wait(device)
    return time.process_time() - cpu, time.perf_counter() - wall, loss


def interleaved(
    calls: Mapping[str, Call],
    problem: Problem,
    repeats: int,
    limit: float = math.inf,
    around: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, Times]:
    """Every row once, then all of them in turn, ``repeats`` times over.

    Rows whose first call takes more than ``limit`` seconds are not repeated. ``around`` is called
    before each call of a row, to set what it runs under.

    Raises:
        RuntimeError: for a loss that is not finite or differs from repeat to repeat, and for
            numbers of the problem that a row has changed.
    """
    kept, device, found = problem.copy(), problem.x.device, {}
    for turn in range(repeats + 1):
        gc.collect()
        for name, call in calls.items():
            if turn and found[name].first > limit:
                continue
            if around is not None:
                around[name]()
            cpu, wall, loss = timed(call, device)
            if turn == 0:
                found[name] = Times(wall, loss)
            else:
                found[name].cpu.append(cpu)
                found[name].wall.append(wall)
            where = f"{problem.size.name}, {name}, call {turn}"
            if not math.isfinite(loss) or not math.isclose(loss, found[name].loss, rel_tol=AGREE):
                raise RuntimeError(f"{where}: the loss is {loss}, and was {found[name].loss}")
            if not problem.same(kept):
                raise RuntimeError(f"{where}: the inputs were changed")
    return found


def ratios(reference: Sequence[float], other: Sequence[float]) -> Spread:
    """How many times as fast the other is, turn by turn."""
    return Spread.of([a / max(b, 1e-9) for a, b in zip(reference, other, strict=True)])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
