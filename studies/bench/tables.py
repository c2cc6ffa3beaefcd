"""What was measured, in tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studies.bench.floor import Rates, floor_seconds, least_bytes, multiply_adds
from studies.bench.rows import FUSED, JAX, LOOP
from studies.bench.scaling import Curve
from studies.bench.study import Line, Measured
from studies.bench.timing import Spread

Table = tuple[list[str], list[list[str]]]


def speed_table(done: Measured) -> Table:
    """A line for each row of one size."""
    head = ["", "CPU ms", "range", "wall ms", "range", "× loop, CPU", "range", "× loop, wall"]
    head += ["first call ms", "gradient apart"]
    return head, [
        [
            line.row,
            *_milliseconds(line.cpu),
            *_milliseconds(line.wall),
            *_times(line.cpu_ratio),
            _times(line.wall_ratio)[0],
            number(1000 * line.first),
            f"{line.error:.0e}",
        ]
        for line in done.lines.values()
    ]


def notes(done: Measured) -> list[str]:
    """What the table of one size does not say."""
    found = [f"left out: {name}: {why}" for name, why in done.left_out.items()]
    found += [f"{line.row}: {line.note}" for line in done.lines.values() if line.note]
    short = {line.compared for line in done.lines.values()} - {done.size.presentations}
    if short:
        found.append(f"gradients compared over the first {min(short)} presentations only")
    return found


def memory_table(sizes: Sequence[Measured]) -> Table:
    """Peak memory of one meta-gradient, in MB (10^6 bytes)."""
    head = ["peak MB", LOOP, FUSED, "loop / fused"]
    return head, [
        [
            done.size.name,
            *(number(done.peaks[n] / 1e6) if n in done.peaks else "–" for n in (LOOP, FUSED)),
            "–" if (share := saved(done)) is None else number(share),
        ]
        for done in sizes
        if done.peaks
    ]


def saved(done: Measured) -> float | None:
    """How many times as much memory the loop takes as ``fused``."""
    if LOOP not in done.peaks or FUSED not in done.peaks:
        return None
    return done.peaks[LOOP] / max(done.peaks[FUSED], 1)


def floor_table(sizes: Sequence[Measured], rates: Rates) -> Table:
    """The fused rows beside the measured rates of the machine, and with a second thread."""
    head = ["fused", "10^9 multiply-adds", "least MB", "floor ms", "CPU ms", "× floor"]
    head.append("× by 2 threads, wall")
    body = []
    for done in sizes:
        line = done.lines.get(FUSED)
        if line is None:
            continue
        floor = floor_seconds(done.size, rates)
        body.append(
            [
                done.size.name,
                number(multiply_adds(done.size) / 1e9),
                number(least_bytes(done.size) / 1e6),
                number(1000 * floor),
                number(1000 * line.cpu.median),
                number(line.cpu.median / floor),
                _times(done.threads)[0],
            ]
        )
    return head, body


def scaling_table(curves: Sequence[Curve]) -> Table:
    """The slopes."""
    head = ["seconds grow as", *dict.fromkeys(c.row for c in curves)]
    body = []
    for axis in dict.fromkeys(c.axis for c in curves):
        own = {c.row: f"{axis}^{c.slope:.2f}" for c in curves if c.axis == axis}
        span = next(f"{c.values[0]}..{c.values[-1]}" for c in curves if c.axis == axis)
        body.append([f"{axis} {span}", *(own.get(row, "–") for row in head[1:])])
    return head, body


def rates_text(rates: Rates) -> str:
    """The measured rates in a sentence."""
    return (
        f"One core: {rates.multiply_adds / 1e9:.0f} 10^9 multiply-adds/s, "
        f"{rates.near / 1e9:.0f} GB/s in the cache, {rates.far / 1e9:.0f} GB/s from memory."
    )


def headline(sizes: Sequence[Measured], preset: str, gpu: bool) -> str:
    """The gist in one line."""

    def told(row: str) -> str:
        found = []
        for done in sizes:
            ratio = _ratio(done.lines.get(row), gpu)
            if ratio is not None:
                found.append(f"{number(ratio)} on {done.size.name}")
        return ", ".join(found)

    parts = [f"{row} {text}" for row in (FUSED, JAX) if (text := told(row))]
    memory = [f"{number(s)} on {d.size.name}" for d in sizes if (s := saved(d)) is not None]
    worst = max((line.error for d in sizes for line in d.lines.values()), default=0.0)
    text = f"one meta-gradient, times as fast as the plain loop ({'wall' if gpu else 'CPU'} time, "
    text += f"one thread): {'; '.join(parts) or 'plain ' + told('plain')}"
    if memory:
        text += f"; loop's peak memory over fused's: {', '.join(memory)}"
    return f"{text}; gradients agree to {worst:.0e} in double precision (preset {preset})"


def _ratio(line: Line | None, gpu: bool) -> float | None:
    spread = None if line is None else line.wall_ratio if gpu else line.cpu_ratio
    return None if spread is None else spread.median


def _milliseconds(spread: Spread) -> tuple[str, str]:
    low, high = (number(1000 * v) for v in (spread.least, spread.most))
    return number(1000 * spread.median), f"{low}–{high}"


def _times(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "–", ""
    return f"{spread.median:.2f}", f"{spread.least:.2f}–{spread.most:.2f}"


def number(value: float) -> str:
    """Three digits, and no exponent below a million."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """Parts of the study that are not there."""
    return [f"left out: {name}: {why}" for name, why in left_out.items()]
