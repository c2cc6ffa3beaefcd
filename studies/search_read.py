"""A study of ``search``, read back for its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaplastic.errors import ConfigurationError, DataError, UnknownNameError
from metaplastic.tune import finished, open_storage
from metaplastic.tune.problem import Measure
from metaplastic.tune.study import PROBLEM
from studies.config import RunConfig
from studies.folders import ARTIFACTS
from studies.gather import Curve
from studies.search import CONFIG, DATABASE, MADE_BY
from studies.words import score_name

ENOUGH, STEADY = 20, 50
"""Complete trials below which importances are not computed, and below which they are rough: they
compare the best tenth of the trials with all of them."""


@dataclass(frozen=True)
class Trial:
    """One trial that counts."""

    number: int
    outcome: str
    """complete, pruned or diverged"""
    baseline: str
    """default, published, or empty"""
    values: tuple[float, ...] | None
    """One for each measure; None unless complete."""
    parameters: dict[str, Any]
    """What was varied, in the form that was searched."""
    options: dict[str, Any]
    """All options of the learner."""
    seed: int
    seconds: float
    reason: str
    """Why it diverged."""
    curve: Curve | None

    @property
    def label(self) -> str:
        """``trial 7``, or the name of the baseline."""
        return self.baseline or f"trial {self.number}"


@dataclass(frozen=True)
class Study:
    """What is reported of a study."""

    name: str
    config: RunConfig
    """Of its trials; its options are the defaults."""
    command: str
    """That made it."""
    measures: tuple[Measure, ...]
    maximize: tuple[bool, ...]
    space: dict[str, dict[str, Any]]
    """The dimensions by option, as they describe themselves."""
    trials: list[Trial]
    front: list[int]
    """Numbers of the trials that no other one beats in every measure."""
    importance: dict[str, float]
    """Share of each option in what sets the best trials apart, largest first; may be empty."""
    importance_note: str
    """Why there is none, or how far to trust it."""

    @property
    def complete(self) -> list[Trial]:
        """Complete trials, the best by the first measure first."""
        sign = -1.0 if self.maximize[0] else 1.0
        found = [t for t in self.trials if t.values is not None]
        return sorted(found, key=lambda t: (sign * (t.values or (0.0,))[0], t.number))


@dataclass(frozen=True)
class Scale:
    """How the values of a measure are written."""

    name: str
    factor: float
    digits: int
    unit: str
    """Of values; may be empty."""
    unit_of_change: str

    @property
    def label(self) -> str:
        """``accuracy (%)``"""
        return self.name + (f" ({self.unit})" if self.unit else "")

    def text(self, value: float | None, sign: str = "") -> str:
        """A value or a difference in the measure's unit; a dash where there is none."""
        if value is None or not np.isfinite(value):
            return "–"
        value = self.factor * value
        return f"{value:{sign}.{self.digits}f}" if abs(value) < 1e4 else f"{value:{sign}.3g}"


def scale(measure: Measure, chance: float | None) -> Scale:
    """The scale of a measure; ``chance`` is None for regression."""
    if measure == "seconds":
        return Scale("seconds", 1.0, 1, "", "s")
    name = score_name(chance) if measure == "score" else measure
    if chance is None:
        return Scale(name, 1.0, 4, "", "")
    return Scale(name, 100.0, 1, "%" if measure == "score" else "points", "points")


def find_study(text: str, storage: str | None, artifacts: str | None) -> tuple[str, str, Path]:
    """The storage, name and artifact folder of a study: ``text`` is its name, or the folder of a
    search where no ``storage`` is given.

    Raises:
        ConfigurationError: where there is no such folder or file, or more than one study in it.
        UnknownNameError: with a suggestion, for another name than the storage has.
    """
    folder = Path(text)
    if storage is None and not (folder / DATABASE).is_file():
        raise ConfigurationError(
            f"{text} is no folder with a {DATABASE} in it: give the folder that `python -m studies "
            "search` wrote, or the name of a study and its --storage."
        )
    place = storage or str(folder / DATABASE)
    path = storage_file(place)
    if path is not None and not path.is_file():
        raise ConfigurationError(f"--storage {place}: there is no such file.")
    import optuna

    names = optuna.get_all_study_names(open_storage(place))
    if storage is not None and text not in names:
        raise UnknownNameError("study", text, names)
    if storage is None and len(names) != 1:
        raise ConfigurationError(
            f"{place} holds {len(names)} studies ({', '.join(sorted(names)) or 'none'}): give the "
            f"name of one and --storage {place}."
        )
    beside = (path.parent if path is not None else Path(".")) / ARTIFACTS
    return place, text if storage else names[0], Path(artifacts) if artifacts else beside


