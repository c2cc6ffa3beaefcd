"""One method, one seed, in a process and a folder of its own; goes on where it was interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
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
from tasks.images import Images, Scaling, load_images

CONFIG = "config.json"
CHECKPOINT = "checkpoint.pt"
CURVE = "curve.jsonl"


@dataclass(frozen=True)
class Job:
    """One training of one method."""

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


def make_jobs(wanted: Mapping[str, Chosen], out: Path, device: str) -> dict[str, Job]:
    """Every job by the name of its folder: part by part all methods with one seed after another,
    then the sweep.
    """
    jobs = {}
    for part, chosen in wanted.items():
        found = {
            f"{part}-{method.name}-{seed}": (method, chosen.sizes, seed, None)
            for seed in chosen.sizes.seeds
            for method in chosen.methods
        }
        if (sweep := chosen.sweep) is not None:
            found |= {
                f"{part}-{m.name}-{sweep.name}-{level:g}-{seed}": (m, sweep.sizes, seed, level)
                for seed in sweep.sizes.seeds
                for m in sweep.methods
                for level in sweep.levels
            }
        images = part, chosen.part.data, chosen.part.scaling
        for name, setting in found.items():
            jobs[name] = Job(*images, *setting, subrun(out, name), device)
    return jobs


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
    images = read_images(job.data, job.scaling, job.sizes, job.device)
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
    outcome = _outcome(job, finite(training.curve), diverged)
    result = Result(
        command="reproduce",
        config={"setting": job.setting, "curve": outcome.curve, "diverged": diverged},
        seeds=[job.seed],
        rows=[outcome.row(job.sizes.epochs, len(images.test))],
        headline=f"{job.out.name}: {outcome.words}",
        seconds=seconds,
        device=torch.device(job.device),
    )
    result.write(job.out)
    return outcome


def read_images(data: str, scaling: Scaling, sizes: Sizes, device: str) -> Images:
    """The images of a job."""
    read = load_images(data, images=sizes.images, scaling=scaling, device=device)
    validation, test = read.validation.first(sizes.validation), read.test.first(sizes.test)
    return replace(read, validation=validation, test=test)


def count_tests(wanted: Mapping[str, Chosen]) -> dict[str, int]:
    """How many test images each data set has; reads as many images as are asked for of it."""
    most: dict[str, int] = {}
    for one in wanted.values():
        most[one.part.data] = max(one.sizes.images, most.get(one.part.data, 0))
    return {data: len(load_images(data, images=images).test) for data, images in most.items()}


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
    return _outcome(job, config["curve"], config["diverged"])


def _outcome(job: Job, curve: list[Line], diverged: str | None) -> Outcome:
    return Outcome(job.part, job.method.name, job.seed, job.level, curve, diverged)


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
