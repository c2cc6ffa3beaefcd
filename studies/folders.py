"""Where commands write."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from metaplastic.errors import ConfigurationError

SUBRUNS = "runs"
"""The folder with the runs of a command that trains several learners."""
ARTIFACTS = "artifacts"
"""The folder with the artifacts of a search."""
OWN = (
    "config.json",
    "checkpoint.pt",
    "checkpoint.pt.part",
    "curve.jsonl",
    "alignment.jsonl",
    "scores.npz",
    "analysis.npz",
    "result.json",
    "rule.safetensors",
    "transfer.json",
    "comparison.json",
    "start.json",
    "study.db",
    "search.json",
    "report.html",
)


def open_folder(
    out: str | None, command: str, overwrite: bool, sources: Sequence[Path] = ()
) -> Path:
    """The folder of a command, made and empty.

    ``overwrite`` removes what an earlier command wrote there, and nothing else; never ``sources``,
    the folders that the command reads.

    Raises ConfigurationError for a folder that is not empty or cannot be made, and for a path that
    is a file or one of the sources.
    """
    folder = Path(out or f"runs/{command}-{datetime.now():%Y-%m-%d-%H%M%S}")
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"--out {folder} is a file: name a folder.")
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise ConfigurationError(
                f"--out {folder} holds {source}, which is read: name another folder."
            )
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise ConfigurationError(
                f"--out {folder} is not empty: name another folder, or pass --overwrite to "
                "replace the results in it."
            )
        _clear(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ConfigurationError(f"--out {folder} cannot be made: {reason.strerror}.") from reason
    return folder


def subrun(folder: Path, name: str) -> Path:
    """The folder of one of several runs, made."""
    path = folder / SUBRUNS / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _clear(folder: Path) -> None:
    kept = (folder / ARTIFACTS).glob("*")  # of a search: curves and rules of its trials
    for path in [*(folder / name for name in OWN), *folder.glob("*.png"), *kept]:
        path.unlink(missing_ok=True)
    if (folder / SUBRUNS).is_dir():
        for path in (folder / SUBRUNS).iterdir():
            if path.is_dir():
                _clear(path)
                with contextlib.suppress(OSError):  # something else is in it, which stays
                    path.rmdir()
