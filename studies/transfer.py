"""How much a learned rule is worth on networks that it has never seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metaplastic.errors import ConfigurationError
from metaplastic.learner import Learner
from metaplastic.portable import transfer
from metaplastic.rule_file import LearnedRule, rebuild
from studies.intervals import seeds_interval
from studies.networks import build_architecture
from studies.scoring import Scores, ci95, score
from tasks import Task

RATES = tuple(float(rate) for rate in np.logspace(-3, 0, 16))
"""The rates of the scalar rule, log-spaced."""
VALIDATION = 100
"""Episodes that choose among them."""


@dataclass(frozen=True)
class Scalar:
    """The best rule of the same family with one rate, on one network."""

    rate: float
    validation: list[float]
    """Mean score of every rate on validation episodes."""
    scores: Scores


@dataclass(frozen=True)
class Gain:
    """A learned rule on one network, against the scalar rule there."""

    arch: str
    seed: int
    """Of the meta-training."""
    learned: Scores
    scalar: Scalar
    report: str
    """What the transfer did, tensor by tensor."""

    @property
    def by_episode(self) -> np.ndarray:
        """(E,) gain in each episode, positive where the learned rule is better: accuracy, or fall
        of the loss.
        """
        a, b = self.learned.by_episode, self.scalar.scores.by_episode
        return b - a if self.learned.accuracy is None else a - b

    @property
    def mean(self) -> float:
        """Mean over episodes."""
        return float(self.by_episode.mean())


def measure(
    rules: dict[int, LearnedRule],
    archs: Sequence[str],
    task: Task,
    count: int,
    device: torch.device,
    between: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Gain]:
    """Every learned rule on every network, against the scalar rule, on the same ``count`` unseen
    episodes; initial weights and feedback are drawn anew in each.

    Args:
        rules: by seed of their meta-training; all of one family.
        archs: the networks, see ``build_architecture``.
        task: what is learned.
        count: test episodes.
        device: where.
        between: told about progress, and may stop it by raising.
    """
    found = []
    for arch in archs:
        first = next(iter(rules.values()))
        scalar = best_scalar(first, arch, task, count, device, between)
        for seed, rule in rules.items():
            learner, report = _moved(rule, arch, task, device)
            between(f"{arch}: learned rule of seed {seed}", 0, count)
            scores = score(learner, task, count)
            found.append(Gain(arch, seed, scores, scalar, str(report)))
    return found


def best_scalar(
    rule: LearnedRule,
    arch: str,
    task: Task,
    count: int,
    device: torch.device,
    between: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Scalar:
    """The rule of the same family whose one rate does best on validation episodes."""
    validation = []
    for i, rate in enumerate(RATES):
        between(f"{arch}: rate {rate:.3g}?", i, len(RATES))
        found = score(_plain(rule, arch, task, rate, device), task, VALIDATION, "validation")
        value = float(found.by_episode.mean())
        validation.append(value if found.accuracy is not None else -value)
    rate = RATES[int(np.argmax(validation))]
    return Scalar(rate, validation, score(_plain(rule, arch, task, rate, device), task, count))


def _moved(rule: LearnedRule, arch: str, task: Task, device: torch.device) -> tuple[Learner, Any]:
    network = build_architecture(arch, task, torch.Generator().manual_seed(0))
    learner, report = transfer(rule, network, task.objective, initial="resampled")
    return learner.to(device), report


def _plain(rule: LearnedRule, arch: str, task: Task, rate: float, device: torch.device) -> Learner:
    credit, templates, _ = rebuild(rule)
    plain = {p: None if r is None else r.with_rate(rate) for p, r in templates.items()}
    network = build_architecture(arch, task, torch.Generator().manual_seed(0))
    return Learner(network, credit, plain, task.objective, initial="resampled").to(device)


@dataclass(frozen=True)
class Summary:
    """The gain on one network over all seeds."""

    arch: str
    learned: float
    scalar: float
    rate: float
    gain: float
    """Mean over seeds."""
    half: float | None
    """Half the 95 % interval of the gain over seeds, on these episodes; None for one seed."""
    half_episodes: float | None
    """The same over episodes, for the mean of these seeds."""
    kept: float | None
    """Share of the gain on the source network, None where that is not positive."""


def summarise(gains: Sequence[Gain]) -> list[Summary]:
    """One line for each network; the first is the source."""
    archs = list(dict.fromkeys(gain.arch for gain in gains))
    if not archs:
        raise ConfigurationError("nothing was measured: name a network with --to.")
    found: list[Summary] = []
    for arch in archs:
        own = [gain for gain in gains if gain.arch == arch]
        means = np.array([gain.mean for gain in own])
        source = found[0].gain if found else float(means.mean())
        found.append(
            Summary(
                arch=arch,
                learned=float(np.mean([gain.learned.by_episode.mean() for gain in own])),
                scalar=float(own[0].scalar.scores.by_episode.mean()),
                rate=own[0].scalar.rate,
                gain=float(means.mean()),
                half=seeds_interval(means) if len(own) > 1 else None,
                half_episodes=ci95(np.mean([gain.by_episode for gain in own], axis=0)),
                kept=float(means.mean()) / source if source > 0 else None,
            )
        )
    return found
