"""Finished runs, read back for reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from metaplastic.errors import DataError
from studies.analysis import ALIGNMENT
from studies.analysis import FILE as ANALYSIS
from studies.config import RunConfig, read_config
from studies.folders import SUBRUNS
from studies.results import read_result
from studies.run import CURVE
from studies.scoring import FILE as SCORES


@dataclass(frozen=True)
class Curve:
    """Training scores by meta-step; NaN where every episode of a step diverged."""

    step: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray | None
    """0..1"""


@dataclass(frozen=True)
class Alignment:
    """Angles between feedback and forward weights over a meta-training."""

    step: np.ndarray
    """0 at the beginning."""
    degrees: dict[str, np.ndarray]
    """By feedback group."""


@dataclass(frozen=True)
class Run:
    """One scored learner."""

    label: str
    """Its name among the runs of the same task."""
    folder: str
    """The name of its folder."""
    config: RunConfig
    row: dict[str, Any]
    curve: Curve | None
    """None where the scores are of an evaluation."""
    scores: dict[str, np.ndarray]
    """The arrays of ``scores.npz``."""
    seconds: float
    analysis: dict[str, np.ndarray] = field(default_factory=dict)
    """The arrays of ``analysis.npz``, {} where nothing was analysed."""
    alignment: Alignment | None = None
    """None where there is no feedback to compare."""


def gather(folders: list[Path]) -> list[Run]:
    """All runs in some folders: runs, evaluations and demos.

    Raises DataError for a folder without results.
    """
    found: list[Run] = []
    for folder in folders:
        result = read_result(folder)
        if (folder / SUBRUNS).is_dir():
            found += gather(sorted(p for p in (folder / SUBRUNS).iterdir() if p.is_dir()))
        elif len(result["rows"]) == 1:
            found.append(_read(folder, result))
        else:
            raise DataError(
                f"{folder} holds the results of {len(result['rows'])} runs but not the runs: give "
                "the folders of the runs themselves."
            )
    return labelled(found)


def labelled(runs: list[Run]) -> list[Run]:
    """The runs under short names: the learner's, then in brackets what tells it from the others of
    its task.
    """
    tells: list[list[str]] = [[] for _ in runs]
    for position in range(4):
        groups: dict[tuple[str, ...], set[str]] = {}
        keys = [(r.row["task"], r.config.learner, *t) for r, t in zip(runs, tells, strict=True)]
        words = [_words(run)[position] for run in runs]
        for key, word in zip(keys, words, strict=True):
            groups.setdefault(key, set()).add(word)
        for key, word, tell in zip(keys, words, tells, strict=True):
            if len(groups[key]) > 1:
                tell.append(word)
    return [
        replace(run, label=run.config.learner + (f" ({', '.join(tell)})" if tell else ""))
        for run, tell in zip(runs, tells, strict=True)
    ]


def _words(run: Run) -> list[str]:
    row = run.row
    return [f"seed {row['seed']}", f"{row['steps']} steps", row["metagradient"], run.folder]


def _read(folder: Path, result: dict[str, Any]) -> Run:
    curve, alignment = folder / CURVE, folder / ALIGNMENT
    return Run(
        label="",
        folder=folder.resolve().name,
        config=read_config(folder),
        row=result["rows"][0],
        curve=_read_curve(curve) if curve.is_file() else None,
        scores=_arrays(folder / SCORES),
        seconds=result["seconds"],
        analysis=_arrays(folder / ANALYSIS),
        alignment=_read_alignment(alignment) if alignment.is_file() else None,
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _column(values: Iterable[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def _read_curve(path: Path) -> Curve | None:
    lines = _lines(path)
    if not lines:
        return None
    step, loss, accuracy = (
        _column(line[name] for line in lines) for name in ("step", "loss", "accuracy")
    )
    # A step that diverged has neither score; accuracy exists where any step has one.
    known = any(line["accuracy"] is not None for line in lines)
    return Curve(step, loss, accuracy if known else None)


def _read_alignment(path: Path) -> Alignment | None:
    lines = _lines(path)
    if not lines:
        return None
    degrees = {
        name: _column(line["degrees"][name] for line in lines) for name in lines[0]["degrees"]
    }
    return Alignment(_column(line["step"] for line in lines), degrees)
