"""Finished runs, read back for reports."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metaplastic.errors import DataError
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
    curve = folder / CURVE
    scores = folder / SCORES
    arrays: dict[str, np.ndarray] = {}
    if scores.is_file():
        with np.load(scores, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    return Run(
        label="",
        folder=folder.resolve().name,
        config=read_config(folder),
        row=result["rows"][0],
        curve=_read_curve(curve) if curve.is_file() else None,
        scores=arrays,
        seconds=result["seconds"],
    )


def _read_curve(path: Path) -> Curve | None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not lines:
        return None

    def column(name: str) -> np.ndarray:
        return np.array([np.nan if v[name] is None else v[name] for v in lines], dtype=float)

    # A step that diverged has neither score; accuracy exists where any step has one.
    known = any(line["accuracy"] is not None for line in lines)
    return Curve(column("step"), column("loss"), column("accuracy") if known else None)
