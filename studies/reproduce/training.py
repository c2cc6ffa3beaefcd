"""Supervised training without backpropagation, epoch by epoch; resumable exactly."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaplastic.errors import CheckpointError, DivergenceError, UnconvergedWarning
from metaplastic.learner import Learner
from metaplastic.seeds import streams
from metaplastic.signals import State
from metaplastic.training import FORMAT, load_checkpoint
from studies.reproduce.phase import Phase
from studies.reproduce.watch import Watch
from studies.status import Report
from tasks.images import Images, Part

PROBED = 64
"""Training images that the probes see."""
CHUNK = 2000
"""Images of one forward pass without learning."""

Probe = Callable[[Learner, Tensor, Tensor], float]
"""A number of the learner on some images x (B, C, H, W) with labels y (B,)."""
Line = dict[str, Any]
"""What is known after an epoch."""


class Training:
    """Trains a learner by ``assign_grads``.

    Args:
        learner: changed in place, through the optimisers.
        images: what it learns and is scored on.
        phases: what an epoch is made of.
        before: what comes once, before the first epoch.
        probes: what is measured on some training images, by name.
        batch: B; what is left of an epoch is dropped.
        seed: of the order of the images and of noise.
    """

    def __init__(
        self,
        learner: Learner,
        images: Images,
        phases: Sequence[Phase],
        *,
        before: Sequence[Phase] = (),
        probes: Mapping[str, Probe] | None = None,
        batch: int = 128,
        seed: int = 0,
    ) -> None:
        self.learner, self.images, self.batch = learner, images, batch
        self.phases, self.before, self.probes = phases, before, dict(probes or {})
        self.curve: list[Line] = []
        """One line for the start, which is epoch 0, and one for each epoch since."""
        generators = streams(seed)
        self._generators = {name: generators[name] for name in ("episodes", "noise")}
        every = (*before, *phases)
        self._optimizers = list({id(p.optimizer): p.optimizer for p in every}.values())
        found = {id(p.scheduler): (p.scheduler, p.stepped) for p in every if p.scheduler}
        self._schedulers = [scheduler for scheduler, _ in found.values()]
        self._by_epoch = [scheduler for scheduler, when in found.values() if when == "epoch"]

    @property
    def epochs(self) -> int:
        """Epochs done; -1 before the start is measured."""
        return len(self.curve) - 1

    def run(self, epochs: int, report: Report, save: Callable[[], None] = lambda: None) -> None:
        """Train up to ``epochs`` in all; ``save`` is called after each.

        Raises:
            DivergenceError: when a change or the loss is not finite.
        """
        per_sweep = len(self.images.train) // self.batch
        self._watch = Watch(report, per_sweep, self.phases, self.before, epochs, self.epochs)
        while self.epochs < epochs:
            self.curve.append(self._line(self.epochs + 1))
            save()

    def _line(self, epoch: int) -> Line:
        began, line = time.monotonic(), dict[str, Any](step=epoch)
        if epoch == 0:  # measured before anything is learned
            line |= self._scores()
            began = time.monotonic()
            self._sweep(self.before)
            return line | {"seconds": time.monotonic() - began}
        line |= self._sweep(self.phases)
        seconds = time.monotonic() - began
        for scheduler in self._by_epoch:
            scheduler.step()
        return line | {"seconds": seconds} | self._scores()

    def _sweep(self, phases: Sequence[Phase]) -> Line:
        """Mean loss of the images while weights learn, and the share of them without a control."""
        loss, lost, shown = 0.0, 0.0, 0
        for phase in phases:
            for _ in range(phase.sweeps):
                told = [self._batch(phase, index) for index in self._batches()]
                if not phase.feedback:
                    loss += sum(a for a, _ in told) * self.batch
                    lost += sum(b for _, b in told)
                    shown += len(told) * self.batch
        if not shown:
            return {}
        return {"loss": loss / shown, "unconverged": lost / shown}

    def _batches(self) -> tuple[Tensor, ...]:
        count = len(self.images.train)
        order = torch.randperm(count, generator=self._generators["episodes"])
        return order[: count - count % self.batch].split(self.batch)

    def _batch(self, phase: Phase, index: Tensor) -> tuple[float, float]:
        lost = 0.0

        def observe(state: State) -> None:
            nonlocal lost
            lost = float(state["credit"].get("unconverged", 0.0))

        part = self.images.train
        index = index.to(part.y.device)
        with warnings.catch_warnings():  # they are counted
            warnings.simplefilter("ignore", UnconvergedWarning)
            losses = self.learner.assign_grads(
                part.x[index],
                part.y[index],
                self._generators["noise"],
                only=phase.only,
                observe=observe,
            )
        loss = float(losses.mean())
        if not math.isfinite(loss):
            raise DivergenceError("the loss is not finite any more: lower the learning rate.")
        phase.step()
        self._watch(loss, lost)
        return loss, lost

    def _scores(self) -> Line:
        """Accuracy on all parts and loss on test images, and the probes."""
        train = self.images.train.first(len(self.images.validation))
        _, train_accuracy = evaluate(self.learner, train)
        _, validation = evaluate(self.learner, self.images.validation)
        loss, test = evaluate(self.learner, self.images.test)
        if not math.isfinite(loss):
            raise DivergenceError("the loss on test images is not finite: lower the learning rate.")
        self._watch.accuracy = validation
        seen = self.images.train.first(PROBED)
        with torch.no_grad():
            probed = {n: probe(self.learner, seen.x, seen.y) for n, probe in self.probes.items()}
        return {
            "train_accuracy": train_accuracy,
            "validation_accuracy": validation,
            "test_accuracy": test,
            "test_loss": loss,
            "probes": probed,
        }

    def save(self, path: Path, extra: Mapping[str, Any] | None = None) -> None:
        """Write everything that ``resume`` needs, atomically; ``extra`` are values of your own."""
        state = self.learner.state_dict()
        content = {
            "format": FORMAT,
            "steps": self.epochs,
            "shapes": {name: list(value.shape) for name, value in state.items()},
            "learner": state,
            "optimizer": [optimizer.state_dict() for optimizer in self._optimizers],
            "scheduler": [scheduler.state_dict() for scheduler in self._schedulers],
            "generators": {name: g.get_state() for name, g in self._generators.items()},
            "extra": {**(extra or {}), "curve": self.curve},
        }
        temporary = path.with_name(path.name + ".part")
        torch.save(content, temporary)
        os.replace(temporary, path)

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint exactly where it was written; returns its ``extra``.

        Raises:
            CheckpointError: for a damaged file, or one of another learner or other optimisers.
        """
        content = load_checkpoint(path, self.learner)
        counts = len(content["optimizer"]), len(content["scheduler"])
        own = len(self._optimizers), len(self._schedulers)
        if counts != own:
            raise CheckpointError(
                f"{path} has {counts[0]} optimisers and {counts[1]} schedulers, this training "
                f"{own[0]} and {own[1]}: start anew with --overwrite."
            )
        self.learner.load_state_dict(content["learner"])
        for mine, kept in zip(self._optimizers, content["optimizer"], strict=True):
            mine.load_state_dict(kept)
        for mine, kept in zip(self._schedulers, content["scheduler"], strict=True):
            mine.load_state_dict(kept)
        for name, state in content["generators"].items():
            self._generators[name].set_state(state)
        self.curve = content["extra"]["curve"]
        return content["extra"]


@torch.no_grad()
def evaluate(learner: Learner, part: Part) -> tuple[float, float]:
    """Mean loss and accuracy of the network by itself."""
    loss = right = 0.0
    for x, y in zip(part.x.split(CHUNK), part.y.split(CHUNK), strict=True):
        output = learner(x)
        target = learner.encode(y, y.shape)
        loss += float(learner.objective.loss(output, target).sum())
        correct = learner.objective.correct(output, target)
        right += math.nan if correct is None else float(correct.sum())
    return loss / len(part), right / len(part)
