"""Files of JSON lines that grow by meta-step, in step with the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metaplastic.errors import CheckpointError
from studies.results import finite


class Log:
    """One line for each meta-step, or for every so many, written when the checkpoint is.

    Args:
        path: the file.
        steps: the meta-steps of the checkpoint to go on from; 0 begins anew.
        every: meta-steps from one line to the next.

    Raises:
        CheckpointError: for a file that ends before the checkpoint.
    """

    def __init__(self, path: Path, steps: int, every: int = 1) -> None:
        kept = _until(path, steps) if steps and path.is_file() else []
        last = kept[-1]["step"] if kept else 0
        if last <= steps - every:
            raise CheckpointError(
                f"{path} ends at meta-step {last} and the checkpoint at {steps}: start anew."
            )
        path.write_text("", encoding="utf-8")
        self._path = path
        self._new: list[str] = []
        for line in kept:
            self.add(line)
        self.flush()

    def add(self, line: dict[str, Any]) -> None:
        """One line, with its ``step``; numbers that JSON does not have are null."""
        self._new.append(json.dumps(finite(line), allow_nan=False) + "\n")

    def flush(self) -> None:
        """Write what was added."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(self._new)
        self._new.clear()


def _until(path: Path, steps: int) -> list[dict[str, Any]]:
    """The lines up to a meta-step; those behind it are of meta-steps that will be run again, and
    the last of them may be cut off.
    """
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["step"] > steps:
            break
        kept.append(line)
    return kept
