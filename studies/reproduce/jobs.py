"""One method on images, one seed, in a process and a folder of its own."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metaplastic.errors import CheckpointError, DataError, DivergenceError
from studies.reproduce.base import Method, Setup, Sizes
from studies.reproduce.outcome import Outcome
from studies.reproduce.paper import Job
from studies.reproduce.training import Line, Training
from studies.results import Result, finite, read_result
from studies.status import Report
from tasks.images import Images, Scaling, load_images

CHECKPOINT = "checkpoint.pt"
CURVE = "curve.jsonl"
ANEW = "name another --out, or pass --overwrite to start anew."


@dataclass(frozen=True)
class ImageJob(Job):
    """One training of one method, which goes on behind the last epoch of its checkpoint."""

    part: str
    data: str
    scaling: Scaling
    method: Method
    sizes: Sizes
    seed: int
    level: float | None
    out: Path
    device: str

    @property
    def setting(self) -> dict[str, Any]:
        """All that decides its outcome."""
        sizes = {name: value for name, value in asdict(self.sizes).items() if name != "seeds"}
        about = {"method": self.method.name, "seed": self.seed, "level": self.level}
        images = {"part": self.part, "data": self.data, "scaling": self.scaling}
        return finite({**about, **images, **sizes, "options": dict(self.method.options)})

    def row(self) -> dict[str, Any]:
        """Its row of ``result.json``."""
        return read_result(self.out)["rows"][0]

    def work(self, report: Report) -> Outcome:
        """Train and score one method; what was done before is not done again.

        Raises:
            CheckpointError: for a checkpoint that is damaged or of another setting.
        """
        ended = self._ended()
        if ended is not None:
            return ended
        began, before = time.monotonic(), 0.0
        images = read_images(self.data, self.scaling, self.sizes, self.device)
        training = make_training(self, images)
        if (self.out / CHECKPOINT).is_file():
            extra = training.resume(self.out / CHECKPOINT)
            self._check(extra["setting"])
            before = extra["seconds"]

        def save() -> None:
            seconds = before + time.monotonic() - began
            training.save(self.out / CHECKPOINT, {"setting": self.setting, "seconds": seconds})
            write_curve(self.out / CURVE, training.curve)

        diverged = None
        try:
            training.run(self.sizes.epochs, report, save)
        except DivergenceError as reason:
            diverged = str(reason)
        seconds = before + time.monotonic() - began
        outcome = self._outcome(finite(training.curve), diverged)
        result = Result(
            command="reproduce",
            config={"setting": self.setting, "curve": outcome.curve, "diverged": diverged},
            seeds=[self.seed],
            rows=[outcome.row(self.sizes.epochs, len(images.test))],
            headline=f"{self.out.name}: {outcome.words}",
            seconds=seconds,
            device=torch.device(self.device),
        )
        result.write(self.out)
        return outcome

    def _ended(self) -> Outcome | None:
        """What it came to in an earlier call."""
        try:
            config = read_result(self.out)["config"]
        except DataError:
            return None  # not done yet, or interrupted while writing
        self._check(config["setting"])
        return self._outcome(config["curve"], config["diverged"])

    def _outcome(self, curve: list[Line], diverged: str | None) -> Outcome:
        return Outcome(self.part, self.method.name, self.seed, self.level, curve, diverged)

    def _check(self, kept: dict[str, Any]) -> None:
        if kept != json.loads(json.dumps(self.setting)):
            raise CheckpointError(f"{self.out} was trained with other options or sizes: {ANEW}")


def read_images(data: str, scaling: Scaling, sizes: Sizes, device: str) -> Images:
    """The images of a job."""
    read = load_images(data, images=sizes.images, scaling=scaling, device=device)
    validation, test = read.validation.first(sizes.validation), read.test.first(sizes.test)
    return replace(read, validation=validation, test=test)


def make_training(job: ImageJob, images: Images) -> Training:
    """The training of a job at its start."""
    shape = tuple(images.train.x.shape[1:])
    setup = Setup(shape, images.classes, job.seed, job.sizes, job.method.options, job.level)
    trainee = job.method.build(setup)
    return Training(
        trainee.learner.to(job.device),  # in place: the optimisers keep their Parameters
        images,
        trainee.phases,
        before=trainee.before,
        probes=trainee.probes,
        batch=job.sizes.batch,
        seed=job.seed,
    )


def write_curve(path: Path, curve: list[Line]) -> None:
    """One JSON line for each epoch."""
    lines = [json.dumps(finite(line), allow_nan=False) + "\n" for line in curve]
    path.write_text("".join(lines), encoding="utf-8")
