"""The progress of a training, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.status import Every, Report, Smooth, Status

if TYPE_CHECKING:
    from studies.reproduce.phase import Phase


class Watch:
    """Turns batches into Status, a few times a second."""

    def __init__(
        self,
        report: Report,
        per_sweep: int,
        phases: Sequence[Phase],
        before: Sequence[Phase],
        epochs: int,
        done: int,
    ) -> None:
        first, each = (per_sweep * sum(p.sweeps for p in some) for some in (before, phases))
        self.report, self.total = report, first + epochs * each
        self.done = 0 if done < 0 else first + done * each
        self.accuracy: float | None = None
        self._due, self._loss, self._lost = Every(0.2), Smooth(), 0.0

    def __call__(self, loss: float, lost: float) -> None:
        self.done += 1
        self._lost += lost
        smooth = self._loss(loss)
        if self._due():
            told = smooth, self.accuracy, round(self._lost)
            self.report(Status("training", self.done, self.total, *told, unit="batches"))
