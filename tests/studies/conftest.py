"""Running commands in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import studies


@dataclass(frozen=True)
class Done:
    """One command that has ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.rstrip().splitlines()[-1]


Command = Callable[..., Done]


@pytest.fixture
def command(capsys) -> Command:
    def run(*arguments: object) -> Done:
        code = studies.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def bare(monkeypatch) -> None:
    """A machine without rich and matplotlib."""
    for name in ("rich", "rich.console", "rich.progress", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text("utf-8"))


def curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text("utf-8").splitlines()]
