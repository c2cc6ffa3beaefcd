"""One training run: train, checkpoint, score. Can be interrupted and gone on with exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metaplastic.portable import save_rule
from metaplastic.training import StepReport
from studies.analysis import AlignmentLog, analyse, write_analysis
from studies.assembly import make_learner, make_run_task, make_training, pinned
from studies.config import RunConfig, own_rest
from studies.logs import Log
from studies.results import Result
from studies.scoring import fitted_functions, mean, score, score_run
from studies.status import Every, Report, Smooth, Status
from studies.words import run_headline
from tasks import Task

CHECKPOINT = "checkpoint.pt"
RULE = "rule.safetensors"
CURVE = "curve.jsonl"
CHECKPOINT_SECONDS = 30.0


class Interrupted(KeyboardInterrupt):
    """A run that was stopped between two meta-steps; its message says how to go on."""


def run_training(
    config: RunConfig,
    out: Path,
    report: Report,
    *,
    device: torch.device | None = None,
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
) -> Result:
    """Train and score one learner; the folder ``out`` gets ``config.json``, ``checkpoint.pt``,
    ``curve.jsonl``, ``scores.npz``, ``rule.safetensors`` and ``result.json``, and what there is to
    analyse in ``alignment.jsonl`` and ``analysis.npz``.

    Args:
        config: what to run.
        out: an existing folder.
        report: told about progress.
        device: default CPU.
        stop: asked between meta-steps.
        resume: go on from the checkpoint in ``out``; the outcome is that of a run that was never
            interrupted.

    Raises:
        Interrupted: when ``stop`` said so; the checkpoint is written first.
        CheckpointError: for a checkpoint that is damaged or of another configuration.
    """
    device = device or torch.device("cpu")
    began = time.monotonic()
    task = make_run_task(config, device)
    config = pinned(config, task)
    if not resume:
        config = search_rate(config, task, device, report, stop)
        config.write(out)
    learner = make_learner(config, task, device)
    training = make_training(config, task, learner)
    before, diverged = 0.0, 0
    if resume:
        extra = training.resume(out / CHECKPOINT)
        before, diverged = extra["seconds"], extra["diverged"]
    curve = Log(out / CURVE, training.steps)
    alignment = AlignmentLog(out, learner, training.steps, config.steps)

    def save() -> None:
        curve.flush()
        alignment.flush()
        seconds = before + time.monotonic() - began
        training.save(out / CHECKPOINT, {"seconds": seconds, "diverged": diverged})

    due, watch = Every(CHECKPOINT_SECONDS), _Watch(report, "training", config.steps, diverged)
    due()
    for step in training.run(config.steps):
        curve.add(curve_line(step))
        alignment.add(step.step)
        watch(step)
        diverged = watch.diverged
        if due():
            save()
        if stop():
            save()
            raise Interrupted(_resume_hint(out, training.steps, config.steps))
    save()

    def between(done: int, total: int) -> None:
        report(Status("testing", done, total, diverged=diverged, unit="episodes"))
        if stop():
            raise Interrupted(_resume_hint(out, training.steps, config.steps))

    trained = training.metagradient
    scores, values = score_run(learner, task, config.test, trained, own_rest(config), between)
    scores.write(out, fitted_functions(learner, task, trained))
    save_rule(learner, out / RULE, task=config.task, score=mean(scores.score))
    write_analysis(out, analyse(learner, task))
    row = {**row_of(config), **values}
    result = Result(
        command="train",
        config=config.as_json(),
        seeds=[config.seed],
        rows=[row],
        headline=run_headline(row, config.chance),
        seconds=before + time.monotonic() - began,
        device=device,
    )
    result.write(out)
    return result


def curve_line(step: StepReport) -> dict[str, Any]:
    """One line of ``curve.jsonl``."""
    return {
        "step": step.step,
        "loss": step.loss,
        "accuracy": step.accuracy,
        "gradient_norm": step.gradient_norm,
        "diverged": len(step.diverged),
    }


def row_of(config: RunConfig) -> dict[str, Any]:
    """The part of a row that says which run it is of."""
    return {
        "task": config.task,
        "learner": config.learner,
        "metagradient": config.metagradient,
        "seed": config.seed,
        "steps": config.steps,
        "episodes": config.test,
    }


def search_rate(
    config: RunConfig,
    task: Task,
    device: torch.device,
    report: Report,
    stop: Callable[[], bool] = lambda: False,
) -> RunConfig:
    """The configuration with the first inner rate that did best on validation episodes after a
    short training, in which it must not diverge; a run without a search comes back as it is.
    """
    if not config.rate_search or "losses" in config.rate_search:
        return config
    search, losses = config.rate_search, []
    for rate in search["rates"]:
        trial = replace(config, options={**config.options, "rate": rate}, decay="constant")
        learner = make_learner(trial, task, device)
        watch, stable = _Watch(report, f"rate {rate:g}?", search["steps"]), True
        training = make_training(trial, task, learner)
        for step in training.run(search["steps"]):
            watch(step)
            stable = 2 * len(step.diverged) <= config.episodes
            if stop():
                raise Interrupted("stopped before the training began; nothing to go on from.")
            if not stable:
                break
        losses.append(math.inf)
        if stable:
            evaluate = training.metagradient.evaluate
            scores = score(learner, task, search["episodes"], "validation", evaluate=evaluate)
            losses[-1] = math.inf if scores.diverged else float(scores.loss.mean())
    if all(math.isinf(loss) for loss in losses):
        best = min(search["rates"])
    else:
        best = search["rates"][losses.index(min(losses))]
    finite = [None if math.isinf(loss) else loss for loss in losses]
    return replace(
        config,
        options={**config.options, "rate": best},
        rate_search={**search, "losses": finite},
    )


class _Watch:
    """Turns meta-steps into Status, a few times a second."""

    def __init__(self, report: Report, stage: str, total: int, diverged: int = 0) -> None:
        self.report, self.stage, self.total, self.diverged = report, stage, total, diverged
        self._due, self._loss, self._accuracy = Every(0.2), Smooth(), Smooth()

    def __call__(self, step: StepReport) -> None:
        self.diverged += len(step.diverged)
        loss, accuracy = self._loss(step.loss), self._accuracy(step.accuracy)
        if self._due() or step.step == self.total:
            self.report(Status(self.stage, step.step, self.total, loss, accuracy, self.diverged))


def _resume_hint(out: Path, done: int, total: int) -> str:
    return (
        f"stopped after meta-step {done} of {total}. Go on exactly from there with\n"
        f"  python -m studies train --resume {out}"
    )
