"""The page about extending: its examples run, and what it adds keeps the contracts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from metaplastic import CrossEntropy, LayeredNetwork
from tests.helpers import page_examples, seeded

EXAMPLES = page_examples("extending.md")
CODE = "\n\n".join(code for _, code in EXAMPLES)


def test_every_axis_has_an_example():
    sections = [section for section, _ in EXAMPLES]
    assert list(dict.fromkeys(sections)) == [
        "A rule",
        "A credit",
        "A meta-gradient",
        "A network",
        "A named learner",
    ]


def test_the_page_runs_and_its_methods_keep_their_contracts(tmp_path: Path) -> None:
    """As a reader would: all blocks in one file, and pytest on it."""
    (tmp_path / "test_page.py").write_text(CODE, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        "test_page.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    for name in ("TestBCM", "TestInitialWeights", "TestTwoLosses", "TestDivisive"):
        assert len(re.findall(rf"^PASSED test_page.py::{name}::", done.stdout, re.M)) > 15


def test_the_rule_is_about_twenty_lines():
    block = next(code for _, code in EXAMPLES if "class BCM(PlasticityRule)" in code)
    assert len(block[block.index("class BCM") :].strip().splitlines()) <= 24


def test_the_named_learner_learns():
    names: dict = {}
    exec(compile(CODE, "docs/extending.md", "exec"), names)
    (made,) = names["RECIPES"]
    chain = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    network, options = LayeredNetwork(chain), made.configure({"rate": 0.02})
    learner = made.build(network, CrossEntropy(), options, seeded())
    clone = learner.clone()
    x, y = torch.randn(5, 8, generator=seeded()), torch.arange(5) % 3
    before = clone(x)
    clone.adapt(x, y)
    assert not torch.equal(clone(x), before)
    assert learner.plastic == {"layer0_weight", "layer1_weight"}
    assert [g["name"] for g in options.param_groups(learner)] == ["initial", "control"]
