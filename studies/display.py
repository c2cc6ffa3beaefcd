"""Live progress of one or several jobs: bars by rich where it can, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self, TextIO

from studies.status import Every, Report, Status

PLAIN_SECONDS = 5.0


class Display(ABC):
    """Shows the Status of jobs while it is entered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def show(self, job: str, status: Status) -> None:
        """Take note of a new Status."""

    @abstractmethod
    def done(self, job: str, outcome: str) -> None:
        """A job has ended, with an outcome in a few words."""

    def reporter(self, job: str) -> Report:
        """Where one job sends its Status."""
        return lambda status: self.show(job, status)


def make_display(jobs: Sequence[str], stream: TextIO | None = None) -> Display:
    """Bars on a terminal that rich can draw on, else lines; on ``stderr`` where nothing is given.

    What is shown are smoothed training scores, not results.
    """
    where: TextIO = stream or sys.stderr  # type: ignore[assignment] - None only without a console
    if where.isatty():
        try:
            return RichDisplay(jobs, where)
        except ImportError:
            pass
    return PlainDisplay(jobs, where)


class PlainDisplay(Display):
    """One line for each job every few seconds."""

    def __init__(self, jobs: Sequence[str], stream: TextIO, seconds: float = PLAIN_SECONDS) -> None:
        self._width = max((len(job) for job in jobs), default=0)
        self._stream, self._seconds = stream, seconds
        self._due: dict[str, Every] = {}
        self._pace: dict[str, Pace] = {}

    def show(self, job: str, status: Status) -> None:
        pace = self._pace.setdefault(job, Pace())
        pace.see(status)
        # A stage that is over has been seen; the next one says so.
        if self._due.setdefault(job, Every(self._seconds))():
            words = [f"{status.stage} {status.done}/{status.total}", scores(status), pace.text()]
            self._line(job, "  ".join(word for word in words if word))

    def done(self, job: str, outcome: str) -> None:
        self._line(job, f"done  {outcome}")

    def _line(self, job: str, text: str) -> None:
        print(f"{job.ljust(self._width)}  {text}", file=self._stream, flush=True)


class RichDisplay(Display):
    """One bar for each job. Raises ImportError without rich."""

    def __init__(self, jobs: Sequence[str], stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(file=stream)
        self._wide = console.width >= 110
        columns = [
            TextColumn("{task.description}"),
            *([BarColumn(bar_width=20)] if self._wide else []),
            TextColumn("{task.fields[stage]}", style="dim"),
            TextColumn("{task.fields[scores]}"),
            TextColumn("{task.fields[pace]}", style="dim"),
        ]
        self._progress = Progress(*columns, console=console, refresh_per_second=5)
        self._pace = {job: Pace() for job in jobs}
        waiting: dict[str, Any] = {"stage": "waiting", "scores": "", "pace": ""}
        self._ids = {job: self._progress.add_task(job, total=None, **waiting) for job in jobs}
        for task in self._ids.values():
            self._progress.update(task, total=1, completed=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, job: str, status: Status) -> None:
        self._pace[job].see(status)
        self._progress.update(
            self._ids[job],
            total=status.total,
            completed=status.done,
            stage=f"{status.stage} {status.done}/{status.total}",
            scores=scores(status),
            pace=self._pace[job].text(short=not self._wide),
        )

    def done(self, job: str, outcome: str) -> None:
        self._progress.update(
            self._ids[job], total=1, completed=1, stage="done", scores=outcome, pace=""
        )


class Pace:
    """Steps for each second, and the time left of a stage."""

    def __init__(self) -> None:
        self._first: tuple[str, int, float] | None = None
        self._last: Status | None = None

    def see(self, status: Status) -> None:
        """Take note of a Status; a new stage starts anew."""
        if self._first is None or self._first[0] != status.stage:
            self._first = (status.stage, status.done, time.monotonic())
        self._last = status

    def text(self, short: bool = False) -> str:
        """Such as ``12.3 steps/s, 0:41 left``; empty before there is anything to go by."""
        if self._first is None or self._last is None:
            return ""
        _, first, began = self._first
        elapsed, status = time.monotonic() - began, self._last
        if status.done <= first or elapsed <= 0:
            return ""
        rate = (status.done - first) / elapsed
        left = (status.total - status.done) / rate
        if short:
            return f"{rate:.3g}/s {clock(left)}"
        return f"{rate:.3g} {status.unit}/s, {clock(left)} left"


def clock(seconds: float) -> str:
    """``0:41``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def scores(status: Status) -> str:
    """Loss, accuracy and how many episodes were left out, as far as there is any."""
    words = []
    if status.loss is not None:
        words.append(f"loss {status.loss:.3g}")
    if status.accuracy is not None:
        words.append(f"acc {100 * status.accuracy:.0f} %")
    if status.diverged:
        words.append(f"{status.diverged} left out")
    return " ".join(words)
