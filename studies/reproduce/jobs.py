"""One method, one seed, in a process and a folder of its own; goes on where it was interrupted."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metaplastic.errors import CheckpointError, ConfigurationError, DataError, DivergenceError
from studies.folders import open_folder, subrun
from studies.reproduce.base import Chosen, Method, Setup, Sizes
from studies.reproduce.outcome import Outcome
from studies.reproduce.training import Line, Training
from studies.results import Result, finite, read_result
from studies.status import Report
from tasks.images import Images, load_images

CONFIG = "config.json"
CHECKPOINT = "checkpoint.pt"
CURVE = "curve.jsonl"


@dataclass(frozen=True)
class Job:
    """One training of one method."""

    data: str
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
        return finite({**about, "data": self.data, **sizes, "options": dict(self.method.options)})


def make_jobs(data: str, wanted: Chosen, sizes: Sizes, out: Path, device: str) -> dict[str, Job]:
    """Every job by the name of its folder: all methods with one seed after another, then the
    sweep.
    """
    found = {
        f"{method.name}-{seed}": (method, sizes, seed, None)
        for seed in sizes.seeds
        for method in wanted.methods
    }
    if wanted.sweep is not None:
        found |= {
            f"{method.name}-{wanted.sweep.name}-{level:g}-{seed}": (
                method,
                wanted.sweep.sizes,
                seed,
                level,
            )
            for seed in wanted.sweep.sizes.seeds
            for method in wanted.sweep.methods
            for level in wanted.sweep.levels
        }
    return {
        name: Job(data, method, size, seed, level, subrun(out, name), device)
        for name, (method, size, seed, level) in found.items()
    }


def open_study(out: str | None, overwrite: bool, setting: dict[str, Any]) -> Path:
    """The folder of a reproduction: a new one, or one of the same setting, which is gone on with.

    Raises ConfigurationError for one of another setting, and as ``open_folder`` does.
    """
    given = None if out is None else Path(out)
    if given is not None and not overwrite and (given / CONFIG).is_file():
        kept = _read(given / CONFIG)
        wrong = [n for n in {**kept, **setting} if kept.get(n) != finite(setting).get(n)]
        if wrong:
            told = ", ".join(f"{n} {kept.get(n)!r} (now {setting.get(n)!r})" for n in wrong)
            raise ConfigurationError(
                f"--out {given} holds another reproduction: {told}. Name another folder, ask for "
                "the same, or pass --overwrite to start anew."
            )
        return given
    folder = open_folder(out, "reproduce", overwrite)
    text = json.dumps(finite(setting), indent=2, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return folder


def work(job: Job, report: Report) -> Outcome:
    """Train and score one method; what was done before is not done again.

    Raises:
        CheckpointError: for a checkpoint that is damaged or of another setting.
    """
    ended = _ended(job)
    if ended is not None:
        return ended
    began, before = time.monotonic(), 0.0
    images = read_images(job.data, job.sizes, job.device)
    training = make_training(job, images)
    if (job.out / CHECKPOINT).is_file():
        extra = training.resume(job.out / CHECKPOINT)
        _check(extra["setting"], job)
        before = extra["seconds"]

    def save() -> None:
        seconds = before + time.monotonic() - began
        training.save(job.out / CHECKPOINT, {"setting": job.setting, "seconds": seconds})
        write_curve(job.out / CURVE, training.curve)

    diverged = None
    try:
        training.run(job.sizes.epochs, report, save)
    except DivergenceError as reason:
        diverged = str(reason)
    seconds = before + time.monotonic() - began
    outcome = Outcome(job.method.name, job.seed, job.level, finite(training.curve), diverged)
    result = Result(
        command="reproduce",
        config={"setting": job.setting, "curve": outcome.curve, "diverged": diverged},
        seeds=[job.seed],
        rows=[outcome.row(job.data, job.sizes.epochs, len(images.test))],
        headline=f"{job.out.name}: {outcome.words}",
        seconds=seconds,
        device=torch.device(job.device),
    )
    result.write(job.out)
    return outcome


def read_images(data: str, sizes: Sizes, device: str) -> Images:
    """The images of a job."""
    read = load_images(data, images=sizes.images, device=device)
    validation, test = read.validation.first(sizes.validation), read.test.first(sizes.test)
    return replace(read, validation=validation, test=test)


def make_training(job: Job, images: Images) -> Training:
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


def _ended(job: Job) -> Outcome | None:
    """What a job came to in an earlier call."""
    try:
        config = read_result(job.out)["config"]
    except DataError:
        return None  # not done yet, or interrupted while writing
    _check(config["setting"], job)
    return Outcome(job.method.name, job.seed, job.level, config["curve"], config["diverged"])


def _check(kept: dict[str, Any], job: Job) -> None:
    if kept != json.loads(json.dumps(job.setting)):
        raise CheckpointError(
            f"{job.out} was trained with other options or sizes: name another --out, or pass "
            "--overwrite to start anew."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise CheckpointError(
            f"{path} cannot be read ({type(reason).__name__}): pass --overwrite to start anew."
        ) from reason
