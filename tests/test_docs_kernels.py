"""The page about kernels: its examples run, and it says what ``explain`` says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import page_examples


def test_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numba", reason="the page shows the engine that Numba compiles")
    names: dict[str, Any] = {}
    for _, code in page_examples("kernels.md"):
        exec(compile(code, "docs/kernels.md", "exec"), names)
    said, estimate = capsys.readouterr().out.strip().splitlines()
    assert " MB (fused" in estimate
    assert said == "fused: every neuron goes through the whole stream by itself."
    shown = next(code for _, code in page_examples("kernels.md") if "explain" in code)
    assert f"# {said}" in shown
