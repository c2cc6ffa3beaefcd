"""A configuration as options of the command line."""

from __future__ import annotations

from typing import Any

from studies.config import RunConfig, make_config


def run_words(config: RunConfig) -> str:
    """The options of ``train`` and ``search`` that give this configuration, but for those of the
    learner: its task, learner and preset, and what differs from the preset.
    """
    plain = make_config(config.task, config.learner, config.preset, 0)
    names = ("metagradient", "steps", "episodes", "arch")
    values: dict[str, Any] = {name: getattr(config, name) for name in names}
    changed = {name: v for name, v in values.items() if v != getattr(plain, name)}
    sizes = {n: v for n, v in config.task_options.items() if plain.task_options.get(n) != v}
    named = {"task": config.task, "learner": config.learner, "preset": config.preset}
    return " ".join(f"--{name} {value}" for name, value in {**named, **changed, **sizes}.items())
