"""A problem of a few milliseconds: classes around prototypes, learned by a linear readout."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
import torch
from torch import nn
from torch.nn.utils import skip_init

from metaplastic import Backprop, CrossEntropy, Delta, Episodes, LayeredNetwork, Learner
from metaplastic.recipes.space import Log, OneMinus, Space
from metaplastic.training import MetaTraining
from metaplastic.tune import Problem, open_storage
from tests.helpers import seeded

DEFAULTS = {"rate": 0.1, "outer": 1e-3, "decay": 0.9}
SPACE: Space = {"rate": Log(1e-6, 1.0), "outer": Log(1e-4, 0.1), "decay": OneMinus(0.5, 0.99)}


def prototypes(count: int, generator: torch.Generator, *, noise: float = 0.5) -> Episodes:
    """E episodes of four classes in six dimensions, two classes first and then the other two."""
    centres = torch.randn(count, 4, 6, generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]).expand(count, 12)

    def around() -> torch.Tensor:
        near = torch.gather(centres, 1, labels.unsqueeze(-1).expand(-1, -1, 6))
        return near + noise * torch.randn(near.shape, generator=generator)

    return Episodes(
        around().unsqueeze(2), labels.unsqueeze(2), around(), labels, labels // 2, labels // 2
    )


def training(options: Mapping[str, Any], seed: int) -> MetaTraining:
    linear = skip_init(nn.Linear, 6, 4)  # which would draw from the global generator
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    rule = Delta(options["rate"], learned=False)
    learner = Learner(
        LayeredNetwork(nn.Sequential(linear)), Backprop(), {"*": rule}, CrossEntropy()
    )
    optimizer = torch.optim.Adam(
        learner.param_groups(), lr=options["outer"], betas=(options["decay"], 0.999)
    )
    return MetaTraining(learner, lambda g: prototypes(3, g), optimizer=optimizer, seed=seed)


def make_problem(**changes: Any) -> Problem:
    """The problem with some of its arguments replaced."""
    generator = seeded(7)
    arguments: dict[str, Any] = {
        "training": training,
        "steps": 5,
        "validation": [prototypes(6, generator), prototypes(5, generator)],
        "space": SPACE,
        "options": DEFAULTS,
        "accuracy": True,
        "identity": {"data": "prototypes"},
    }
    return Problem(**{**arguments, **changes})


def diverging(options: Mapping[str, Any], seed: int) -> MetaTraining:
    """Training that is not finite from the start."""
    made = training(options, seed)
    for p in made.learner.parameters():
        p.data.fill_(torch.inf)
    return made


def slow(seconds: float):
    """Training that takes its time before it begins."""

    def begin(options: Mapping[str, Any], seed: int) -> MetaTraining:
        time.sleep(seconds)
        return training(options, seed)

    return begin


def memory() -> optuna.storages.InMemoryStorage:
    return optuna.storages.InMemoryStorage()


def database(folder: Any) -> optuna.storages.BaseStorage:
    """An SQLite file whose dead trials are found after two seconds."""
    return open_storage(folder / "study.db", interval=1, grace=2)


def abandoned(study: optuna.Study) -> optuna.Trial:
    """A running trial of nobody."""
    with warnings.catch_warnings(action="ignore"):
        return study.ask()
