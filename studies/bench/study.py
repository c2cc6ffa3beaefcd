"""Everything that is measured of one size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from studies.bench.agreement import agreement, fits
from studies.bench.jax_row import run_jax
from studies.bench.memory import peak_bytes
from studies.bench.problem import Problem, make_problem
from studies.bench.rows import FUSED, JAX, LOOP, ROWS, Call, LeftOut
from studies.bench.sizes import Size
from studies.bench.timing import AGREE, Spread, Times, interleaved, ratios

LIMIT = 120.0
"""Seconds of a first call, compiling included, from which on a row is not repeated."""
WEIGHED = (LOOP, FUSED)
"""The rows whose memory is measured."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Line:
    """One row of one size; seconds, and how many times as fast as the loop."""

    size: str
    row: str
    cpu: Spread
    wall: Spread
    first: float
    loss: float
    cpu_ratio: Spread | None
    wall_ratio: Spread | None
    error: float
    """Of the meta-gradient in double precision, relative to the loop's."""
    compared: int
    """The presentations that it was compared over."""
    note: str = ""


@dataclass
class Measured:
    """One size: a line for each row, why others are not there, and what else there is."""

    size: Size
    lines: dict[str, Line] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    """{row: bytes}"""
    threads: Spread | None = None
    """How many times as fast two threads are as one, wall time of ``fused``."""

    def record(self) -> dict[str, Any]:
        """For ``result.json``."""
        return {
            "size": self.size.record(),
            "rows": [asdict(line) for line in self.lines.values()],
            "left_out": self.left_out,
            "peak_bytes": self.peaks,
            "two_threads": None if self.threads is None else asdict(self.threads),
        }


def measure(
    size: Size, rows: Sequence[str], device: torch.device, seed: int, repeats: int, say: Say
) -> Measured:
    """All rows but JAX's: times, agreement and a second thread."""
    done = Measured(size)
    double = make_problem(size, seed).to(device)
    single = double.to(dtype=torch.float32)
    calls: dict[str, Call] = {}
    for name in (n for n in (LOOP, *rows) if n != JAX):
        try:
            if not fits(size, name):
                raise LeftOut("its graph would not fit the free memory")
            calls[name] = ROWS[name].prepare(single)
        except LeftOut as reason:
            done.left_out[name] = str(reason)
    say(f"{size.name}: timing {', '.join(calls)}")
    times = interleaved(calls, single, repeats, LIMIT)
    for name in [n for n, t in times.items() if not t.cpu]:
        done.left_out[name] = f"the first call took {times.pop(name).first:.0f} s"
        del calls[name]
    say(f"{size.name}: gradients in double precision")
    compared, errors = agreement(double, list(calls))
    for name, own in times.items():
        done.lines[name] = _line(size, name, own, times.get(LOOP), errors[name], compared)
    if FUSED in calls and device.type == "cpu":
        done.threads = _second_thread(calls[FUSED], single, repeats, done)
    return done


def add_memory(done: Measured, device: torch.device, seed: int, say: Say) -> None:
    """The peaks of the rows that are weighed."""
    say(f"{done.size.name}: memory")
    for name in (n for n in WEIGHED if n in done.lines):
        try:
            done.peaks[name] = peak_bytes(done.size, name, device.type, seed)
        except LeftOut as reason:
            done.left_out[f"memory of {name}"] = str(reason)


def add_jax(
    done: Measured, device: torch.device, seed: int, repeats: int, say: Say, every: bool = True
) -> None:
    """The row of JAX, which comes last: its threads would disturb the others. ``every`` tries all
    of its forms and not just one.
    """
    size = done.size
    say(f"{size.name}: {JAX}")
    try:
        double = make_problem(size, seed).to(device)
        answer, _ = run_jax(double.to(dtype=torch.float32), repeats, every)
        compared, errors = agreement(double, [JAX])
    except LeftOut as reason:
        done.left_out[JAX] = str(reason)
        return
    times = Times(answer["first"], answer["loss"], answer["cpu"], answer["wall"])
    beside = done.lines.get(LOOP)
    if beside is not None and abs(beside.loss - times.loss) > 10 * AGREE * abs(beside.loss):
        raise RuntimeError(f"{size.name}, {JAX}: the loss is {times.loss}, not {beside.loss}")
    # The loop is not run in turn with it, so each repeat is set against the loop's median.
    reference = beside and Times(
        0.0, beside.loss, [beside.cpu.median] * repeats, [beside.wall.median] * repeats
    )
    done.lines[JAX] = _line(size, JAX, times, reference, errors[JAX], compared, answer["form"])


def _line(
    size: Size,
    name: str,
    own: Times,
    loop: Times | None,
    error: float,
    compared: int,
    note: str = "",
) -> Line:
    return Line(
        size.name,
        name,
        Spread.of(own.cpu),
        Spread.of(own.wall),
        own.first,
        own.loss,
        None if loop is None else ratios(loop.cpu, own.cpu),
        None if loop is None else ratios(loop.wall, own.wall),
        error,
        compared,
        note,
    )


def _second_thread(call: Call, problem: Problem, repeats: int, done: Measured) -> Spread | None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if (cores or 1) < 2:
        done.left_out["two threads"] = "there is one core"
        return None
    before = torch.get_num_threads()

    def warm(count: int) -> None:
        torch.set_num_threads(count)
        call()  # the first one with another number of threads starts them

    around = {n: partial(warm, int(n)) for n in ("1", "2")}
    try:
        times = interleaved({"1": call, "2": call}, problem, repeats, around=around)
    finally:
        torch.set_num_threads(before)
    return ratios(times["1"].wall, times["2"].wall)
