"""All jobs of a reproduction, and the folder that they are in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaplastic.errors import CheckpointError, ConfigurationError
from studies.folders import open_folder
from studies.reproduce.paper import Chosen, Ended, Job
from studies.results import finite
from studies.status import Report

CONFIG = "config.json"


def make_jobs(wanted: Mapping[str, Chosen], out: Path, device: str) -> dict[str, Job]:
    """Every job by the name of its folder, part by part."""
    return {n: job for one in wanted.values() for n, job in one.jobs(out, device).items()}


def work(job: Job, report: Report) -> Ended:
    """What a worker process does with a job."""
    return job.work(report)


def open_study(out: str | None, overwrite: bool, setting: dict[str, Any]) -> Path:
    """The folder of a reproduction: a new one, or one of the same setting, which is gone on with.

    Raises ConfigurationError for one of another setting, and as ``open_folder`` does.
    """
    given = None if out is None else Path(out)
    if given is not None and not overwrite and (given / CONFIG).is_file():
        kept = _read(given / CONFIG)
        wrong = [n for n in {**kept, **setting} if kept.get(n) != finite(setting).get(n)]
        if wrong:
            told = ", ".join(f"{n} {kept.get(n)!r} (now {setting.get(n)!r})" for n in wrong)
            raise ConfigurationError(
                f"--out {given} holds another reproduction: {told}. Name another folder, ask for "
                "the same, or pass --overwrite to start anew."
            )
        return given
    folder = open_folder(out, "reproduce", overwrite)
    text = json.dumps(finite(setting), indent=2, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return folder


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise CheckpointError(
            f"{path} cannot be read ({type(reason).__name__}): pass --overwrite to start anew."
        ) from reason
