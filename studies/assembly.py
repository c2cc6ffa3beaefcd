"""From a configuration to the objects: task, learner, training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from metaplastic.errors import ConfigurationError, UnknownNameError
from metaplastic.learner import Learner
from metaplastic.recipes import recipe
from metaplastic.seeds import streams
from metaplastic.training import MetaTraining
from studies.config import RunConfig, run_metagradient
from studies.networks import build_architecture, build_network
from tasks import Omniglot, Task, make_task

LATE = 0.7
"""Where the late decay begins, as a share of the meta-steps."""


def pick_device(name: str) -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.

    Raises ConfigurationError where cuda is asked for and not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UnknownNameError("device", name, ("auto", "cpu", "cuda"))
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigurationError("--device cuda: this machine has no usable GPU; take auto or cpu.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def make_run_task(config: RunConfig, device: torch.device, **changes: Any) -> Task:
    """The task of a run, some of its options changed."""
    return make_task(config.task, **{**config.task_options, **changes}, device=device)


def pinned(config: RunConfig, task: Task) -> RunConfig:
    """The configuration with what was found on disk in it: the variant of the data set."""
    if isinstance(task, Omniglot):
        return replace(config, task_options={**config.task_options, "variant": task.variant})
    return config


def make_learner(config: RunConfig, task: Task, device: torch.device) -> Learner:
    """The learner of a run, drawn from its seed. Learners of one seed share their first weights."""
    named = recipe(config.learner)
    generators = streams(config.seed)
    if config.arch:
        network = build_architecture(config.arch, task, generators["initial"])
    else:
        network = build_network(
            task, named, config.hidden, generators["initial"], config.feature_norm
        )
    options = named.configure(config.options)
    return named.build(network, task.objective, options, generators["feedback"]).to(device)


def make_training(config: RunConfig, task: Task, learner: Learner) -> MetaTraining:
    """The outer loop of a run: Adam at the recipe's rates."""
    named = recipe(config.learner)
    options = named.configure(config.options)
    optimizer = torch.optim.Adam(options.param_groups(learner))
    scheduler = None
    if config.decay != "constant":
        scheduler = LambdaLR(optimizer, lambda step: decay(config.decay, step / config.steps))
    return MetaTraining(
        learner,
        lambda generator: task.episodes("train", config.episodes, generator),
        metagradient=run_metagradient(config),
        optimizer=optimizer,
        scheduler=scheduler,
        clip=options.clip,
        seed=config.seed,
    )


def decay(kind: str, share: float) -> float:
    """Factor on the outer rates after a share 0..1 of the meta-steps."""
    share = min(share, 1.0)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    if kind == "late":
        return 1.0 if share < LATE else (1 - share) / (1 - LATE)
    raise UnknownNameError("decay", kind, ("constant", "cosine", "late"))
