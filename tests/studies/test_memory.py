"""The memory of a meta-gradient against the steps of its inner loop."""

from __future__ import annotations

import pytest

from metaplastic.errors import ConfigurationError
from studies.reproduce import memory
from studies.reproduce.memory import growth, main, memory_figure, memory_table, peak
from tests.studies.conftest import read

PEAKS = {"lcp": {10: 2000, 100: 2100}, "maml-rest": {10: 3000, 100: 24_000}}


def test_only_the_gradient_through_the_way_keeps_it() -> None:
    few, many = (peak("lcp", steps) for steps in (8, 20))  # acceleration has five in mind
    assert few == many
    short, long, longer = (peak("maml-rest", steps) for steps in (3, 6, 9))
    assert longer - long == pytest.approx(long - short, rel=0.05)
    assert longer > 2 * short
    assert peak("maml-rest", 20) > 3 * many


def test_a_learner_of_streams_has_no_such_gradient() -> None:
    with pytest.raises(ConfigurationError, match="none has no method at rest; lcp, "):
        peak("none", 3)


def test_the_table_tells_the_growth() -> None:
    assert growth({30: 6, 10: 2, 300: 9}) == 4.5
    head, body = memory_table(PEAKS)
    assert head[1:] == ["10", "100", "growth"]
    assert body == [["lcp", "2.0", "2.1", "1.05"], ["maml-rest", "3.0", "24.0", "8.00"]]


def test_the_picture_has_a_line_for_each() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = memory_figure(PEAKS).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[2.0, 2.1], [3.0, 24.0]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {text.get_text() for text in axes.texts} == {"lcp", "maml-rest"}


def test_the_command(tmp_path, capsys, monkeypatch) -> None:
    def made_up(learner: str, steps: int) -> int:
        return 1000 + (steps if learner == "maml-rest" else 0)

    monkeypatch.setattr(memory, "peak", made_up)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    out = tmp_path / "out"
    assert main(["--out", str(out)]) == 0
    result = read(out)
    assert result["rows"] == []
    assert result["config"]["peaks"]["maml-rest"] == {
        str(steps): 1000 + steps for steps in (10, 30, 100, 300, 1000)
    }
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == result["headline"]
    assert "from 10 to 1000 inner steps, peak over peak: lcp 1.00, " in result["headline"]
    assert "maml-rest 1.98 (" in result["headline"]
    assert main(["--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["--out", str(out), "--overwrite"]) == 0
