"""Studies that know what they search."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from metaplastic.errors import ConfigurationError
from metaplastic.recipes.space import parameters
from metaplastic.tune.problem import Measure, Problem

PROBLEM = "problem"
"""The study's attribute that says what it searches."""


def open_study(
    storage: BaseStorage,
    name: str,
    problem: Problem,
    measures: Sequence[Measure] = ("score",),
    *,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
    resume: bool = False,
) -> optuna.Study:
    """The study of a name, made with its baselines in front, or gone on with.

    Args:
        storage: see ``open_storage``.
        name: of the study.
        problem: what it searches.
        measures: what it optimises; several make a Pareto front.
        sampler: default Optuna's.
        pruner: default none; Optuna prunes studies of one measure only.
        resume: whether a study of that name must exist; else it must not.

    Raises:
        ConfigurationError: for a study that exists and should not, or the other way round, for
            one that searches something else, with the difference, and for measures that the
            validation episodes do not give.
    """
    problem.check(measures)
    exists = name in optuna.get_all_study_names(storage)
    if exists and not resume:
        raise ConfigurationError(
            f"there is a study {name!r} already: go on with it (--resume), or take another name."
        )
    if resume and not exists:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise ConfigurationError(f"there is no study {name!r} to go on with; there are: {known}.")
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=[problem.direction(measure) for measure in measures],
        sampler=sampler,
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    wanted = identity(problem, measures)
    if exists:
        check_identity(study, wanted)
        return study
    study.set_user_attr(PROBLEM, wanted)
    baselines = {"default": problem.options}
    if problem.published is not None:
        baselines["published"] = problem.published
    for baseline, options in baselines.items():
        inside = parameters(problem.space, options)
        plain = json.loads(json.dumps(dict(options)))
        study.enqueue_trial(
            inside, {"baseline": baseline, "options": plain, "inside": list(inside)}
        )
    return study


def identity(problem: Problem, measures: Sequence[Measure]) -> dict[str, Any]:
    """What tells the study of one problem from another's, in plain values."""
    found = {
        **problem.identity,
        "steps": problem.steps,
        "validation": sum(len(episodes) for episodes in problem.validation),
        "measures": list(measures),
        "space": {option: d.describe() for option, d in problem.space.items()},
        "fixed": {o: v for o, v in problem.options.items() if o not in problem.space},
    }
    return json.loads(json.dumps(found))


def check_identity(study: optuna.Study, wanted: Mapping[str, Any]) -> None:
    """Raise ConfigurationError, with the difference, unless the study searches ``wanted``."""
    stored = study.user_attrs.get(PROBLEM)
    if stored is None:
        raise ConfigurationError(
            f"the study {study.study_name!r} was not made by metaplastic: take another name."
        )
    lines = differences(stored, dict(wanted))
    if lines:
        raise ConfigurationError(
            f"the study {study.study_name!r} searches something else (there -> here):\n  "
            + "\n  ".join(lines)
            + "\nTake another name, or the same options."
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any], path: str = "") -> list[str]:
    """Where two nested dicts differ, one line each."""
    lines = []
    for key in dict.fromkeys([*there, *here]):
        a, b = there.get(key, "missing"), here.get(key, "missing")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{path}{key}.")
        elif a != b:
            lines.append(f"{path}{key}: {a} -> {b}")
    return lines
