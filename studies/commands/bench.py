"""``bench``: how fast a meta-gradient is, and how much memory it takes."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from metaplastic.errors import ConfigurationError
from studies.assembly import pick_device
from studies.bench import figures, floor
from studies.bench.memory import compile_seconds
from studies.bench.rows import FUSED, JAX, PEERS, LeftOut
from studies.bench.scaling import Curve, record, scaling
from studies.bench.sizes import REPEATS, SCALING, SIZES, chosen, pick
from studies.bench.study import Measured, add_jax, add_memory, measure
from studies.bench.tables import (
    floor_table,
    headline,
    left_out_lines,
    memory_table,
    notes,
    number,
    rates_text,
    scaling_table,
    speed_table,
)
from studies.bench.timing import threads
from studies.commands.base import Command
from studies.folders import open_folder
from studies.report import left_out_text, save_figure
from studies.results import Result
from studies.words import text_table

PRESET = "quick"
BUSY = 0.5
"""Processes that compute beside this one from which on the tables say so."""
EXAMPLES = """examples:
  python -m studies bench --preset smoke
  python -m studies bench --sizes small,middle --peers fused,higher --repeats 20
  make peers && python -m studies bench --preset acceptance --out runs/bench"""
VERSIONS = ("numba", "triton", "higher", "learn2learn")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``bench``."""
    parser.add_argument("--sizes", metavar="A,B", help="some sizes only (all), see below")
    parser.add_argument("--peers", metavar="A,B", help="some rows beside the loop only (all)")
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="turns of all rows of a size (the preset's)"
    )
    parser.epilog = "\n\n".join(
        [
            _listed("sizes (quick and smoke shrink them)", {n: str(s) for n, s in SIZES.items()}),
            _listed("rows, beside the loop", PEERS),
            EXAMPLES,
        ]
    )


def run(arguments: argparse.Namespace) -> None:
    """Run ``bench``."""
    began, device = time.monotonic(), pick_device(arguments.device)
    preset, seed = arguments.preset or PRESET, arguments.seed or 0
    sizes = chosen(_words(arguments.sizes), preset)
    rows = pick(_words(arguments.peers), PEERS, "peer")
    repeats = REPEATS[preset] if arguments.repeats is None else arguments.repeats
    if repeats < 1:
        raise ConfigurationError(f"--repeats counts from 1, got {repeats}.")
    out = open_folder(arguments.out, "bench", arguments.overwrite)
    load, gpu = os.getloadavg()[0], device.type == "cuda"
    left_out: dict[str, str] = {}
    say = partial(print, flush=True)
    with threads(1):
        done = [measure(size, rows, device, seed, repeats, say) for size in sizes]
        curves = scaling(SCALING[preset], rows, device, seed, repeats, say)
        rates = _rates(preset, gpu, left_out)
        cold = {}
        if preset == "smoke":
            left_out["compile time, memory beyond the first size"] = "preset smoke does not wait"
        else:
            cold = _compile(done, device, say)
        for one in done[:1] if preset == "smoke" else done:
            add_memory(one, device, seed, say)
        if JAX in rows:
            for one in done:
                add_jax(one, device, seed, repeats, say, every=preset != "smoke")
    result = Result(
        command="bench",
        config={
            "preset": preset,
            "repeats": repeats,
            "peers": rows,
            "summary": [one.record() for one in done],
            "scaling": record(SCALING[preset], curves),
            "rates": None if rates is None else asdict(rates),
            "compile_seconds": cold,
            "left_out": left_out,
            "load": load,
            "versions": _versions(),
        },
        seeds=[seed],
        rows=[row for one in done for row in _rows(one, seed)],
        headline=headline(done, preset, gpu),
        seconds=time.monotonic() - began,
        device=device,
    )
    result.write(out)
    missing = _pictures(out, done, curves, gpu)
    for one in done:
        print(f"\n{one.size.name}: {one.size}\n{text_table(*speed_table(one))}")
        print("\n".join(notes(one)))
    tables = [memory_table(done), scaling_table(curves)]
    tables += [floor_table(done, rates)] if rates is not None else []
    for table in tables:
        if table[1]:
            print(f"\n{text_table(*table)}")
    print()
    if rates is not None:
        print(rates_text(rates))
    for name, seconds in cold.items():
        print(f"Compiling for {name} took {number(seconds)} s; the code is then kept on disk.")
    for line in left_out_lines(left_out):
        print(line)
    if load > BUSY:
        print(f"The machine was busy (load {load:.1f} at the start): run it again at rest.")
    if missing:
        print(left_out_text(missing))
    print(f"Results and pictures are in {out}")
    print(result.headline)


def _rates(preset: str, gpu: bool, left_out: dict[str, str]) -> floor.Rates | None:
    if gpu:
        left_out["floor"] = "rates are measured on a CPU only"
        return None
    try:
        return floor.measure(0.02 if preset == "smoke" else 1.0)
    except LeftOut as reason:
        left_out["floor"] = str(reason)
        return None


def _compile(done: list[Measured], device: torch.device, say: Any) -> dict[str, float]:
    """Seconds that the kernels take to compile, by what reaches the synapses."""
    found: dict[str, float] = {}
    for one in done:
        kind = f"{one.size.credit} signals"
        if FUSED not in one.lines or kind in found:
            continue
        say(f"compiling for {kind} in a fresh process")
        try:
            found[kind] = compile_seconds(one.size, FUSED, device.type)
        except LeftOut as reason:
            one.left_out["compile time"] = str(reason)
    return found


def _rows(done: Measured, seed: int) -> list[dict[str, Any]]:
    return [
        {
            "task": done.size.name,
            "learner": line.row,
            "metagradient": "unrolled",
            "seed": seed,
            "steps": 0,
            "episodes": done.size.episodes,
            "loss": line.loss,
            "accuracy": None,
            "ci95": None,
            "per_task": None,
            "forgetting": None,
            "diverged": 0,
        }
        for line in done.lines.values()
    ]


def _pictures(out: Path, done: list[Measured], curves: list[Curve], gpu: bool) -> list[str]:
    drawn = {
        "speed.png": partial(figures.speed_figure, done, gpu),
        "memory.png": partial(figures.memory_figure, done),
        "scaling.png": partial(figures.scaling_figure, curves, gpu),
    }
    return [name for name, draw in drawn.items() if save_figure(out / name, draw)]


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _listed(title: str, texts: Mapping[str, str]) -> str:
    width = max(map(len, texts))
    return "\n".join([f"{title}:", *(f"  {n.ljust(width)}  {t}" for n, t in texts.items())])


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


COMMAND = Command(
    name="bench",
    about="time meta-gradients beside a plain loop and other libraries",
    description="One meta-gradient (inner loop, query loss, and the gradient with respect to "
    "initial weights, feedback and plasticity), taken in several ways by turns on one thread: "
    "median CPU and wall time with their ranges, how many times as fast as a plain PyTorch loop, "
    "and how far the gradients are apart in double precision. Then peak memory, how time grows "
    "with the stream, the episodes and the width, the floor that the machine's measured rates set, "
    "and a second thread. What cannot run is left out, and why is said. Take times on a machine "
    "that does nothing else.",
    add_options=add_options,
    run=run,
    preset=PRESET,
)
