"""Jobs of a reproduction: killed, resumed, diverged, and in processes of their own."""

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from metaplastic import Delta, Learner
from metaplastic.credit import Backprop
from metaplastic.errors import CheckpointError
from studies.display import make_display
from studies.reproduce import PAPERS
from studies.reproduce.base import Method, Setup, Sizes, Trainee
from studies.reproduce.images import ChosenImages
from studies.reproduce.jobs import ImageJob
from studies.reproduce.outcome import Outcome, summarise
from studies.reproduce.paper import chosen
from studies.reproduce.phase import WEIGHTS, Phase
from studies.reproduce.study import make_jobs, work
from studies.reproduce.tables import cells
from studies.results import ROW_KEYS
from studies.workers import run_jobs
from tests.studies.conftest import read
from tests.studies.reproductions import SIZES, made_up, silent, small, timeless


def falls_over(setup: Setup) -> Trainee:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    learner = Learner(net, Backprop(), {"*": Delta(1.0)})
    return Trainee(learner, [Phase(WEIGHTS, torch.optim.SGD(net.parameters(), 1e38), clip=None)])


def job(tmp_path, build=small, seed=0, **options) -> ImageJob:
    return ImageJob(
        "mine",
        "mnist",
        "unit",
        Method("m", "", build, {"lr": 0.01, **options}),
        SIZES,
        seed,
        None,
        tmp_path,
        "cpu",
    )


@pytest.fixture
def data(monkeypatch) -> None:
    for module in ("jobs", "images"):
        monkeypatch.setattr(f"studies.reproduce.{module}.load_images", made_up)


@pytest.mark.usefixtures("data")
def test_a_job_that_is_killed_goes_on_and_a_finished_one_is_only_read(tmp_path, monkeypatch):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = job(tmp_path / "whole").work(silent)

    class Killed(BaseException):
        pass

    def dies(status) -> None:
        if status.done > 15 + 7:  # in the second epoch
            raise Killed

    monkeypatch.setattr("studies.status.Every.__call__", lambda self: True)
    with pytest.raises(Killed):
        job(tmp_path / "killed").work(dies)
    lines = (tmp_path / "killed" / "curve.jsonl").read_text().splitlines()
    assert 1 < len(lines) < 4
    resumed = job(tmp_path / "killed").work(silent)
    assert timeless(resumed.curve) == timeless(whole.curve)
    monkeypatch.setattr("studies.reproduce.jobs.make_training", None)
    assert job(tmp_path / "killed").work(silent) == resumed
    with pytest.raises(CheckpointError, match="--overwrite"):
        job(tmp_path / "killed", lr=0.02).work(silent)
    row = read(tmp_path / "killed")["rows"][0]
    assert tuple(row) == ROW_KEYS
    best = max(whole.curve[1:], key=lambda line: line["validation_accuracy"])
    assert row["accuracy"] == best["test_accuracy"]
    assert row["task"] == "mine"


@pytest.mark.usefixtures("data")
def test_what_diverges_says_so_in_its_row(tmp_path):
    outcome = job(tmp_path, falls_over).work(silent)
    assert outcome.diverged
    assert outcome.accuracy is None
    row = read(tmp_path)["rows"][0]
    assert (row["accuracy"], row["loss"], row["diverged"]) == (None, None, 1)
    (summary,) = summarise([outcome], "bp", {})
    assert cells(summary)[1] == "–"
    assert cells(summary)[-1] == "1 of 1"


@pytest.mark.skipif(
    "METAPLASTIC_DATA" not in os.environ, reason="needs MNIST: METAPLASTIC_DATA is unset"
)
def test_jobs_run_in_processes_too(tmp_path):
    sizes = Sizes(images=128, epochs=1, seeds=(0,), test=100, validation=100)
    wanted = chosen(PAPERS["dfc"], "smoke", ["bp", "dfc-ssa"])
    only = wanted["mnist"]
    assert isinstance(only, ChosenImages)
    jobs = make_jobs({"mnist": replace(only, sizes=sizes)}, tmp_path, "cpu")
    with make_display(list(jobs)) as display:
        done = run_jobs(work, jobs, 2, display)
    assert [o.diverged for o in done.values()] == [None, None]
    outcome = done["mnist-dfc-ssa-0"]
    assert isinstance(outcome, Outcome)
    assert outcome.along("row_space_share")[0] < 0.5