def read_study(storage: str, name: str, artifacts: Path) -> Study:
    """Read a study, its learning curves from a folder of artifacts as far as they are there.

    Raises:
        DataError: for a study that was not made by ``search``, or without a complete trial.
    """
    import optuna

    study = optuna.load_study(study_name=name, storage=open_storage(storage))
    problem = study.user_attrs.get(PROBLEM)
    if problem is None:
        raise DataError(f"the study {name!r} was not made by metaplastic: it says not what it is.")
    stored = study.user_attrs.get(CONFIG)
    if stored is None:
        raise DataError(
            f"the study {name!r} was made by metaplastic.tune.search on data of its own, from "
            "which its runs cannot be made again here: only `python -m studies search` writes "
            "studies that can be reported."
        )
    trials = [_trial(t, artifacts) for t in sorted(finished(study), key=lambda t: t.number)]
    if all(t.values is None for t in trials):
        raise DataError(
            f"the study {name!r} has no complete trial among {len(trials)}: go on with it "
            "(`python -m studies search --resume`), or search lower rates."
        )
    try:
        config = RunConfig(**{**stored, "hidden": tuple(stored["hidden"])})
    except (TypeError, KeyError) as reason:
        raise DataError(f"the study {name!r} is of another version ({reason}).") from reason
    importance, note = _importance(study)
    return Study(
        name=name,
        config=config,
        command=study.user_attrs.get(MADE_BY, ""),
        measures=tuple(problem["measures"]),
        maximize=tuple(d.name == "MAXIMIZE" for d in study.directions),
        space=problem["space"],
        trials=trials,
        front=sorted(t.number for t in study.best_trials),
        importance=importance,
        importance_note=note,
    )


def storage_file(place: str) -> Path | None:
    """The file behind a storage, None for a server."""
    if "://" not in place:
        return Path(place)
    return Path(place.removeprefix("sqlite:///")) if place.startswith("sqlite:///") else None


def _trial(trial: Any, artifacts: Path) -> Trial:
    known = trial.user_attrs
    return Trial(
        number=trial.number,
        outcome=known.get("outcome", trial.state.name.lower()),
        baseline=known.get("baseline", ""),
        values=tuple(trial.values) if trial.state.name == "COMPLETE" else None,
        parameters=dict(trial.params),
        options=known["options"],
        seed=known["seed"],
        seconds=known.get("seconds", 0.0),
        reason=known.get("reason", ""),
        curve=_curve(known.get("artifacts", {}), artifacts),
    )


def _curve(kept: Mapping[str, str], artifacts: Path) -> Curve | None:
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.artifacts.exceptions import ArtifactNotFound

    if "curve.jsonl" not in kept or not artifacts.is_dir():
        return None
    try:
        with FileSystemArtifactStore(str(artifacts)).open_reader(kept["curve.jsonl"]) as file:
            lines = [json.loads(line) for line in file.read().decode().splitlines()]
    except ArtifactNotFound:
        return None
    values = [np.nan if line["loss"] is None else line["loss"] for line in lines]
    steps = [line["step"] for line in lines]
    return Curve(np.array(steps), np.array(values, dtype=float), None) if lines else None


def _importance(study: Any) -> tuple[dict[str, float], str]:
    import optuna

    count = sum(t.state.name == "COMPLETE" for t in finished(study))
    if count < ENOUGH:
        return {}, f"{count} complete trials are too few for importances, which need {ENOUGH}"
    found = optuna.importance.get_param_importances(study)
    note = f"{count} complete trials are few: the importances are rough" if count < STEADY else ""
    return {name: float(value) for name, value in found.items()}, note
