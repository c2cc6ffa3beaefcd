"""What one training run is made of, as it stands in ``config.json``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from metaplastic.errors import CheckpointError, ConfigurationError, UnknownNameError
from metaplastic.metagradient import Equilibrium, Evolution, MetaGradient, Unrolled
from metaplastic.recipes import RECIPES, Options, Recipe, recipe
from studies.presets import sizes
from tasks import TASKS

FILE = "config.json"
AT_REST = "at-rest"
"""The learner's own meta-gradient at rest."""
METAGRADIENTS: dict[str, str | None] = {
    "unrolled": None,
    "unrolled-checkpoint": "checkpoint_every",
    "truncated": "truncate",
    "first-order": None,
    "evolution": "pairs",
    AT_REST: None,
}
"""Meta-gradients by name, and the option that their ``:K`` sets."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of one training run."""

    task: str
    task_options: dict[str, Any]
    learner: str
    options: dict[str, Any]
    """The options of the recipe, all of them."""
    metagradient: str
    steps: int
    episodes: int
    test: int
    hidden: tuple[int, ...]
    feature_norm: float
    arch: str
    """A network without a trunk, or empty; see ``studies.networks``."""
    decay: str
    seed: int
    preset: str
    rate_search: dict[str, Any] = field(default_factory=dict)
    """How the first value of a learned inner rate is found: ``rates``, ``steps`` and ``episodes``,
    then the ``losses`` on validation; empty where it is given."""

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing, None for regression."""
        ways = self.task_options.get("ways")
        return None if ways is None else 1 / ways

    def as_json(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write ``config.json``."""
        text = json.dumps(self.as_json(), indent=2, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> RunConfig:
    """The configuration of the run in ``folder``.

    Raises CheckpointError where there is none, or one of another version.
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise CheckpointError(
            f"{folder} holds no readable {FILE} ({type(reason).__name__}): give the folder that "
            "`python -m studies train` wrote; those of a demo are in its folder `runs`."
        ) from reason
    names = {f.name for f in fields(RunConfig)}
    if not isinstance(values, dict) or set(values) != names:
        raise CheckpointError(
            f"{folder / FILE} was written by another version; this one reads the entries "
            f"{', '.join(sorted(names))}."
        )
    return RunConfig(**{**values, "hidden": tuple(values["hidden"])})


def make_config(
    task: str,
    learner: str,
    preset: str,
    seed: int,
    *,
    metagradient: str | None = None,
    steps: int | None = None,
    episodes: int | None = None,
    task_options: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    arch: str | None = None,
) -> RunConfig:
    """A run of a named learner on a named task at the size of a preset; what is given replaces the
    preset's numbers. ``options`` are the recipe's; an inner rate among them is not searched for.

    Raises:
        UnknownNameError: with a suggestion, for a name that is in no table.
        ConfigurationError: for options that the learner does not have, and numbers below 1.
    """
    if task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    named, size = recipe(learner), sizes(task, learner, preset)
    own = dict(options or {})
    values = {**size.options, **own}
    _check_types(named, values)
    chosen = named.configure(values)
    kept = asdict(chosen)
    steps = size.steps if steps is None else steps
    episodes = size.episodes if episodes is None else episodes
    if steps < 1 or episodes < 1 or seed < 0:
        raise ConfigurationError(
            f"steps and episodes count from 1 and a seed from 0; got steps {steps}, episodes "
            f"{episodes}, seed {seed}."
        )
    metagradient = metagradient or default_metagradient(named)
    make_metagradient(metagradient, named, chosen)
    search = {}
    tuned = named.tuned_on and task.startswith(f"{named.tuned_on}-")
    streams = named.rest is None
    if streams and kept.get("learned") and "rate" in kept and "rate" not in values and not tuned:
        search = {
            "rates": list(size.rates),
            "steps": max(1, round(size.rate_share * steps)),
            "episodes": size.rate_episodes,
        }
    return RunConfig(
        task=task,
        task_options={**size.task, **(task_options or {})},
        learner=learner,
        options=kept,
        metagradient=metagradient,
        steps=steps,
        episodes=episodes,
        test=size.test,
        hidden=tuple(size.hidden),
        feature_norm=size.feature_norm,
        arch=size.arch if arch is None else arch,
        decay=size.decay,
        seed=seed,
        preset=preset,
        rate_search=search,
    )


def default_metagradient(named: Recipe) -> str:
    """The name of the meta-gradient that a learner is trained by where none is given."""
    if named.rest is not None:
        return AT_REST
    return "first-order" if named.first_order else "unrolled"


def make_metagradient(text: str, named: Recipe, options: Options | None = None) -> MetaGradient:
    """The meta-gradient that ``unrolled``, ``unrolled-checkpoint:K``, ``truncated:K``,
    ``first-order``, ``evolution:K`` or ``at-rest`` names. A first-order recipe is first order
    wherever the inner loop is unrolled; ``at-rest`` is the learner's own, made from its
    ``options`` (the default ones).

    Raises:
        UnknownNameError: for another name.
        ConfigurationError: for another spelling, and ``at-rest`` for a learner without one.
    """
    name, _, number = text.partition(":")
    if name not in METAGRADIENTS:
        raise UnknownNameError("meta-gradient", name, METAGRADIENTS)
    option = METAGRADIENTS[name]
    if (option is None) != (number == "") or (number and not number.isdecimal()):
        form = name if option is None else f"{name}:K with K a number"
        raise ConfigurationError(f"the meta-gradient {name} is written {form}; got {text!r}.")
    values: dict[str, Any] = {option: int(number)} if option else {}
    if name == "evolution":
        return Evolution(**values)
    if name == AT_REST:
        if named.rest is None:
            able = ", ".join(name for name, known in RECIPES.items() if known.rest is not None)
            raise ConfigurationError(
                f"the learner {named.name} has no meta-gradient at rest; {able} have. Leave "
                "--metagradient out, or take one of these."
            )
        return named.rest(named.options if options is None else options)
    return Unrolled(first_order=named.first_order or name == "first-order", **values)


def run_metagradient(config: RunConfig) -> MetaGradient:
    """The meta-gradient of a run."""
    named = recipe(config.learner)
    return make_metagradient(config.metagradient, named, named.configure(config.options))


def own_rest(config: RunConfig) -> Equilibrium | None:
    """The method at rest of a run's learner, None for one that has none."""
    named = recipe(config.learner)
    return None if named.rest is None else named.rest(named.configure(config.options))


def read_options(path: str | Path) -> dict[str, Any]:
    """Recipe options from a TOML file, ``name = value`` line by line."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise ConfigurationError(
            f"{path} is not a readable TOML file of recipe options: {reason}"
        ) from reason


def _check_types(named: Recipe, values: dict[str, Any]) -> None:
    """Options come from text files: a wrong type is named here, before it surfaces elsewhere."""
    for name, default in asdict(named.options).items():
        value = values.get(name, default)
        wanted = (int, float) if type(default) is float else (type(default),)
        if default is not None and type(value) not in wanted:
            raise ConfigurationError(
                f"option {name} of {named.name} is a {wanted[-1].__name__} such as {default!r}; "
                f"got {value!r}."
            )
