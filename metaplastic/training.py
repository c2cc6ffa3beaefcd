"""The outer loop: episodes in, optimiser steps out; resumable, and never poisoned by NaN."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metaplastic.episodes import Episodes
from metaplastic.errors import CheckpointError
from metaplastic.learner import Learner
from metaplastic.metagradient import Divergence, MetaGradient, Unrolled
from metaplastic.seeds import streams

FORMAT = 1
PARTS = {"steps", "learner", "optimizer", "scheduler", "generators", "extra"}


@dataclass(frozen=True)
class StepReport:
    """One meta-step."""

    step: int
    """Counted from 1."""
    loss: float | None
    """Mean query loss of the kept episodes, None if all diverged."""
    accuracy: float | None
    gradient_norm: float
    """Of the whole meta-gradient, before clipping; if it overflowed, the optimiser did not step."""
    diverged: tuple[Divergence, ...]
    """Episodes left out of this step; if all were, the optimiser did not step."""


class MetaTraining:
    """Meta-trains a learner.

    Args:
        learner: changed in place, through the optimiser.
        sample: draws the episodes of one meta-step from the generator that it is given.
        metagradient: how the outer loop learns.
        optimizer: default Adam over ``learner.param_groups()`` at 1e-3.
        scheduler: a torch learning-rate scheduler, stepped after each step of the optimiser.
        clip: bound on the norm of the whole meta-gradient, or None.
        seed: of the episodes, and of what the learner resamples.

    Example:
        training = MetaTraining(learner, lambda g: task.episodes("train", 16, g))
        for report in training.run(1000):
            print(report.loss)
    """

    def __init__(
        self,
        learner: Learner,
        sample: Callable[[torch.Generator], Episodes],
        *,
        metagradient: MetaGradient | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        clip: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        self.learner, self.sample, self.clip = learner, sample, clip
        self.metagradient = metagradient or Unrolled()
        self.optimizer = optimizer or torch.optim.Adam(learner.param_groups())
        self.scheduler = scheduler
        self.steps = 0
        generators = streams(seed)
        self._generators = {name: generators[name] for name in ("episodes", "noise")}

    def run(self, steps: int):
        """Meta-train up to ``steps`` meta-steps in all, one report after each."""
        while self.steps < steps:
            yield self.step()

    def step(self) -> StepReport:
        """One meta-step."""
        episodes = self.sample(self._generators["episodes"])
        self.optimizer.zero_grad(set_to_none=True)
        outcome = self.metagradient.gradient(
            self.learner, episodes, generator=self._generators["noise"]
        )
        norm = torch.nn.utils.clip_grad_norm_(
            list(self.learner.parameters()), self.clip if self.clip is not None else float("inf")
        )
        # The norm can overflow where its parts do not: such a direction is noise.
        if outcome.kept and bool(norm.isfinite()):
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        self.steps += 1
        return StepReport(
            step=self.steps,
            loss=float(outcome.loss.mean()) if outcome.kept else None,
            accuracy=None if outcome.accuracy is None else float(outcome.accuracy.mean()),
            gradient_norm=float(norm),
            diverged=outcome.diverged,
        )

    def save(self, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write everything that ``resume`` needs, atomically: an interrupted write leaves the
        previous checkpoint as it was. ``extra`` holds plain values of your own.
        """
        path = Path(path)
        content = {
            "format": FORMAT,
            "steps": self.steps,
            "shapes": _shapes(self.learner),
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "generators": {name: g.get_state() for name, g in self._generators.items()},
            "extra": extra or {},
        }
        temporary = path.with_name(path.name + ".part")
        torch.save(content, temporary)
        os.replace(temporary, path)

    def resume(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Go on from a checkpoint exactly where it was written; returns its ``extra``.

        Raises:
            CheckpointError: for a damaged file, or one of another network, optimiser or scheduler;
                nothing is changed then.
        """
        content = load_checkpoint(path, self.learner)
        groups = content["optimizer"]["param_groups"], self.optimizer.param_groups
        sizes = [[len(group["params"]) for group in side] for side in groups]
        if sizes[0] != sizes[1] or (content["scheduler"] is None) != (self.scheduler is None):
            raise CheckpointError(
                f"{path} was written with another optimiser or scheduler: its groups have "
                f"{sizes[0]} members, these {sizes[1]}; it has "
                f"{'no' if content['scheduler'] is None else 'a'} scheduler."
            )
        self.learner.load_state_dict(content["learner"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        for name, state in content["generators"].items():
            self._generators[name].set_state(state)
        self.steps = content["steps"]
        return content["extra"]


def load_checkpoint(path: str | os.PathLike[str], learner: Learner) -> dict[str, Any]:
    """The content of a checkpoint that fits ``learner``, which is left as it is.

    Raises:
        CheckpointError: for a missing or damaged file, or one of another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version, shapes = content["format"], content["shapes"]
        missing = PARTS - content.keys()
        if missing:
            raise KeyError(", ".join(sorted(missing)))
    except Exception as reason:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({type(reason).__name__}: {reason}). Give the "
            "file that MetaTraining.save wrote, or start anew."
        ) from reason
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version reads {FORMAT}.")
    own = _shapes(learner)
    if shapes != own:
        wrong = sorted(n for n in own.keys() | shapes.keys() if own.get(n) != shapes.get(n))
        first = wrong[0]
        raise CheckpointError(
            f"{path} belongs to another learner: {first} is {shapes.get(first, 'missing')} there "
            f"and {own.get(first, 'missing')} here ({len(wrong)} such entries). Build the learner "
            "with the configuration that it was trained with."
        )
    return content


def _shapes(learner: Learner) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in learner.state_dict().items()}
