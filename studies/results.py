"""``result.json``: what every command leaves behind."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaplastic.errors import DataError

FILE = "result.json"
SCHEMA = 1
KEYS = (
    "schema",
    "command",
    "config",
    "seeds",
    "versions",
    "machine",
    "date",
    "seconds",
    "rows",
    "headline",
)
REST_KEYS = ("online_score", "rest_score", "residual")
"""Of learners with a method at rest, null for others: the accuracy (or loss) after the stream, the
same at the rest point, means over all episodes, of which one that diverged counts as wrong and
leaves no loss; and how far from rest the weights were. A row written without them gets nulls."""
ROW_KEYS = (
    "task",
    "learner",
    "metagradient",
    "seed",
    "steps",
    "episodes",
    "loss",
    "accuracy",
    "ci95",
    "per_task",
    "forgetting",
    "diverged",
    *REST_KEYS,
)
"""``episodes`` counts the unseen episodes, ``diverged`` those of them left out. ``ci95`` is half
the width of the 95 % interval over episodes of the accuracy, or of the loss where there is no
accuracy; ``per_task`` is that same score of each task of the stream, oldest first."""


@dataclass(frozen=True)
class Result:
    """The outcome of one command."""

    command: str
    config: dict[str, Any]
    seeds: list[int]
    rows: list[dict[str, Any]]
    headline: str
    seconds: float
    device: torch.device

    def as_json(self) -> dict[str, Any]:
        """The content of ``result.json``. It names no folder and no host."""
        rows = [{**row, **{name: row.get(name) for name in REST_KEYS}} for row in self.rows]
        for row in rows:
            assert tuple(row) == ROW_KEYS, f"a row has the keys {ROW_KEYS}, got {tuple(row)}"
        values = {
            "schema": SCHEMA,
            "command": self.command,
            "config": self.config,
            "seeds": self.seeds,
            "versions": versions(),
            "machine": machine(self.device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "rows": rows,
            "headline": self.headline,
        }
        return finite(values)

    def write(self, folder: Path) -> None:
        """Write ``result.json``."""
        text = json.dumps(self.as_json(), indent=2, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_result(folder: Path) -> dict[str, Any]:
    """The ``result.json`` of a folder.

    Raises DataError where there is none, or one of another format.
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise DataError(
            f"{folder} holds no readable {FILE} ({type(reason).__name__}): give the folder that a "
            "finished command wrote; finish an interrupted one with `python -m studies train "
            f"--resume {folder}`."
        ) from reason
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise DataError(f"{folder / FILE} is not of format {SCHEMA}, which this version reads.")
    return values


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    try:
        own = metadata.version("metaplastic")
    except metadata.PackageNotFoundError:
        own = "checkout"
    return {
        "metaplastic": own,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on, without the machine's name."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": gpu or "cpu",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
