"""The page about reproductions: its paper trains, and its commands are ones that there are."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from studies.cli import make_parser
from studies.reproduce import PAPERS
from studies.reproduce.base import Sizes
from studies.reproduce.images import ChosenImages
from studies.reproduce.outcome import Outcome
from studies.reproduce.paper import chosen
from tasks.images import Images, Part
from tests.helpers import page_examples
from tools.check_wheel import ROOT

PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")


def made_up(name: str, *, images: int, scaling: str, device: str) -> Images:
    """Ten classes of images that differ in one bright row."""
    del scaling, device
    g = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        y = torch.arange(count) % 10
        x = 0.1 * torch.randn(count, 1, 28, 28, generator=g)
        x[torch.arange(count), 0, 2 * y] += 1
        return Part(x, y)

    return Images(name, part(images), part(50), part(50), 10)


def test_the_example_paper_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((section, code),) = page_examples("reproduce.md")
    assert section == "Adding a paper"
    names: dict = {"__name__": "page"}
    exec(compile(code, "docs/reproduce.md", "exec"), names)
    monkeypatch.setattr("studies.reproduce.jobs.load_images", made_up)
    sizes = Sizes(images=256, epochs=3, seeds=(0,), batch=16)
    (only,) = chosen(names["PAPER"], "smoke").values()
    assert isinstance(only, ChosenImages)
    (job,) = replace(only, sizes=sizes).jobs(tmp_path, "cpu").values()
    outcome = job.work(lambda status: None)
    assert isinstance(outcome, Outcome)
    assert outcome.accuracy is not None
    assert outcome.accuracy > 0.9


def test_the_commands_and_the_papers_are_ones_that_there_are() -> None:
    blocks = re.findall(r"^```shell\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    commands = [line for line in "".join(blocks).splitlines() if line]
    own = [line for line in commands if line.startswith("python -m studies reproduce ")]
    assert {*commands} - {*own} == {"python -m studies.reproduce.memory --out runs/memory"}
    assert len(own) == 12
    for command in own:
        parsed = make_parser().parse_args(shlex.split(command)[3:])
        wanted = None if parsed.methods is None else parsed.methods.split(",")
        parts = None if parsed.parts is None else parsed.parts.split(",")
        chosen(PAPERS[parsed.paper], parsed.preset, wanted, parts)
    assert re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE) == list(PAPERS)
