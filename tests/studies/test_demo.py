"""The demo, and jobs in processes of their own."""

import io
import sys
from pathlib import Path

import pytest

from metaplastic.errors import MetaplasticError
from studies.commands import demo
from studies.config import make_config
from studies.display import PlainDisplay, RichDisplay, make_display
from studies.results import KEYS, ROW_KEYS
from studies.status import Status
from studies.workers import run_jobs
from tests.studies.conftest import read


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_demo_compares_learners_at_one_budget(command, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "LEARNERS", ("none", "dfa"))
    done = command("demo", "--preset", "smoke", "--seed", 3, "--out", tmp_path)
    assert done.code == 0
    result = read(tmp_path)
    assert tuple(result) == KEYS
    rows = result["rows"]
    assert all(tuple(row) == ROW_KEYS for row in rows)
    assert [(row["task"], row["learner"]) for row in rows] == [
        (task, learner) for task in demo.STREAMS for learner in ("none", "dfa")
    ]
    configs = list(result["config"]["runs"].values())
    budget = ("steps", "episodes", "test", "seed", "hidden", "task_options", "feature_norm")
    for task in demo.STREAMS:
        own = [config for config in configs if config["task"] == task]
        assert all(config[name] == own[0][name] for config in own for name in budget)
    assert done.last == result["headline"]
    assert "one seed (3)" in done.last
    names = {path.name for path in tmp_path.iterdir()}
    assert {"result.json", "report.html", "sinusoid-continual-functions.png"} <= names
    refused = command("evaluate", tmp_path)
    assert refused.code == 2
    assert "glyphs-continual-dfa" in refused.err


def test_a_job_that_fails_ends_the_others_with_its_reason(tmp_path):
    config = make_config("sinusoid-iid", "none", "smoke", 0, task_options={"functions": 500})
    jobs = {"too many": demo.Job(config, tmp_path, "cpu")}
    silent = PlainDisplay([], io.StringIO())
    with pytest.raises(MetaplasticError, match=r"too many: an episode takes 500 .* has 400"):
        run_jobs(demo.train, jobs, 1, silent)
    config = make_config("sinusoid-iid", "none", "smoke", 0)
    jobs = {"nowhere": demo.Job(config, Path(tmp_path / "missing"), "cpu")}
    with pytest.raises(RuntimeError, match=r"nowhere failed(.|\n)*FileNotFoundError"):
        run_jobs(demo.train, jobs, 1, silent)


def test_displays_show_what_is_going_on(monkeypatch):
    status = Status("training", 3, 10, loss=0.51234, accuracy=0.25, diverged=2)
    plain, terminal = io.StringIO(), Terminal()
    for stream, kind in ((plain, PlainDisplay), (terminal, RichDisplay)):
        with make_display(["job"], stream) as display:
            assert type(display) is kind
            display.reporter("job")(status)
            display.done("job", "fine")
    assert "training 3/10  loss 0.512 acc 25 % 2 left out" in plain.getvalue()
    assert "fine" in plain.getvalue()
    assert "fine" in terminal.getvalue()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert type(make_display(["job"], Terminal())) is PlainDisplay
